"""Results on disk: a JSON file per cell, and the tables that are merged from them.

A host module. Every file appears whole or not at all, so an evaluation that was killed
goes on with the cells that have none.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from metarl.envs.suites import human_normalized_score
from metarl.errors import UserError
from metarl.evaluation.cells import GROUP_SIZE, Cell
from metarl.rule_files import folder as rule_folder

CELLS = "cells"
FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Result:
    """How good a cell became; one row of results.csv, whose columns these are.

    Attributes:
      mean_return: raw return of the last 100 finished episodes, all if fewer; None
        where no episode finished.
      human_normalized_score: of that; None where no scores are published.
    """

    rule: str
    game: str
    status: str
    seed: int
    group_size: int
    env_steps: int
    episodes: int
    mean_return: float | None
    human_normalized_score: float | None


@dataclasses.dataclass(frozen=True)
class CurveRow:
    """One point of a learning curve.

    Attributes:
      env_steps: so far.
      agent_updates: so far.
      episodes: finished since the row before.
      mean_return: their raw return; None where there are none.
    """

    env_steps: int
    agent_updates: int
    episodes: int
    mean_return: float | None


def make_result(
    cell: Cell, *, env_steps: int, episodes: int, last_returns: Sequence[float]
) -> Result:
    """Return the row of a cell.

    Args:
      cell: that is done.
      env_steps: it took.
      episodes: that finished.
      last_returns: of the newest of them.
    """
    mean = sum(last_returns) / len(last_returns) if last_returns else None
    return Result(
        rule=cell.rule.name,
        game=cell.game,
        status=cell.rule.status(cell.game),
        seed=cell.seed,
        group_size=GROUP_SIZE,
        env_steps=env_steps,
        episodes=episodes,
        mean_return=mean,
        human_normalized_score=(
            None if mean is None else human_normalized_score(cell.game, mean)
        ),
    )


def write_cell(
    results_dir: Path,
    cell: Cell,
    result: Result,
    curve: Sequence[CurveRow],
    about: Mapping[str, object],
) -> None:
    """Store a finished cell.

    Args:
      results_dir: of the evaluation.
      cell: that is done.
      result: its row.
      curve: its learning curve.
      about: what else is worth knowing, such as versions and seconds.
    """
    tree = {
        "format": FORMAT,
        "result": dataclasses.asdict(result),
        "curve": [dataclasses.asdict(row) for row in curve],
        "settings": cell.identity(),
        "about": dict(about),
    }
    _write(_path(results_dir, cell), json.dumps(tree, indent=1) + "\n")


def is_finished(results_dir: Path, cell: Cell) -> bool:
    """Return whether a cell was done before, with the same settings.

    Raises:
      UserError: it was done with others.
    """
    path = _path(results_dir, cell)
    if not path.is_file():
        return False
    before, now = _flat(_read(path)["settings"]), _flat(cell.identity())
    for field in [*now, *(field for field in before if field not in now)]:
        if before.get(field) != now.get(field):
            raise UserError(
                f"results_dir: {results_dir} has {cell.name} with {field} = "
                f"{_show(before, field)}, not {_show(now, field)} "
                "(choose another results_dir)"
            )
    return True


def merge_cells(results_dir: Path) -> list[Result]:
    """Write `results.csv`, `results.json` and `curves.csv` from all cells there are.

    Returns:
      The rows, by rule, game and seed.
    """
    pairs = _read_all(results_dir)
    rows = [dataclasses.asdict(result) for result, _ in pairs]
    columns = [field.name for field in dataclasses.fields(Result)]
    _write(results_dir / "results.csv", _csv(columns, rows))
    _write(results_dir / "results.json", json.dumps(rows, indent=1) + "\n")
    points = [
        {
            "rule": result.rule,
            "game": result.game,
            "seed": result.seed,
            **dataclasses.asdict(point),
        }
        for result, curve in pairs
        for point in curve
    ]
    columns = ["rule", "game", "seed"]
    columns += [field.name for field in dataclasses.fields(CurveRow)]
    _write(results_dir / "curves.csv", _csv(columns, points))
    return [result for result, _ in pairs]


def read_curves(results_dir: Path) -> dict[tuple[str, str, int], list[CurveRow]]:
    """Return the learning curve of each cell by rule, game and seed."""
    return {(r.rule, r.game, r.seed): curve for r, curve in _read_all(results_dir)}


def summary(results: Iterable[Result]) -> list[list[str]]:
    """Return a small table, head first: means over seeds by game and rule."""
    groups: dict[tuple[str, str, str], list[Result]] = {}
    for result in results:
        key = (result.game, result.status, result.rule)
        groups.setdefault(key, []).append(result)
    rows = [["game", "status", "rule", "seeds", "return", "human-normalized"]]
    for (game, status, rule), members in sorted(groups.items()):
        rows.append(
            [
                game,
                status,
                rule,
                str(len(members)),
                _mean([member.mean_return for member in members]),
                _mean([member.human_normalized_score for member in members]),
            ]
        )
    return rows


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{sum(known) / len(known):.3f}" if known else "-"


def _csv(columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)  # None becomes an empty field
    return text.getvalue()


def _path(results_dir: Path, cell: Cell) -> Path:
    return results_dir / CELLS / f"{cell.name}.json"


def _read_all(results_dir: Path) -> list[tuple[Result, list[CurveRow]]]:
    """Return every cell there is, by rule, game and seed."""
    trees = [_read(path) for path in (results_dir / CELLS).glob("*.json")]
    pairs = [
        (Result(**tree["result"]), [CurveRow(**point) for point in tree["curve"]])
        for tree in trees
    ]
    return sorted(pairs, key=lambda pair: (pair[0].rule, pair[0].game, pair[0].seed))


def _read(path: Path) -> dict[str, Any]:
    try:
        tree: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return {name: tree[name] for name in ("result", "curve", "settings")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"results_dir: {path} is not a cell's file ({error})") from None


def _write(path: Path, text: str) -> None:
    rule_folder.write_file(path, text.encode())


def _flat(tree: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _show(flat: Mapping[str, object], field: str) -> str:
    return json.dumps(flat[field]) if field in flat else "nothing"
