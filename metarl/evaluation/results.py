"""Results on disk: a JSON file per finished cell.

A host module. Every file appears whole or not at all, so an evaluation that was killed
goes on with the cells that have none.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from metarl.atomic_files import write_file, write_new_file
from metarl.envs.suites import GAMES
from metarl.errors import UserError
from metarl.evaluation import agreement_records
from metarl.evaluation.cell_files import FORMAT, not_a_cell, read_tree
from metarl.evaluation.cell_records import (
    AgentRecords,
    CellRecord,
    CurveRow,
    PeerRecord,
    Result,
    Video,
)
from metarl.evaluation.cells import Cell, completed_identity
from metarl.evaluation.robustness_records import of_tree
from metarl.evaluation.shared_folder import locked

CELLS = "cells"
_NO_RECORDS = AgentRecords()
_UNORDERED = ("tuning.learning_rates", "tuning.games", "tuning.seeds")


def write_cell(
    results_dir: Path,
    cell: Cell,
    result: Result,
    curve: Sequence[CurveRow],
    about: Mapping[str, object],
    *,
    agents: AgentRecords = _NO_RECORDS,
    before: Callable[[], None] | None = None,
) -> bool:
    """Store a finished cell, unless another process was first: its result stays.

    Args:
      results_dir: of the evaluation.
      cell: that is done.
      result: its row.
      curve: its learning curve.
      about: what else is worth knowing, such as versions and seconds.
      agents: what is known of each.
      before: called right before it is stored, if it is.

    Returns:
      Whether it was stored.
    """
    tree = {
        "format": FORMAT,
        "result": dataclasses.asdict(result),
        "curve": [dataclasses.asdict(row) for row in curve],
        "settings": cell.identity(),
        "about": dict(about),
        "videos": [],
    }
    tree |= {name: found for name, found in dataclasses.asdict(agents).items() if found}
    path = cell_path(results_dir, cell)
    with changing(results_dir):
        if path.exists():
            return False
        if before is not None:
            before()
        return write_new_file(path, _json(tree).encode())


def is_finished(
    results_dir: Path, cell: Cell, *, undecided: Sequence[str] = ()
) -> bool:
    """Return whether a cell was done before, with the same settings.

    Args:
      results_dir: of the evaluation.
      cell: that may be done.
      undecided: settings that are not compared, since they are still to be chosen.

    Raises:
      UserError: it was done with others.
    """
    path = cell_path(results_dir, cell)
    if not path.is_file():
        return False
    tree = read_tree(path)
    # Of names that no file can have, two may have become one.
    of = {"rule": cell.rule.name, "game": cell.game, "seed": cell.seed}
    before = {name: tree["result"].get(name) for name in of}
    before |= flatten(completed_identity(tree["settings"]))
    now = {**of, **flatten(cell.identity())}
    fields = [f for f in {**now, **before} if f not in undecided]
    if field := first_difference(before, now, fields):
        raise UserError(
            f"results_dir: {results_dir} has {cell.name} with {field} = "
            f"{show(before, field)}, not {show(now, field)} "
            "(choose another results_dir)"
        )
    return True


def first_difference(
    before: Mapping[str, Any], now: Mapping[str, Any], fields: Iterable[str]
) -> str | None:
    """Return the first of ``fields`` that two flat identities differ in.

    The grid first: what it chose differs too where it does. In which order it was
    given is no difference.
    """
    for field in sorted(fields, key=lambda name: not name.startswith("tuning.")):
        pair = [before.get(field), now.get(field)]
        if field in _UNORDERED:
            pair = [sorted(v, key=str) if isinstance(v, list) else v for v in pair]
        if pair[0] != pair[1]:
            return field
    return None


@contextlib.contextmanager
def changing(results_dir: Path) -> Iterator[None]:
    """Keep others from merging, storing and changing cells while the block runs."""
    with locked(results_dir / ".merge.lock"):
        yield


def read_cells(results_dir: Path) -> list[CellRecord]:
    """Return every finished cell, by rule, game and seed; none without such a folder.

    Raises:
      UserError: a file there is not a cell's.
    """
    return by_cell(read_record(path) for path in (results_dir / CELLS).glob("*.json"))


def by_cell(records: Iterable[CellRecord]) -> list[CellRecord]:
    """Return cells by rule, game, size of the group and seed."""

    def place(record: CellRecord) -> tuple[str, str, int, int]:
        result = record.result
        return result.rule, result.game, result.group_size, result.seed

    return sorted(records, key=place)


def read_cell(results_dir: Path, cell: Cell) -> CellRecord:
    """Return what is stored of a finished cell."""
    return read_record(cell_path(results_dir, cell))


def cell_path(results_dir: Path, cell: Cell) -> Path:
    """Return where a cell is stored once it is finished."""
    return results_dir / CELLS / f"{cell.name}.json"


def read_record(path: Path) -> CellRecord:
    """Return the finished cell that a file is.

    Raises:
      UserError: it is not one.
    """
    tree = read_tree(path)
    try:
        return CellRecord(
            result=Result(**(_older(tree) | tree["result"])),
            curve=tuple(CurveRow(**point) for point in tree["curve"]),
            settings=tree["settings"],
            about=tree["about"],
            videos=tuple(Video(**video) for video in tree["videos"]),
            peers=tuple(
                PeerRecord(
                    peer["mean_return"],
                    tuple(CurveRow(**point) for point in peer["curve"]),
                )
                for peer in tree.get("peers", ())
            ),
            robustness=of_tree(tree.get("robustness", ())),
            agreement=agreement_records.of_tree(tree.get("agreement", ())),
        )
    except KeyError as error:
        raise not_a_cell(path, f"{error} is missing") from None
    except (TypeError, ValueError, AttributeError):
        raise not_a_cell(path, "a part of it is not as this metarl has it") from None


def _older(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns that files of earlier versions lack, from what they hold."""
    result, settings = tree["result"], tree["settings"]
    atari = settings["environment"]["atari"]
    is_atari = result["game"] in GAMES and GAMES[result["game"]].family == "atari"
    about = tree["about"]
    return {
        "scored_episodes": min(result["episodes"], 100),
        "frames": result["env_steps"] * (atari["frame_skip"] if is_atari else 1),
        "protocol": atari["protocol"] if is_atari else "",
        "learning_rate": settings["agent"]["optimizer"]["learning_rate"],
        "wall_s": about["wall_s"] / (about.get("cells_beside", 0) + 1)
        if "wall_s" in about
        else None,
        "best_return": result["mean_return"],
        "worst_return": result["mean_return"],
    }


def write_tree(path: Path, tree: object) -> None:
    """Write a JSON file so that no reader sees a part of it."""
    _write(path, _json(tree))


def _json(tree: object) -> str:
    return json.dumps(tree, indent=1, allow_nan=False) + "\n"


def _write(path: Path, text: str) -> None:
    write_file(path, text.encode())


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return settings by their dotted names."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def show(flat: Mapping[str, object], field: str) -> str:
    """Return the value of a flat identity as a message has it."""
    return json.dumps(flat[field]) if field in flat else "nothing"
