"""Which cells are trained side by side, in one program.

Host code: it looks at their shapes, and at how much memory is free.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from metarl.evaluation import memory
from metarl.evaluation.cells import Cell


def batches(cells: Sequence[Cell]) -> Iterator[list[Cell]]:
    """Yield cells that can share a program: `cells_at_once` of equal shapes.

    No padding: a last batch may be smaller.
    """
    groups: dict[tuple[object, ...], list[Cell]] = {}
    for cell in cells:
        shape = cell.spec
        key = (
            cell.rule.name,
            shape.observation_shape,
            shape.observation_dtype.str,
            shape.num_actions,
            cell.task.game.family,
            cell.settings,
        )
        groups.setdefault(key, []).append(cell)
    for members in groups.values():
        size = memory.cells_at_once(members)
        for start in range(0, len(members), size):
            yield members[start : start + size]
