"""`metrics.jsonl`: a row per line, on disk at once; a resumed run writes over its end.

Host code and a leaf; knows nothing of W&B.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from metarl.atomic_files import write_file

METRICS = "metrics.jsonl"


@dataclasses.dataclass(frozen=True)
class Position:
    """Where a resumed run goes on: rows after it are dropped and written anew.

    Attributes:
      global_step: environment steps so far.
      meta_step: meta-steps so far, where rows have them.
      redone: families of keys whose rows at this very meta-step are dropped too.
    """

    global_step: int
    meta_step: int | None = None
    redone: tuple[str, ...] = ()


class MetricsFile:
    """The open `metrics.jsonl` of a run."""

    def __init__(self, run_dir: Path, resume: Position | None) -> None:
        """Open it in ``run_dir``.

        Args:
          run_dir: of the run.
          resume: later rows are dropped; None: all of them.
        """
        path = run_dir / METRICS
        _drop_rows_after(path, resume)
        self._file = path.open("a", encoding="utf-8")

    def write(
        self, steps: Mapping[str, int], metrics: Mapping[str, float]
    ) -> dict[str, float | None]:
        """Write one row and return it; what is not finite is None.

        Args:
          steps: that the row belongs to.
          metrics: scalars by key.
        """
        row: dict[str, float | None] = dict(steps)
        row |= {key: _plain(value) for key, value in metrics.items()}
        self._file.write(json.dumps(row, allow_nan=False) + "\n")
        self._file.flush()
        return row

    def close(self) -> None:
        """Close it; safe to call twice."""
        self._file.close()


def _plain(value: float) -> float | int | None:
    """Return ``value`` as JSON can hold it; null where it is not finite."""
    if isinstance(value, int):
        return int(value)
    number = float(value)
    return number if math.isfinite(number) else None


def _drop_rows_after(path: Path, position: Position | None) -> None:
    """Keep the rows of ``path`` up to ``position``, and no half row."""
    if not path.exists():
        return
    kept = [] if position is None else [*_rows_until(path, position)]
    write_file(path, b"".join(kept))


def _rows_until(path: Path, position: Position) -> Iterator[bytes]:
    with path.open("rb") as file:
        for line in file:
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue  # the writer was killed within this row
            if not line.endswith(b"\n"):
                continue
            if position.meta_step is not None and "meta_step" in row:
                families = {key.partition("/")[0] for key in row}
                is_redone = not families.isdisjoint(position.redone)
                is_kept = row["meta_step"] + is_redone <= position.meta_step
            else:
                is_kept = row.get("global_step", 0) <= position.global_step
            if is_kept:
                yield line
