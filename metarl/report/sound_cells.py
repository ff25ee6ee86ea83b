"""Whether a stored cell is what an evaluation writes: numbers where those belong.

A leaf of `metarl/report/`. Files may have been written by hand, and an environment may
have paid what is no finite number.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metarl.errors import UserError
from metarl.evaluation.cell_records import (
    CellRecord,
    CurveRow,
    Result,
)

_GREATEST = 1e300
"""Returns above it cannot be averaged or drawn: sums and axes overflow."""
_TYPES: dict[type, dict[str, Any]] = {
    kind: typing.get_type_hints(kind) for kind in (Result, CurveRow)
}


def words_of(record: CellRecord) -> str:
    """Return what a message calls a cell."""
    result = record.result
    return f"{result.label} on {result.game} with seed {result.seed}"


def require_sound(path: Path, record: CellRecord) -> None:
    """Refuse a cell in which something is of another type than it must be.

    Args:
      path: of the results, for the message.
      record: one of its cells.

    Raises:
      UserError: something is, such as text in place of a return.
    """
    for part in (record.result, *record.curve):
        for name, hint in _TYPES[type(part)].items():
            value = getattr(part, name)
            if not _is_a(value, typing.get_args(hint) or (hint,)):
                is_text = hint is str
                raise UserError(
                    f"report: {path} has {words_of(record)}, whose {name} is "
                    f"{value!r} ({'text' if is_text else 'a number'} is needed)"
                )
    for name in ("settings", "about"):
        if not isinstance(getattr(record, name), Mapping):
            raise UserError(
                f"report: {path} has {words_of(record)}, whose {name} are no object"
            )


def without_infinities(record: CellRecord) -> CellRecord:
    """Return the cell with None in place of what is not finite, or as good as."""
    return dataclasses.replace(
        record,
        result=dataclasses.replace(record.result, **_cleared(record.result)),
        curve=tuple(dataclasses.replace(r, **_cleared(r)) for r in record.curve),
    )


def is_infinite(record: CellRecord) -> bool:
    """Return whether a cell has no return since that of an episode was not finite."""
    result = record.result
    return result.mean_return is None and (
        result.scored_episodes > 0
        or any(row.episodes > 0 and row.mean_return is None for row in record.curve)
    )


def _is_a(value: object, allowed: tuple[Any, ...]) -> bool:
    if isinstance(value, bool):
        return bool in allowed
    return isinstance(value, (*allowed, int) if float in allowed else allowed)


def _cleared(part: Result | CurveRow) -> dict[str, Any]:
    fields = (field.name for field in dataclasses.fields(part))
    return {
        name: None
        for name in fields
        if isinstance(value := getattr(part, name), float)
        and not abs(value) <= _GREATEST  # nor NaN
    }
