"""`--jobs i/n`: the part of a grid that one of several processes trains.

The split follows from the cells alone, not from what is finished or who else runs, so
that processes, machines and the tasks of a SLURM array need not know of each other.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Sequence

from metarl.errors import UserError
from metarl.evaluation.cells import Cell


@dataclasses.dataclass(frozen=True)
class Jobs:
    """Part `index` of `count`, counted from 1."""

    index: int = 1
    count: int = 1

    def __str__(self) -> str:
        """Return it as it is typed."""
        return f"{self.index}/{self.count}"


def parse_jobs(text: str) -> Jobs:
    """Return what `i/n` says.

    Raises:
      UserError: it is not of that form, or i is not from 1 to n.
    """
    match = re.fullmatch(r"\s*(\d{1,9})\s*/\s*(\d{1,9})\s*", text)
    index, count = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= index <= count:
        raise UserError(
            f"--jobs {text}: allowed is i/n with i from 1 to n, such as 1/4 "
            "(a SLURM array counts from 1 with --array=1-4)"
        )
    return Jobs(index, count)


def part(cells: Sequence[Cell], jobs: Jobs) -> list[Cell]:
    """Return the cells of one job, in order.

    Each cell goes to the job that has the fewest so far; of those to the one with the
    fewest of its rule, then of its game, since rules and games differ in their cost.
    """
    counts = [collections.Counter[str]() for _ in range(jobs.count)]
    mine = []
    for cell in cells:
        rule, game = f"rule {cell.rule.name}", f"game {cell.game}"
        job = min(
            range(jobs.count),
            key=lambda j: (counts[j]["all"], counts[j][rule], counts[j][game], j),
        )
        counts[job].update(("all", rule, game))
        if job == jobs.index - 1:
            mine.append(cell)
    return mine
