"""The tolerances of a golden folder, and the comparison by them.

`tolerances.csv` and `tensor_tolerances.csv` stand beside the golden arrays, whose
README ("How to judge") defines both rules. Knows NumPy only: no rule, no agent.
"""

from __future__ import annotations

import csv
import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from metarl.errors import UserError

Arrays = Mapping[str, np.ndarray]

FLOOR_FACTOR = 10.0
"""An array may be this many times the float32 noise floor away."""

RELATIVE_EPSILON = 2.4e-7
"""The floor is at least this much of the largest magnitude (two float32 ulps)."""

TENSOR_TOLERANCE = 3e-3
"""Relative L2 of one gradient tensor that has no row of its own."""

WHOLE_TOLERANCE = {"d": 1.5e-3, "e": 5e-4}
"""Relative L2 of the whole meta-gradient, by part."""

WHOLE = "out/meta_grad (whole)"

PER_TENSOR = re.compile(
    r"(^|/)(grad|opt/mu|grad_agent_loss[^/]*|meta_grad|vjp_[^/]*)/(?P<tensor>.+)$"
)
"""Keys of arrays that the second rule, relative L2 per tensor, judges too."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """How far one array is from its golden counterpart, under one rule.

    Attributes:
      file: stem of the golden file.
      group: the array group it counts to: the key pattern of its tolerance.
      key: the array.
      multiple: its error as a multiple of what is allowed; NaN or infinite where
        no error is allowed or none could be computed.
      note: what is wrong, where that is not just the size of the error.
    """

    file: str
    group: str
    key: str
    multiple: float
    note: str = ""

    @property
    def agrees(self) -> bool:
        """Whether the error is allowed; a NaN never is."""
        return self.multiple <= 1.0


@dataclasses.dataclass(frozen=True)
class _Row:
    part: str
    pattern: str
    allowed: float


def _read_rows(path: Path, columns: Iterable[str]) -> list[dict[str, str]]:
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError:
        raise UserError(f"golden folder: {path} does not exist") from None
    for column in columns:
        if not rows or any(row.get(column) is None for row in rows):
            raise UserError(f"{path}: every row must have a column '{column}'")
    return rows


def _number(path: Path, row: dict[str, str], column: str) -> float:
    try:
        number = float(row[column])
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number >= 0):
        raise UserError(
            f"{path}: {column} is '{row[column]}' in a row of part '{row['part']}'; "
            "it must be a number of at least 0"
        )
    return number


def _matches(pattern: str, key: str) -> bool:
    """Whether ``key`` is one of ``pattern``: ``*`` is a number, at the end any name."""
    stem, any_name = (
        (pattern[:-2], True) if pattern.endswith("/*") else (pattern, False)
    )
    expression = re.escape(stem).replace(r"\*", r"\d+")
    return re.fullmatch(expression + ("/.+" if any_name else ""), key) is not None


@dataclasses.dataclass(frozen=True)
class Tolerances:
    """Both tables of a golden folder.

    The column `part` names the files whose stem starts with it.
    """

    arrays: tuple[_Row, ...]
    tensors: tuple[_Row, ...]

    @classmethod
    def read(cls, folder: Path) -> Tolerances:
        """Return the tables of ``folder``.

        Raises:
          UserError: a table is missing, empty or has a field that is no number.
        """
        path = folder / "tolerances.csv"
        arrays = []
        for row in _read_rows(path, ("part", "key", "error", "scale")):
            error = _number(path, row, "error")
            floor = max(error, RELATIVE_EPSILON * _number(path, row, "scale"))
            arrays.append(_Row(row["part"], row["key"], FLOOR_FACTOR * floor))
        path = folder / "tensor_tolerances.csv"
        tensors = [
            _Row(row["part"], row["tensor"], _number(path, row, "tolerance_rel_l2"))
            for row in _read_rows(path, ("part", "tensor", "tolerance_rel_l2"))
        ]
        return cls(tuple(arrays), tuple(tensors))

    def of_array(self, stem: str, key: str) -> tuple[str, float]:
        """Return the pattern and the largest allowed error of an array.

        Raises:
          UserError: the table has no row for it.
        """
        rows = [
            row
            for row in self.arrays
            if f"{stem}_".startswith(f"{row.part}_") and _matches(row.pattern, key)
        ]
        if not rows:
            raise UserError(f"tolerances.csv: no row for array '{key}' of {stem}")
        row = min(rows, key=lambda row: row.allowed)
        return row.pattern, row.allowed

    def of_tensor(self, stem: str, key: str) -> float | None:
        """Return the allowed relative L2; None where only the first rule counts."""
        match = PER_TENSOR.search(key)
        if match is None:
            return None
        tensor = match["tensor"].removeprefix("meta_params/")
        if product := re.match(r"out/(vjp_[^/]+)/", key):
            # Part f's table has one section per product: f_vjp_targets, f_vjp_state.
            stem = stem.replace("f_vjp_", f"f_{product[1]}_", 1)
        rows = [
            row.allowed
            for row in self.tensors
            if f"{stem}_".startswith(f"{row.part}_") and row.pattern == tensor
        ]
        return min(rows, default=TENSOR_TOLERANCE)


def _multiple(error: float, allowed: float) -> float:
    if error == 0:
        return 0.0
    return error / allowed if allowed > 0 else math.inf


def _relative_l2(golden: np.ndarray, ours: np.ndarray) -> float:
    """Return ``|ours - golden| / |golden|``; infinite where a zero is not met."""
    error, norm = float(np.linalg.norm(ours - golden)), float(np.linalg.norm(golden))
    if norm == 0:
        return 0.0 if error == 0 else math.inf
    return error / norm


def _compare_array(
    stem: str, key: str, golden: np.ndarray, ours: np.ndarray, limits: Tolerances
) -> list[Finding]:
    pattern, allowed = limits.of_array(stem, key)
    if golden.shape != ours.shape:
        note = f"shape {list(ours.shape)}, golden {list(golden.shape)}"
        return [Finding(stem, pattern, key, math.inf, note)]
    for name, array in (("golden array", golden), ("array", ours)):
        if not np.isfinite(array).all():
            return [Finding(stem, pattern, key, math.nan, f"{name} is not finite")]
    error = float(np.max(np.abs(ours - golden), initial=0.0))
    findings = [Finding(stem, pattern, key, _multiple(error, allowed))]
    tolerance = limits.of_tensor(stem, key)
    if tolerance is not None:
        zero = not golden.any()
        note = "must be exactly zero" if zero and ours.any() else ""
        relative = _multiple(_relative_l2(golden, ours), tolerance)
        group = f"{pattern} (relative L2)"
        findings.append(Finding(stem, group, key, relative, note))
    return findings


def compare(
    stem: str, golden: Arrays, ours: Arrays, limits: Tolerances
) -> list[Finding]:
    """Return one finding per golden array and rule, by "How to judge".

    Args:
      stem: name of the golden file, without its ending.
      golden: every output stored in the file, by key.
      ours: what this build computes, by the same keys.
      limits: the folder's tables.

    Raises:
      UserError: an array has no tolerance.
    """
    findings: list[Finding] = []
    pairs: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for key, value in golden.items():
        if key not in ours:
            pattern, _ = limits.of_array(stem, key)
            note = "this build computes no such array"
            findings.append(Finding(stem, pattern, key, math.inf, note))
            continue
        pairs[key] = np.asarray(value, np.float64), np.asarray(ours[key], np.float64)
        findings += _compare_array(stem, key, *pairs[key], limits)
    whole = [pair for key, pair in pairs.items() if key.startswith("out/meta_grad/")]
    if whole and all(a.shape == b.shape for a, b in whole):
        flat = [
            np.concatenate([x.ravel() for x in side])
            for side in zip(*whole, strict=True)
        ]
        relative = _relative_l2(*flat) / WHOLE_TOLERANCE[stem[0]]
        findings.append(Finding(stem, WHOLE, "out/meta_grad", relative))
    return findings
