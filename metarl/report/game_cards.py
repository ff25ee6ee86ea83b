"""One game at a glance: curves of all seeds above, final returns below.

Draws what `scores.py` holds; reads no files.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from metarl.evaluation.cell_records import (
    CellRecord,
)
from metarl.report.compare import frames_of, random_of
from metarl.report.evaluation_figures import bar, line_style, name_rows
from metarl.report.figures import (
    CARD_WIDTH,
    RANDOM_COLOR,
    TEXT,
    Figure,
    Words,
    color,
    drawing,
    frames_axis,
    marker,
)
from metarl.report.markup import count_of
from metarl.report.scores import Evaluation, Rule, Task, interval_of
from metarl.report.tables import describe


def game_card(evaluation: Evaluation, task: Task, note: str) -> Figure:
    """Return one game: curves of all seeds, and final returns with seeds as dots.

    Args:
      evaluation: all cells.
      task: the game.
      note: after its name, such as that it is uninformative.
    """
    rules = [r for r in evaluation.rules if (r.name, task) in evaluation.cells]
    finals = {
        rule.name: interval_of(evaluation.returns(rule.name, task))
        for rule in rules
        if evaluation.returns(rule.name, task)
    }
    seeds = sorted({len(evaluation.cells[rule.name, task]) for rule in rules})
    size = count_of(seeds[-1], "seed")
    size = size if len(seeds) == 1 else f"{seeds[0]} to {size}"
    random = random_of(evaluation, task)
    foot, floor = ("0", 0.0) if random is None else ("random", random.value)
    words = Words(
        f"game_{task.name}",
        f"{task.name}, {size}{note}",
        "Above: raw return of episodes while the agents learn; thin: a seed, thick: "
        f"their mean. Below: raw final return; bars: from {foot} to the mean over "
        "seeds; lines: 95 % bootstrap intervals of that mean; dots: seeds.",
        "; ".join(f"{name}: {describe(e)}" for name, e in finals.items())
        or "no final return",
        f"{size}; lines: 95 % bootstrap intervals of the mean; dots: seeds",
    )
    bars = 0.35 + 0.27 * max(1, len(finals))
    height = 2.2 + bars
    with drawing(words, width=CARD_WIDTH, height=height) as drawn:
        above, below = drawn.canvas.subplots(2, 1, height_ratios=[1.65, bars])
        rows: list[tuple[object, ...]] = []
        for rule in rules:
            rows += _card_curves(above, evaluation, rule, task)
        frames_axis(above)
        above.set_xlim(right=max(c.result.frames for c in _cells(evaluation, task)))
        above.set_ylabel("raw return")
        if not finals:
            below.text(
                0.5, 0.5, "no final return", ha="center", transform=below.transAxes
            )
        for y, name in enumerate(finals):
            rule = evaluation.rule(name)
            returns = evaluation.returns(name, task)
            bar(below, y, finals[name], color(rule), start=floor, alpha=0.35)
            below.plot(
                returns,
                np.full(len(returns), y),
                marker(rule),
                color=color(rule),
                markersize=4.5,
                alpha=0.85,
            )
        below.use_sticky_edges = False  # dots at the foot of a bar stay whole
        below.margins(x=0.05)
        name_rows(below, list(finals), length=18)
        _references(evaluation, task, above, below)
        below.set_xlabel("raw final return")
        drawn.numbers(("rule", "seed", "frames", "return"), rows)
    assert drawn.figure is not None
    return drawn.figure


def _cells(evaluation: Evaluation, task: Task) -> list[CellRecord]:
    return [
        cell
        for rule in evaluation.rules
        for cell in evaluation.cells.get((rule.name, task), ())
    ]


def _card_curves(
    axes: Axes, evaluation: Evaluation, rule: Rule, task: Task
) -> list[tuple[object, ...]]:
    """Draw each seed and their mean; return the numbers."""
    rows: list[tuple[object, ...]] = []
    lines = []
    for cell in evaluation.cells[rule.name, task]:
        points = [
            (x, row.mean_return)
            for x, row in zip(frames_of(cell), cell.curve, strict=True)
            if row.mean_return is not None
        ]
        rows += [(rule.name, cell.result.seed, x, y) for x, y in points]
        if points:
            lines.append(np.array(points).T)
            style: dict[str, Any] = {
                "linewidth": 0.7,
                "alpha": 0.5,
                "color": color(rule),
            }
            if len(points) == 1:
                style |= {"marker": ".", "markersize": 3}
            axes.plot(*lines[-1], **style)
    if lines:
        start = max(x[0] for x, _ in lines)
        end = min(x[-1] for x, _ in lines)
        grid = np.linspace(start, end, 60)
        mean = np.mean([np.interp(grid, x, y) for x, y in lines], axis=0)
        axes.plot(grid, mean, **line_style(rule))
    return rows


def _references(evaluation: Evaluation, task: Task, above: Axes, below: Axes) -> None:
    """Mark what a random policy gets, and what a score of 1 is where that is near."""
    scale = evaluation.scales[task]
    random = random_of(evaluation, task)
    if random is not None:
        style: dict[str, Any] = {"color": RANDOM_COLOR, "linewidth": 1.2}
        above.axhline(random.value, linestyle=":", **style)
        below.axvline(random.value, linestyle=":", **style)
    low, high = below.get_xlim()
    reference = scale.reference
    if reference is not None and low <= reference <= high + 0.5 * (high - low):
        below.axvline(reference, color=TEXT, linewidth=0.8, linestyle=(0, (4, 3)))
