"""The figures of a training run: what its metrics were, meta-step by meta-step.

Draws the rows that `inputs.py` read; `docs/metrics.md` says what every key means.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, MaxNLocator

from metarl.report.figures import (
    CARD_WIDTH,
    COLORS,
    DASHES,
    WIDTH,
    Figure,
    Words,
    drawing,
    short,
)
from metarl.report.inputs import TrainingRun
from metarl.report.markup import number
from metarl.statistics import FloatArray

_SMOOTHED_FROM = 40  # rows; shorter series are shown as they are


@dataclasses.dataclass(frozen=True)
class Chart:
    """Some keys that belong on one pair of axes.

    Attributes:
      name: of the files.
      title: above.
      keys: of metrics.jsonl, with what each is called.
      unit: of the y-axis.
      caption: what it shows.
      is_log: whether the y-axis is logarithmic.
    """

    name: str
    title: str
    keys: Mapping[str, str]
    unit: str
    caption: str
    is_log: bool = False


CHARTS = (
    Chart(
        "meta_loss",
        "Outer objective",
        {
            "meta/loss": "meta-loss",
            "meta/pg_loss": "policy gradient",
            "meta/reg_loss": "regularisers",
        },
        "loss",
        "What the meta-parameters minimise, and its two parts.",
    ),
    Chart(
        "gradient_norms",
        "Gradient norms",
        {
            "meta/grad_norm": "meta-gradient",
            "meta/update_norm": "meta-update",
            "losses/grad_norm": "agents' gradient",
        },
        "global norm",
        "The meta-gradient before clipping, the step that the meta-parameters took, "
        "and the agents' own gradients (means over agents).",
        is_log=True,
    ),
    Chart(
        "rule_entropy",
        "What the rule outputs",
        {
            "meta/rule_entropy_y": "targets for y",
            "meta/rule_entropy_z": "targets for z",
            "meta/entropy": "agents' policies",
        },
        "entropy (nats)",
        "Entropy of the rule's targets, and of the policies of the updated agents.",
    ),
    Chart(
        "meta_distance",
        "Distance of the meta-parameters",
        {"meta/distance": "distance from the start"},
        "relative norm",
        "Global norm of the change since the start, relative to the norm there.",
    ),
    Chart(
        "meta_value",
        "Meta-value function",
        {"meta/value_loss": "loss"},
        "loss",
        "Loss of the value function that the outer objective uses.",
    ),
    Chart(
        "speed",
        "Speed",
        {"charts/SPS": "environment steps per second"},
        "steps / s",
        "Environment steps per second since the row before, everything included.",
    ),
)


def run_figures(run: TrainingRun, prefix: str = "") -> list[Figure]:
    """Return every figure that the metrics have numbers for, one per game last.

    Args:
      run: with at least one row.
      prefix: of the files' names, where a page has several runs.
    """
    found = []
    for chart in CHARTS:
        figure = _lines(run, chart, prefix)
        if figure is not None:
            found.append(figure)
    if (times := _stage_times(run, prefix)) is not None:
        found.insert(min(3, len(found)), times)
    return found + _games(run, prefix)


def series(run: TrainingRun, key: str) -> tuple[FloatArray, FloatArray]:
    """Return the steps and the finite values of a metric."""
    axis = step_key(run)
    pairs = [
        (row[axis], row[key])
        for row in run.rows
        if row.get(key) is not None and row.get(axis) is not None
    ]
    table = np.array(pairs, np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def step_key(run: TrainingRun) -> str:
    """Return the key of the x-axis."""
    has_meta = any(row.get("meta_step") is not None for row in run.rows)
    return "meta_step" if has_meta else "global_step"


def games_of(run: TrainingRun, family: str, metric: str) -> list[str]:
    """Return the games of keys such as `agents/{game}/episodic_return`."""
    start, end = f"{family}/", f"/{metric}"
    keys = dict.fromkeys(key for row in run.rows for key in row)
    return sorted(
        key[len(start) : -len(end)]
        for key in keys
        if key.startswith(start) and key.endswith(end) and len(key) > len(start + end)
    )


def _lines(run: TrainingRun, chart: Chart, prefix: str) -> Figure | None:
    """Return a chart; None where the run has none of its keys."""
    found = {label: series(run, key) for key, label in chart.keys.items()}
    found = {label: xy for label, xy in found.items() if xy[0].size}
    if not found:
        return None
    rows = max(x.size for x, _ in found.values())
    caption = chart.caption + _smoothing(rows)
    words = Words(
        prefix + chart.name, chart.title, caption, _alt(found), _footer(run, rows)
    )
    with drawing(words, height=2.8) as drawn:
        axes = drawn.canvas.subplots()
        for i, (label, (x, y)) in enumerate(found.items()):
            draw_series(axes, x, y, label, i)
        positive = all((y > 0).all() for _, y in found.values())
        finish(axes, step_key(run), chart.unit, is_log=chart.is_log and positive)
        if len(found) > 1:
            axes.figure.legend(loc="outside upper left", ncols=3, handlelength=1.4)
        drawn.numbers(("series", step_key(run), chart.unit), _rows(found))
    return drawn.figure


def _games(run: TrainingRun, prefix: str) -> list[Figure]:
    """Return the return of every game of the population, each on axes of its own."""
    figures = []
    for game in games_of(run, "agents", "episodic_return"):
        x, y = series(run, f"agents/{game}/episodic_return")
        if not x.size:
            continue
        words = Words(
            f"{prefix}agents_{game}",
            game,
            "Mean raw return of the episodes that the population finished since the "
            f"row before.{_smoothing(x.size)}",
            _alt({game: (x, y)}),
            _footer(run, x.size),
        )
        with drawing(words, width=CARD_WIDTH, height=2.1) as drawn:
            axes = drawn.canvas.subplots()
            draw_series(axes, x, y, game, 0)
            finish(axes, step_key(run), "raw return")
            drawn.numbers(("game", step_key(run), "return"), _rows({game: (x, y)}))
        assert drawn.figure is not None
        figures.append(drawn.figure)
    return figures


def _stage_times(run: TrainingRun, prefix: str) -> Figure | None:
    """Return the seconds that each stage took in all; None where none were logged."""
    totals = stage_times(run)
    whole = sum(totals.values())
    if not whole:
        return None
    words = Words(
        f"{prefix}stage_times",
        "Time per stage",
        "Seconds over all rows of the metrics, and their part. Stages may overlap.",
        "; ".join(f"{stage}: {number(s)} s" for stage, s in totals.items()),
        _footer(run, 0),
    )
    with drawing(words, width=WIDTH, height=0.8 + 0.34 * len(totals)) as drawn:
        axes = drawn.canvas.subplots()
        for y, seconds in enumerate(totals.values()):
            axes.barh(y, seconds, height=0.62, color=COLORS[0], linewidth=0)
            axes.annotate(
                f"{number(seconds)} s · {100 * seconds / whole:.0f} %",
                (seconds, y),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
            )
        axes.set_yticks(range(len(totals)), [short(stage) for stage in totals])
        axes.set_ylim(len(totals) - 0.45, -0.55)
        axes.set_xlim(0, 1.35 * max(totals.values()))
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_xlabel("seconds")
        drawn.numbers(("stage", "seconds"), list(totals.items()))
    return drawn.figure


def stage_times(run: TrainingRun) -> dict[str, float]:
    """Return the seconds of each stage in all, the longest first."""
    totals: dict[str, float] = {}
    for row in run.rows:
        for key, value in row.items():
            if key.startswith("stats/") and key.endswith("_time") and value is not None:
                stage = key.removeprefix("stats/").removesuffix("_time")
                totals[stage] = totals.get(stage, 0.0) + value
    return dict(sorted(totals.items(), key=lambda item: -item[1]))


def draw_series(
    axes: Axes, x: FloatArray, y: FloatArray, label: str, index: int
) -> None:
    """Draw one line: thin as it is, and thick smoothed where it is long.

    Args:
      axes: to draw on.
      x: steps.
      y: values.
      label: of the line.
      index: chooses its colour and dashes.
    """
    if x.size < _SMOOTHED_FROM:
        axes.plot(x, y, label=label, **_look(index), **_dot(x))
        return
    axes.plot(x, y, linewidth=0.6, alpha=0.35, color=COLORS[index % len(COLORS)])
    axes.plot(x, smooth(y), label=label, **_look(index))


def smooth(y: FloatArray) -> FloatArray:
    """Return centred means over a twentieth of the series, shorter at its ends."""
    half = max(1, y.size // 40)
    sums = np.concatenate([[0.0], np.cumsum(y)])
    at = np.arange(y.size)
    # As far to the left as to the right, so that a trend is not flattened at the ends.
    reach = np.minimum(half, np.minimum(at, y.size - 1 - at))
    result: FloatArray = (sums[at + reach + 1] - sums[at - reach]) / (2 * reach + 1)
    return result


def finish(axes: Axes, step: str, unit: str, *, is_log: bool = False) -> None:
    """Label the axes of a figure over the steps of a run.

    Args:
      axes: of the figure.
      step: key of the x-axis.
      unit: of the y-axis.
      is_log: whether the y-axis is logarithmic.
    """
    axes.set_xlabel({"meta_step": "meta-step", "global_step": "env steps"}[step])
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_ylabel(unit)
    axes.grid(axis="y")
    if is_log:
        axes.set_yscale("log")
        # Powers of ten as numbers: markup of mathematics is off, for names' sake.
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _look(index: int) -> dict[str, Any]:
    return {
        "color": COLORS[index % len(COLORS)],
        "linestyle": DASHES[index % len(DASHES)],
    }


def _dot(x: FloatArray) -> dict[str, Any]:
    """Return markers for series so short that a line alone may not be seen."""
    return {"marker": "o", "markersize": 4} if x.size < 10 else {}


def _smoothing(rows: int) -> str:
    if rows < _SMOOTHED_FROM:
        return ""
    return f" Thin: every row; thick: means over {rows_per_mean(rows)} rows."


def _footer(run: TrainingRun, rows: int) -> str:
    """Return what the lines are of; there is no interval over one run."""
    smoothed = f"; thick: means of {rows_per_mean(rows)} rows"
    seed = run.config.get("seed")
    return (
        f"one meta-training run{'' if seed is None else f', seed {seed}'}"
        f"{'' if rows < _SMOOTHED_FROM else smoothed}"
    )


def rows_per_mean(rows: int) -> int:
    """Return how many rows the thick line of ``rows`` averages; 0 where none is."""
    return 2 * max(1, rows // 40) + 1 if rows >= _SMOOTHED_FROM else 0


def _alt(found: Mapping[str, tuple[FloatArray, FloatArray]]) -> str:
    return "; ".join(
        f"{label}: from {number(float(y[0]))} to {number(float(y[-1]))}"
        for label, (_, y) in found.items()
    )


def _rows(
    found: Mapping[str, tuple[FloatArray, FloatArray]],
) -> Sequence[tuple[object, ...]]:
    return [
        (label, at, value)
        for label, (x, y) in found.items()
        for at, value in zip(x.tolist(), y.tolist(), strict=True)
    ]
