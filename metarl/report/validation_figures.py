"""How well fresh agents learn by a rule while it is discovered: figures, table, words.

Draws and tells what `validations.py` read.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from metarl.report.figures import (
    CARD_WIDTH,
    COLORS,
    TEXT,
    Figure,
    Words,
    drawing,
)
from metarl.report.markup import count_of, number
from metarl.report.run_figures import finish
from metarl.report.scores import interval_of
from metarl.report.tables import Cell, DataTable, describe
from metarl.report.validations import Validations
from metarl.statistics import Estimate

_STEP = "meta_step"


def validation_figures(found: Validations, prefix: str = "") -> list[Figure]:
    """Return the interquartile mean over meta-steps, then every game.

    Args:
      found: of one run.
      prefix: of the files' names, where a page has several runs.
    """
    whole = [] if found.best is None else [_iqm(found, prefix)]
    return whole + [_game(found, game, prefix) for game in found.games]


def validation_table(found: Validations, prefix: str = "") -> DataTable:
    """Return a row for every validation."""
    best = found.best
    rows = []
    for point in found.points:
        marks = [
            word
            for word, is_it in (
                ("best", best is not None and point.meta_step == best.meta_step),
                ("kept as rule_best", point.meta_step == found.kept),
            )
            if is_it
        ]
        games: list[Cell] = [
            _mean(found, point.games[game]) if game in point.games else None
            for game in found.games
        ]
        rows.append((point.meta_step, point.iqm, *games, ", ".join(marks)))
    columns = (
        "meta-step",
        f"IQM of the {found.unit}",
        *(f"{game}: {found.game_unit}" for game in found.games),
        "note",
    )
    return DataTable(f"{prefix}validations", columns, tuple(rows))


def sentences(found: Validations) -> list[str]:
    """Return what the validations came to, in words."""
    damaged = [f"Left out: {what}." for what in found.damaged]
    if not found.points:
        return damaged
    steps = found.settings.get("env_steps")
    budget = "" if steps is None else f", {number(steps)} environment steps per agent"
    seeds = f", {count_of(found.num_seeds, 'seed')} each" if found.num_seeds else ""
    said = [
        "At each validation, fresh agents learned from scratch by the rule of that "
        f"meta-step: {count_of(len(found.games), 'game')} ({', '.join(found.games)})"
        f"{seeds}{budget}."
    ]
    best = found.best
    if best is not None and best.iqm is not None:
        said.append(
            f"Best of {count_of(len(found.points), 'validation')}: meta-step "
            f"{number(best.meta_step)}, with an IQM of {describe(best.iqm)} "
            f"({_unit(found)}). It was chosen by this score, which therefore flatters "
            "it: judge it on held-out games."
        )
    said += _about_kept(found)
    missing: dict[str, list[int]] = {}
    for point in found.points:
        if point.iqm is None:
            missing.setdefault(point.failure, []).append(point.meta_step)
    for failure, steps_of in missing.items():
        why = f": {failure}" if failure else ""
        said.append(f"No IQM at meta-step {_list(steps_of)}{why}.")
    if found.others:
        said.append(
            f"{count_of(found.others, 'earlier validation')} with other settings "
            "cannot be compared with these, and no figure shows them."
        )
    if found.unfinished:
        said.append(f"Not finished: the validation at {_list(found.unfinished)}.")
    if not found.has_seeds:
        where = "gone" if not damaged else "damaged"
        said.append(
            f"The folder RUN/validation is {where}: single seeds are not known."
        )
    return said + damaged


def _about_kept(found: Validations) -> list[str]:
    """Return which rule RUN/rule_best is."""
    if found.kept is None:
        return ["The run has no rule_best."]
    best = found.best
    at = f"rule_best is the rule of meta-step {number(found.kept)}"
    if best is None or best.meta_step == found.kept:
        return [f"{at}."]
    return [f"{at}, which is not the best of these."]


def _iqm(found: Validations, prefix: str) -> Figure:
    best = found.best
    assert best is not None
    assert best.iqm is not None
    known = [(p.meta_step, p.iqm) for p in found.points if p.iqm is not None]
    x = [step for step, _ in known]
    bands = any(e.low is not None for _, e in known)
    size = _size(found)
    words = Words(
        f"{prefix}validation",
        f"Validation: IQM of fresh agents ({size})",
        f"Interquartile mean of the {found.unit} of fresh agents that learn by the "
        "frozen rule; "
        + ("band: 95 % stratified bootstrap interval" if bands else "no intervals")
        + f"; star: the best, at meta-step {number(best.meta_step)}.",
        "; ".join(f"meta-step {number(at)}: {describe(e)}" for at, e in known),
        f"{size}; {'band: 95 % stratified bootstrap' if bands else 'no interval'}; "
        f"star: best, meta-step {number(best.meta_step)}",
    )
    with drawing(words, height=2.8) as drawn:
        axes = drawn.canvas.subplots()
        axes.fill_between(
            x,
            [e.value if e.low is None else e.low for _, e in known],
            [e.value if e.high is None else e.high for _, e in known],
            color=COLORS[0],
            alpha=0.15,
            linewidth=0,
        )
        values = [e.value for _, e in known]
        axes.plot(x, values, color=COLORS[0], marker="o", markersize=4)
        axes.plot(
            best.meta_step,
            best.iqm.value,
            marker="*",
            markersize=13,
            color=COLORS[1],
            markeredgecolor=TEXT,
            markeredgewidth=0.6,
        )
        finish(axes, _STEP, f"IQM, {found.unit}")
        axes.set_xlim(left=0)
        rows = [(at, e.value, e.low, e.high, at == best.meta_step) for at, e in known]
        drawn.numbers((_STEP, "iqm", "low", "high", "is_best"), rows)
    assert drawn.figure is not None
    return drawn.figure


def _game(found: Validations, game: str, prefix: str) -> Figure:
    """Return one game: the mean over seeds with its interval, and each seed."""
    points = [(p.meta_step, p.games[game]) for p in found.points if game in p.games]
    means = [(at, _mean(found, values)) for at, values in points]
    has_dots = any(len(values) > 1 for _, values in points)
    shown = "lines: 95 % bootstrap; dots: seeds" if has_dots else "no interval"
    seeds = f"{count_of(found.num_seeds, 'seed')}; " if found.num_seeds else ""
    words = Words(
        f"{prefix}eval_{game}",
        f"{game} (validation)",
        f"{found.game_unit.capitalize()} of fresh agents, mean over {seeds}{shown}.",
        "; ".join(f"meta-step {number(at)}: {describe(e)}" for at, e in means),
        f"fresh agents; {seeds}{shown}",
    )
    rows = [(game, at, x, e.value, e.low, e.high) for at, x, e in _rows(points, means)]
    with drawing(words, width=CARD_WIDTH, height=2.2) as drawn:
        axes = drawn.canvas.subplots()
        at = [step for step, _ in means]
        axes.plot(at, [e.value for _, e in means], color=COLORS[0])
        for step, e in means:
            if e.low is not None and e.high is not None:
                axes.vlines(step, e.low, e.high, COLORS[0], linewidth=2.5, alpha=0.45)
        axes.plot(
            [step for step, values in points for _ in values],
            np.concatenate([values for _, values in points]),
            marker="o",
            markersize=3.5,
            linestyle="none",
            color=COLORS[0],
            alpha=0.7,
        )
        finish(axes, _STEP, found.game_unit)
        axes.set_xlim(left=0)
        drawn.numbers(("game", _STEP, "value", "mean", "low", "high"), rows)
    assert drawn.figure is not None
    return drawn.figure


def _rows(
    points: Sequence[tuple[int, tuple[float, ...]]],
    means: Sequence[tuple[int, Estimate]],
) -> list[tuple[int, float, Estimate]]:
    """Return each seed's number with the mean it is in."""
    return [
        (at, value, estimate)
        for (at, values), (_, estimate) in zip(points, means, strict=True)
        for value in values
    ]


def _mean(found: Validations, values: Sequence[float]) -> Estimate:
    """Return the mean of a game's agents; from metrics alone it is known already."""
    return interval_of(values) if found.has_seeds else Estimate(values[0])


def _size(found: Validations) -> str:
    games = count_of(len(found.games), "game")
    if not found.num_seeds:
        return games
    return f"{games}, {count_of(found.num_seeds, 'seed')} each"


def _unit(found: Validations) -> str:
    best = found.best
    assert best is not None
    assert best.iqm is not None
    interval = "no interval" if best.iqm.low is None else "95 % interval in brackets"
    return f"{found.unit}; {interval}"


def _list(steps: Sequence[int]) -> str:
    return ", ".join(number(step) for step in steps)
