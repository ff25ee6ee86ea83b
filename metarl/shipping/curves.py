"""The curves of a meta-training as one figure of small panels, with its numbers.

Draws what `record.py` read, in the style of `metarl report`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from matplotlib.axes import Axes

from metarl.report.figures import COLORS, TEXT, Figure, Words, drawing, short
from metarl.report.markup import number
from metarl.report.run_figures import (
    draw_series,
    finish,
    games_of,
    rows_per_mean,
    series,
)
from metarl.report.validations import Validations
from metarl.shipping.record import Record
from metarl.statistics import FloatArray

WIDTH, PANEL_HEIGHT = 8.8, (2.3, 1.9)
"""Inches: twice the width of a figure of `metarl report`, as wide as a README; the
height of a single row of panels, and of each of several."""
MOST_GAMES = 10
"""Panels of games; the CSV has all."""
_STEP, _LOSS = "meta_step", "meta/loss"
_COLUMNS = 3

_Panel = tuple[str, str, Callable[[Axes], None]]
"""Title, what the y-axis is, and what draws the rest."""


def curves_figure(record: Record) -> Figure:
    """Return per-game returns, validation and meta-loss over meta-steps.

    Its rows have a column per key of `metrics.jsonl` that is drawn (docs/metrics.md).
    """
    run = record.run
    keys = {
        f"agents/{game}/episodic_return": game
        for game in games_of(run, "agents", "episodic_return")
    }
    found = {key: series(run, key) for key in [*keys, _LOSS]}
    found = {key: xy for key, xy in found.items() if xy[0].size}
    shown = [key for key in found if key in keys][:MOST_GAMES]
    panels = [_game_panel(keys[key], found[key]) for key in shown]
    validations = run.validations
    if validations is not None and validations.best is not None:
        panels.append(_validation_panel(validations, record))
    if _LOSS in found:
        panels.append(_loss_panel(found[_LOSS]))
    words = _words(record, found, has_all=len(shown) == len(set(found) & set(keys)))
    columns = min(_COLUMNS, len(panels)) or 1
    rows = math.ceil(len(panels) / columns) or 1
    height = 0.3 + PANEL_HEIGHT[rows > 1] * rows
    with drawing(words, width=WIDTH, height=height) as drawn:
        grid = drawn.canvas.subplots(rows, columns, squeeze=False)
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        for axes, (title, unit, draw) in zip(grid.flat, panels, strict=False):
            draw(axes)
            finish(axes, _STEP, unit)
            # Long names, such as MiniGrid's, are to fit above a third of the width.
            axes.set_title(short(title, 33), fontsize=10 if len(title) < 24 else 7.5)
            axes.set_xlim(left=0)
            if record.choice != "newest":
                axes.axvline(record.manifest.meta_steps, color=TEXT, lw=0.9, ls=":")
        drawn.numbers(*_numbers(record, found))
    assert drawn.figure is not None
    return drawn.figure


def _game_panel(game: str, xy: tuple[FloatArray, FloatArray]) -> _Panel:
    return game, "raw return", lambda axes: draw_series(axes, *xy, game, 0)


def _loss_panel(xy: tuple[FloatArray, FloatArray]) -> _Panel:
    return "Meta-loss", "loss", lambda axes: draw_series(axes, *xy, _LOSS, 0)


def _validation_panel(found: Validations, record: Record) -> _Panel:
    def draw(axes: Axes) -> None:
        known = [(p.meta_step, p.iqm) for p in found.points if p.iqm is not None]
        x = [step for step, _ in known]
        axes.fill_between(
            x,
            [e.value if e.low is None else e.low for _, e in known],
            [e.value if e.high is None else e.high for _, e in known],
            color=COLORS[2],
            alpha=0.15,
            linewidth=0,
        )
        values = [e.value for _, e in known]
        axes.plot(x, values, color=COLORS[2], marker="o", markersize=3.5)
        at = record.manifest.meta_steps
        if at in x:
            axes.plot(
                at,
                values[x.index(at)],
                marker="*",
                markersize=12,
                color=COLORS[1],
                markeredgecolor=TEXT,
                markeredgewidth=0.6,
            )

    unit = "raw return" if found.unit == "raw return" else "score"
    return "Validation, fresh agents", f"IQM, {unit}", draw


def _words(
    record: Record,
    found: Mapping[str, tuple[FloatArray, FloatArray]],
    *,
    has_all: bool,
) -> Words:
    """Return what is said of the figure."""
    mean = rows_per_mean(max((x.size for x, _ in found.values()), default=0))
    footer = f"one meta-training run, seed {record.config.seed}"
    said = [
        "Returns: of the episodes that agents of all ages finished since the row before"
    ]
    if mean:
        footer += f"; thin: every row, thick: means of {mean} rows"
    if (validations := record.run.validations) is not None:
        said.append(
            "validation: interquartile mean of fresh agents with a 95 % stratified "
            f"bootstrap interval, {validations.unit}"
        )
    if record.choice != "newest":
        footer += f"; dotted: this rule, meta-step {number(record.manifest.meta_steps)}"
    if not has_all:
        said.append(f"the first {MOST_GAMES} games, all others are in the CSV")
    ends = (
        f"{'meta-loss' if key == _LOSS else key.split('/')[1]} from "
        f"{number(float(y[0]))} to {number(float(y[-1]))}"
        for key, (_, y) in found.items()
    )
    title = f"Meta-training of {record.name}"
    return Words("curves", title, f"{'; '.join(said)}.", "; ".join(ends), footer)


def _numbers(
    record: Record, found: Mapping[str, tuple[FloatArray, FloatArray]]
) -> tuple[tuple[str, ...], list[tuple[object, ...]]]:
    """Return the columns and rows of the CSV: one per meta-step that has a number."""
    by_step: dict[float, dict[str, float | None]] = {}
    for key, (x, y) in found.items():
        for at, value in zip(x.tolist(), y.tolist(), strict=True):
            by_step.setdefault(at, {})[key] = value
    keys = list(found)
    if record.run.validations is not None:
        keys += ["eval/iqm", "eval/iqm_lo", "eval/iqm_hi"]
        for point in record.run.validations.points:
            if (e := point.iqm) is not None:
                ends = {"eval/iqm_lo": e.low, "eval/iqm_hi": e.high}
                row = by_step.setdefault(point.meta_step, {})
                row |= {"eval/iqm": e.value, **ends}
    env_steps = {row[_STEP]: row.get("global_step") for row in record.run.rows}
    rows: list[tuple[object, ...]] = [
        (
            _plain(at),
            _plain(env_steps.get(at)),
            *(_plain(by_step[at].get(key)) for key in keys),
        )
        for at in sorted(by_step)
    ]
    return (_STEP, "global_step", *keys), rows


def _plain(value: float | None) -> float | None:
    """Return a number in six digits, whole ones in all of theirs."""
    if value is None:
        return None
    return int(value) if value == int(value) else float(f"{value:.6g}")
