"""The figures of an evaluation.

Draws what `compare.py` computed; reads no files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from metarl.report.compare import Aggregate, Curve, Group
from metarl.report.figures import (
    LINE,
    TEXT,
    Figure,
    Words,
    color,
    dashes,
    drawing,
    frames_axis,
    marker,
    short,
)
from metarl.report.markup import alike, count_of, number
from metarl.report.scores import Evaluation, Rule
from metarl.report.tables import describe
from metarl.statistics import Estimate, Profile

INTERVALS = "95 % stratified bootstrap intervals"
_REFERENCES = {"human": "human", "best": "best possible", "baseline": "baseline"}


def size_of(evaluation: Evaluation, group: Group) -> str:
    """Return how many games and seeds the aggregates of a group are of."""
    seeds = {
        len(evaluation.returns(rule, task))
        for rule in group.rules
        for task in group.common
    }
    low, high = min(seeds), max(seeds)
    games = count_of(len(group.common), "game")
    each = count_of(high, "seed")
    return f"{games}, {each if low == high else f'{low} to {each}'} each"


def iqm_bars(
    evaluation: Evaluation, group: Group, found: Sequence[Aggregate]
) -> Figure:
    """Return the IQM of every rule as bars with intervals."""
    size = size_of(evaluation, group)
    words = Words(
        f"iqm_{group.name}",
        f"Interquartile mean ({size})",
        f"IQM of the {_score(evaluation, group)}; lines are {INTERVALS}.",
        "; ".join(f"{a.rule}: {describe(a.iqm)}" for a in found),
        f"{size}; lines: {INTERVALS}",
    )
    rows = [(a.rule, a.iqm.value, a.iqm.low, a.iqm.high) for a in found]
    with drawing(words, height=0.75 + 0.42 * len(found)) as drawn:
        axes = drawn.canvas.subplots()
        for y, aggregate in enumerate(found):
            rule = evaluation.rule(aggregate.rule)
            bar(axes, y, aggregate.iqm, color(rule))
        name_rows(axes, [a.rule for a in found])
        _end_labels(axes, [a.iqm for a in found])
        axes.set_xlabel(f"IQM of the score ({_one(evaluation, group)})")
        drawn.numbers(("rule", "iqm", "low", "high"), rows)
    assert drawn.figure is not None
    return drawn.figure


def improvement_bars(
    evaluation: Evaluation, group: Group, found: dict[str, Estimate]
) -> Figure:
    """Return the probability of improvement over the baseline."""
    size = size_of(evaluation, group)
    words = Words(
        f"improvement_{group.name}",
        f"Probability of improvement ({size})",
        f"How likely a run is better than a run of {evaluation.baseline} on the same "
        f"game, mean over games; 0.5 is no difference; lines are {INTERVALS}.",
        "; ".join(f"{name}: {describe(e)}" for name, e in found.items()),
        f"{size}; lines: {INTERVALS}",
    )
    with drawing(words, height=0.75 + 0.42 * len(found)) as drawn:
        axes = drawn.canvas.subplots()
        axes.axvline(0.5, color=LINE, linewidth=1)
        for y, (name, estimate) in enumerate(found.items()):
            rule = evaluation.rule(name)
            if estimate.low is not None and estimate.high is not None:
                axes.hlines(y, estimate.low, estimate.high, color(rule), linewidth=3)
            axes.plot(
                estimate.value,
                y,
                marker(rule),
                color=color(rule),
                markersize=9,
                markeredgecolor="white",
            )
        name_rows(axes, list(found))
        axes.set_xlim(-0.03, 1.03)
        axes.set_xlabel(f"P(run is better than {short(str(evaluation.baseline))})")
        rows = [(name, e.value, e.low, e.high) for name, e in found.items()]
        drawn.numbers(("rule", "probability", "low", "high"), rows)
    assert drawn.figure is not None
    return drawn.figure


def profile_lines(
    evaluation: Evaluation, group: Group, found: dict[str, Profile]
) -> Figure:
    """Return the performance profiles."""
    size = size_of(evaluation, group)
    words = Words(
        f"profile_{group.name}",
        f"Performance profile ({size})",
        f"Part of the runs whose score is above τ; bands are pointwise {INTERVALS}. "
        "Higher is better.",
        "; ".join(
            f"{name}: above half in {number(_crossing(p))} of the scores shown"
            for name, p in found.items()
        ),
        f"{size}; bands: pointwise {INTERVALS}",
    )
    rows: list[tuple[object, ...]] = []
    with drawing(words, height=3.1) as drawn:
        axes = drawn.canvas.subplots()
        for name, profile in found.items():
            rule = evaluation.rule(name)
            x = profile.thresholds
            axes.step(
                x, profile.values, where="post", label=short(name), **line_style(rule)
            )
            lows, highs = profile.low, profile.high
            if lows is not None and highs is not None:
                axes.fill_between(
                    x, lows, highs, step="post", color=color(rule), alpha=0.15, lw=0
                )
            for i, tau in enumerate(x):
                low = None if lows is None else lows[i]
                high = None if highs is None else highs[i]
                rows.append((name, tau, profile.values[i], low, high))
        axes.set_ylim(-0.02, 1.02)
        axes.set_xlim(x[0], x[-1])
        axes.grid(axis="y")
        axes.set_xlabel(f"score τ ({_one(evaluation, group)})")
        axes.set_ylabel("part of the runs above τ")
        _legend(axes)
        drawn.numbers(("rule", "threshold", "part_above", "low", "high"), rows)
    assert drawn.figure is not None
    return drawn.figure


def efficiency_lines(
    evaluation: Evaluation, group: Group, found: Sequence[Curve]
) -> Figure:
    """Return the IQM while agents learn."""
    size = size_of(evaluation, group)
    words = Words(
        f"efficiency_{group.name}",
        f"Sample efficiency ({size})",
        "IQM of the score of the newest episodes while the agents learn "
        f"({_one(evaluation, group)}), up to the smallest budget; bands are pointwise "
        f"{INTERVALS}.",
        "; ".join(f"{c.rule}: {_ends(c)}" for c in found),
        f"{size}; bands: pointwise {INTERVALS}",
    )
    rows = [
        (c.rule, frames, e.value, e.low, e.high)
        for c in found
        for frames, e in zip(c.frames, c.estimates, strict=True)
        if e is not None
    ]
    with drawing(words, height=3.1) as drawn:
        axes = drawn.canvas.subplots()
        for curve in found:
            rule = evaluation.rule(curve.rule)
            known = [
                (x, e)
                for x, e in zip(curve.frames, curve.estimates, strict=True)
                if e is not None
            ]
            x = [at for at, _ in known]
            axes.plot(
                x,
                [e.value for _, e in known],
                label=short(curve.rule),
                **line_style(rule),
            )
            axes.fill_between(
                x,
                [e.value if e.low is None else e.low for _, e in known],
                [e.value if e.high is None else e.high for _, e in known],
                color=color(rule),
                alpha=0.15,
                linewidth=0,
            )
        frames_axis(axes)
        axes.set_ylabel("IQM of the score")
        _legend(axes)
        drawn.numbers(("rule", "frames", "iqm", "low", "high"), rows)
    assert drawn.figure is not None
    return drawn.figure


def bar(
    axes: Axes,
    y: int,
    estimate: Estimate,
    colour: str,
    *,
    start: float = 0.0,
    alpha: float = 0.85,
) -> None:
    """Draw a bar from ``start`` to an estimate, and its interval.

    Args:
      axes: where.
      y: its row.
      estimate: where it ends.
      colour: of it.
      start: what a random policy gets.
      alpha: of it.
    """
    axes.axvline(start, color=LINE, linewidth=0.8)
    axes.barh(
        y,
        estimate.value - start,
        left=start,
        height=0.62,
        color=colour,
        alpha=alpha,
        linewidth=0,
    )
    if estimate.low is not None and estimate.high is not None:
        axes.hlines(y, estimate.low, estimate.high, TEXT, linewidth=1.6)
        for end in (estimate.low, estimate.high):
            axes.vlines(end, y - 0.13, y + 0.13, TEXT, linewidth=1.6)


def name_rows(axes: Axes, names: Sequence[str], *, length: int = 22) -> None:
    """Give each row its name, the first on top."""
    axes.set_yticks(range(len(names)), [short(name, length) for name in names])
    axes.set_ylim(len(names) - 0.45, -0.55)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.grid(axis="x")


def _end_labels(axes: Axes, estimates: Sequence[Estimate]) -> None:
    """Write each value to the right of everything in its row."""
    ends = [max(0.0, e.value, e.value if e.high is None else e.high) for e in estimates]
    low, high = axes.get_xlim()
    axes.set_xlim(low, high + 0.16 * (high - low))
    labels = alike([e.value for e in estimates])
    for y, (label, end) in enumerate(zip(labels, ends, strict=True)):
        axes.annotate(
            label,
            (end, y),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontweight="bold",
        )


def line_style(rule: Rule) -> dict[str, Any]:
    """Return how the line of a rule looks."""
    return {"color": color(rule), "linestyle": dashes(rule)}


def _legend(axes: Axes) -> None:
    handles, _ = axes.get_legend_handles_labels()
    axes.figure.legend(
        handles=handles, loc="outside upper left", ncols=2, handlelength=1.6
    )


def _score(evaluation: Evaluation, group: Group) -> str:
    names = {
        "human": "human-normalised score",
        "best": "score between a random policy's return and the best possible",
        "baseline": f"score relative to {evaluation.baseline}",
    }
    return names[group.kind]


def _one(evaluation: Evaluation, group: Group) -> str:
    name = _REFERENCES[group.kind]
    if group.kind == "baseline":
        name = short(str(evaluation.baseline), 16)
    return f"0 = random, 1 = {name}"


def _crossing(profile: Profile) -> float:
    """Return the part of the thresholds at which half of the runs are above."""
    return float(np.mean(profile.values >= 0.5))


def _ends(curve: Curve) -> str:
    known = [e for e in curve.estimates if e is not None]
    return f"ends at {describe(known[-1])}" if known else "nothing to show"
