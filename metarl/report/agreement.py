"""How far the peers of groups agree while they learn, and how the lead is spread.

Between `groups.py`, which says who was ahead, and the page. A run is a group: its peers
learned from one another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from metarl.evaluation.agreement_records import MEASURES
from metarl.evaluation.cell_records import (
    CellRecord,
)
from metarl.report.compare import frames_of
from metarl.report.evaluation_figures import line_style
from metarl.report.figures import (
    Figure,
    Words,
    color,
    drawing,
    frames_axis,
    short,
)
from metarl.report.groups import groups_of, lead_in
from metarl.report.markup import count_of, number
from metarl.report.scores import Evaluation, Rule, Task
from metarl.report.tables import Cell, DataTable
from metarl.statistics import Estimate, Runs, interval, iqm

_AXES = {
    "greedy_agreement": "same preferred action",
    "js_divergence": "divergence (nats)",
}
_FITS_TWICE = 22
"""Letters of a name in a legend of two columns."""


def agreement_figures(evaluation: Evaluation) -> list[Figure]:
    """Return a figure for each game on which peers of groups were compared."""
    by_task: dict[Task, dict[str, list[CellRecord]]] = {}
    for (rule, task), cells in groups_of(evaluation):
        if compared := [cell for cell in cells if _known(cell, MEASURES[0])]:
            by_task.setdefault(task, {})[rule] = compared
    tasks = [task for task in evaluation.tasks if task in by_task]
    return [_figure(evaluation, task, by_task[task]) for task in tasks]


def lead_table(evaluation: Evaluation) -> DataTable:
    """Return a row for each rule and game that was learned in groups.

    Numbers are interquartile means over groups with their 95 % intervals; none where a
    group lacks one.
    """
    rows: list[tuple[Cell, ...]] = []
    for (rule, task), cells in groups_of(evaluation):
        leads = [lead_in(cell) for cell in cells]
        agreed = [[_last(cell, name) for cell in cells] for name in MEASURES]
        numbers: tuple[Sequence[float | None], ...] = (
            [_gap(cell) for cell in cells],
            [max(lead.shares, default=None) for lead in leads],
            [lead.shares[lead.last - 1] if lead.last else None for lead in leads],
            [lead.changes if lead.last else None for lead in leads],
            *agreed,
        )
        rows.append((rule, task.name, *map(_over_groups, numbers), len(cells)))
    columns = (
        "rule",
        "game",
        "best over worst peer",
        "time ahead of the longest leader",
        "time ahead of the last leader",
        "changes of who is ahead",
        "same preferred action at the end",
        "divergence at the end (nats)",
        "groups",
    )
    colors = {rule.name: color(rule) for rule in evaluation.rules}
    return DataTable("leads", columns, tuple(rows), colors)


def _gap(cell: CellRecord) -> float | None:
    """Return how far the best peer's final score is above the worst one's."""
    returns = [peer.mean_return for peer in cell.peers]
    known = [value for value in returns if value is not None]
    return max(known) - min(known) if len(known) == len(returns) else None


def _known(cell: CellRecord, name: str) -> list[tuple[float, float]]:
    """Return frames and values of a measure at the rows that have one."""
    frames = dict(
        zip((row.env_steps for row in cell.curve), frames_of(cell), strict=True)
    )
    return [
        (frames[row.env_steps], value)
        for row in cell.agreement
        if row.env_steps in frames and (value := getattr(row, name)) is not None
    ]


def _last(cell: CellRecord, name: str) -> float | None:
    known = _known(cell, name)
    return known[-1][1] if known else None


def _over_groups(values: Sequence[float | None]) -> Estimate | None:
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    return interval(iqm, Runs.of([known]))


def _figure(
    evaluation: Evaluation, task: Task, found: dict[str, list[CellRecord]]
) -> Figure:
    """Return what peers agree on in one game, of all its rules."""
    counts = sorted({len(cells) for cells in found.values()})
    size = count_of(counts[-1], "seed")
    size = size if len(counts) == 1 else f"{counts[0]} to {size}"
    words = Words(
        f"agreement_{task.name}",
        f"{task.name}: how far peers agree",
        "Mean over pairs of peers in the states that the group has just learned from. "
        "Above: how often both prefer the same action. Below: the Jensen-Shannon "
        "divergence of the policies by which they act; equal ones have 0, those that "
        "share no action 0.69. Thin: a group, thick: the mean of those of a rule; over "
        "the frames of the whole group.",
        "; ".join(f"{rule}: {_ends(cells)}" for rule, cells in found.items()),
        f"{size}; thin: a group of peers, thick: their mean",
    )
    rules = [rule for rule in evaluation.rules if rule.name in found]
    # Names of mutual rules are long: one beneath the other unless two fit.
    ncols = 2 if all(len(rule.name) <= _FITS_TWICE for rule in rules) else 1
    with drawing(words, height=3.7 + 0.2 * math.ceil(len(rules) / ncols)) as drawn:
        panels = drawn.canvas.subplots(len(MEASURES), 1, sharex=True)
        for axes, name in zip(panels, MEASURES, strict=True):
            for rule in rules:
                _lines(axes, rule, [_known(cell, name) for cell in found[rule.name]])
            axes.set_ylabel(_AXES[name])
            frames_axis(axes, "frames of the group" if axes is panels[-1] else "")
        panels[0].set_ylim(-0.03, 1.03)
        panels[-1].set_ylim(bottom=0)
        handles, _ = panels[0].get_legend_handles_labels()
        drawn.canvas.legend(
            handles=handles, loc="outside upper left", ncols=ncols, handlelength=1.6
        )
        rows = [row for rule, cells in found.items() for row in _rows(rule, cells)]
        drawn.numbers(
            ("rule", "seed", "frames", "env_steps", "peers_present", *MEASURES), rows
        )
    assert drawn.figure is not None
    return drawn.figure


def _lines(axes: Axes, rule: Rule, groups: Sequence[list[tuple[float, float]]]) -> None:
    """Draw each group thin, and the mean of all over what they have in common."""
    lines = [np.array(points).T for points in groups if points]
    style = line_style(rule)
    for x, y in lines:
        marker = "." if len(x) == 1 else None
        axes.plot(x, y, color=style["color"], linewidth=0.7, alpha=0.5, marker=marker)
    grid = np.linspace(max(x[0] for x, _ in lines), min(x[-1] for x, _ in lines), 60)
    mean = np.mean([np.interp(grid, x, y) for x, y in lines], axis=0)
    axes.plot(grid, mean, label=short(rule.name, 2 * _FITS_TWICE), **style)


def _rows(rule: str, cells: Sequence[CellRecord]) -> list[tuple[object, ...]]:
    """Return the numbers of the figure: a row per group and point."""
    rows: list[tuple[object, ...]] = []
    for cell in cells:
        points = {x.env_steps: x for x in cell.agreement}
        for row, frames in zip(cell.curve, frames_of(cell), strict=True):
            if (at := points.get(row.env_steps)) is None:
                continue
            values = [getattr(at, name) for name in MEASURES]
            about = (rule, cell.result.seed, frames, at.env_steps, at.peers_present)
            rows.append((*about, *values))
    return rows


def _ends(cells: Sequence[CellRecord]) -> str:
    last = [value for cell in cells if (value := _last(cell, MEASURES[0])) is not None]
    return f"same action in {number(float(np.mean(last)))} of the states at the end"
