"""The tables that are merged from finished cells: results, curves, robustness.

A host module, above `results.py`.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from metarl.atomic_files import write_file
from metarl.console import say
from metarl.errors import UserError
from metarl.evaluation.agreement_records import MEASURES
from metarl.evaluation.cell_records import (
    CellRecord,
    CurveRow,
    Result,
)
from metarl.evaluation.results import (
    CELLS,
    by_cell,
    changing,
    read_record,
    write_tree,
)
from metarl.evaluation.robustness_records import COLUMNS as ROBUSTNESS_COLUMNS
from metarl.evaluation.robustness_records import mean_over

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes for the beginning of one, as OWASP lists them."""


def merge_cells(results_dir: Path) -> list[Result]:
    """Write `results.csv`, `.json`, `curves.csv`, `robustness.csv` from all cells.

    One process after another, so that no table is put in place of a newer one. A file
    that is not understood, as of a newer version, costs one line and its row.

    Returns:
      The rows, by rule, game and seed.
    """
    with changing(results_dir):
        return _merge(results_dir)


def _merge(results_dir: Path) -> list[Result]:
    records = by_cell(_readable(results_dir))
    rows = [dataclasses.asdict(record.result) for record in records]
    columns = [field.name for field in dataclasses.fields(Result)]
    write_file(results_dir / "results.csv", _csv(columns, rows))
    write_tree(results_dir / "results.json", rows)
    points = [point for record in records for point in _points(record)]
    columns = ["rule", "game", "seed"]
    columns += [field.name for field in dataclasses.fields(CurveRow)]
    columns += ["group_size", "peer", *MEASURES]
    write_file(results_dir / "curves.csv", _csv(columns, points))
    tested = [agent for record in records for agent in _tested(record)]
    if tested:
        columns = ["rule", "game", "seed", *ROBUSTNESS_COLUMNS, "group_size", "peer"]
        write_file(results_dir / "robustness.csv", _csv(columns, tested))
    return [record.result for record in records]


def _points(record: CellRecord) -> Iterator[dict[str, object]]:
    """Yield a cell's rows of `curves.csv`: the curve, and that of each peer."""
    curves = [record.curve, *(peer.curve for peer in record.peers)]
    agreement = {row.env_steps: row for row in record.agreement}
    for number, curve in enumerate(curves):
        for point in curve:
            agreed = None if number else agreement.get(point.env_steps)
            yield {
                **_whose(record, number),
                **dataclasses.asdict(point),
                **{name: getattr(agreed, name, None) for name in MEASURES},
            }


def _tested(record: CellRecord) -> Iterator[dict[str, object]]:
    """Yield a cell's rows of `robustness.csv`: its mean over peers, and each peer's."""
    agents = record.robustness
    mean = mean_over(agents)
    if mean is None:
        return
    rows = [mean, *agents] if len(agents) > 1 else [mean]
    for number, agent in enumerate(rows):
        yield {**_whose(record, number), **dataclasses.asdict(agent)}


def _whose(record: CellRecord, number: int) -> dict[str, object]:
    """Return what names a row: of a cell with 0, and of one of its peers from 1."""
    result = record.result
    return {
        "rule": result.rule,
        "game": result.game,
        "seed": result.seed,
        "group_size": result.group_size,
        "peer": number or None,
    }


def _readable(results_dir: Path) -> Iterator[CellRecord]:
    for path in (results_dir / CELLS).glob("*.json"):
        try:
            yield read_record(path)
        except UserError as error:
            _say_once(f"warning: {error}; the tables are without it")


@functools.cache
def _say_once(line: str) -> None:
    say(line)


def _csv(columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:  # None becomes an empty field
        writer.writerow({name: disarmed(value) for name, value in row.items()})
    return text.getvalue().encode()


def disarmed(value: object) -> object:
    """Return text that no spreadsheet runs; names come from folders and files."""
    is_text = isinstance(value, str) and value.startswith(_FORMULA)
    return f"'{value}" if is_text else value
