"""What changes in cells that are stored already: their videos, and their status.

Host code beside `results.py`. A result never changes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from metarl.errors import UserError
from metarl.evaluation.cell_files import read_tree
from metarl.evaluation.cell_records import (
    Video,
)
from metarl.evaluation.cells import Cell
from metarl.evaluation.results import (
    CELLS,
    cell_path,
    changing,
    write_tree,
)
from metarl.rule_files import LoadedRule, Status

_LESS_TRUST: tuple[Status, ...] = ("held_out", "validation", "unknown", "seen")
"""Statuses, each to be trusted less than those before it.

Where it is not known what a rule has seen, `unknown` is said even of a game that it
was validated on; that a game was seen is a fact whatever else is known.
"""


def add_videos(results_dir: Path, cell: Cell, videos: Sequence[Video]) -> None:
    """List videos in the file of a cell that is stored already."""
    with changing(results_dir):
        path = cell_path(results_dir, cell)
        tree = read_tree(path)
        tree["videos"] = [dataclasses.asdict(video) for video in videos]
        write_tree(path, tree)


def update_statuses(
    results_dir: Path, rules: Sequence[LoadedRule]
) -> list[tuple[str, str, str]]:
    """Give stored cells the status that their rule's manifest says by now.

    A manifest learns of games, as when a rule is validated on one after it was
    evaluated there. It never unlearns: another copy of the same arrays, whose manifest
    is older or says less, makes no game held out again. So a status moves from
    `held_out` over `validation` and `unknown` to `seen`, and never back.

    Args:
      results_dir: of the evaluation.
      rules: as they were loaded; cells of others, or of other meta-parameters under
        the same name, stay as they are.

    Returns:
      What changed: the cell's name, the status before and the one now.
    """
    by_name = {rule.name: rule for rule in rules}
    changed: list[tuple[str, str, str]] = []
    with changing(results_dir):
        for path in sorted((results_dir / CELLS).glob("*.json")):
            try:
                tree = read_tree(path)
            except UserError:
                continue  # somebody else's; merging the tables says so
            stored = tree["result"]
            rule = by_name.get(stored["rule"])
            sha256 = tree["settings"].get("rule_sha256")
            if rule is None or rule.manifest.sha256 != sha256:
                continue
            before, now = stored["status"], rule.status(stored["game"])
            if before not in _LESS_TRUST:
                continue  # merging the tables shows it as it is
            if _LESS_TRUST.index(now) > _LESS_TRUST.index(before):
                stored["status"] = now
                write_tree(path, tree)
                changed.append((path.stem, before, now))
    return changed
