"""A cell's file as it is read: whole, of a known format, with the parts it must have.

Host code below `results.py`, which makes records of what is read here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from metarl.errors import UserError

FORMAT = 1
"""Of the files that are written; higher ones are of newer versions."""

_PARTS: dict[str, type] = {
    "result": dict,
    "curve": list,
    "settings": dict,
    "about": dict,
    "videos": list,
}


def read_tree(path: Path) -> dict[str, Any]:
    """Return what is in a cell's file.

    Raises:
      UserError: it is none, is of a newer version, or cannot be read.
    """
    try:
        # NaN, which earlier versions wrote, is no JSON.
        text = path.read_text("utf-8")
        tree = json.loads(text, parse_constant=lambda _: None)
    except OSError as error:
        raise UserError(f"results_dir: {path}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise not_a_cell(path, "it is not whole, or no JSON") from None
    if not isinstance(tree, dict):
        raise not_a_cell(path, "it has no fields")
    written = tree.get("format", FORMAT)
    if type(written) is int and written > FORMAT:
        raise UserError(
            f"results_dir: {path} is of format {written}, this metarl reads up to "
            f"{FORMAT} (update metarl, or choose another results_dir)"
        )
    tree = {"about": {}, "videos": [], **tree}
    if why := _what_is_wrong(tree):
        raise not_a_cell(path, why)
    return tree


def _what_is_wrong(tree: dict[str, Any]) -> str | None:
    for name, kind in _PARTS.items():
        if name not in tree:
            return f"'{name}' is missing"
        if not isinstance(tree[name], kind):
            return f"'{name}' is not as this metarl has it"
    for name in ("rule", "game", "status"):
        if not isinstance(tree["result"].get(name), str):
            return f"'{name}' of 'result' is missing or no text"
    if not isinstance(tree["settings"].get("environment", {}), dict):
        return "'environment' of 'settings' has no fields"
    return None


def not_a_cell(path: Path, why: str) -> UserError:
    """Return what is said of a file among the cells that is none."""
    return UserError(
        f"results_dir: {path} is not a cell's file: {why} (delete it and give the "
        "command again, and it is trained anew)"
    )
