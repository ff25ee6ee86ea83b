"""What the folder of a rule that ships holds, and what its card says."""

from __future__ import annotations

from pathlib import Path


def facts(card: str) -> dict[str, str]:
    """Return the two columns of the card's first table."""
    rows = [
        line.strip("| ").split(" | ") for line in card.splitlines() if " | " in line
    ]
    return {cells[0]: cells[1] for cells in rows if len(cells) == 2}


def text_of(folder: Path) -> str:
    return (folder / "README.md").read_text()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
