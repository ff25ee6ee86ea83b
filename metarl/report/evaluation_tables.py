"""The tables of an evaluation: scores, what was not run, settings, origin.

Computes rows from `scores.py` and `compare.py`; draws nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

from metarl.envs.suites import SUITES
from metarl.evaluation.cell_records import (
    CellRecord,
)
from metarl.evaluation.results import (
    flatten,
)
from metarl.report import compare
from metarl.report.compare import Aggregate, Group
from metarl.report.figures import color
from metarl.report.scores import (
    WANTED_EPISODES,
    Evaluation,
    Kind,
    Task,
    interval_of,
    rule_name,
    task_of,
)
from metarl.report.sound_cells import is_infinite
from metarl.report.tables import Cell, DataTable
from metarl.statistics import Estimate, Runs, improvement_interval

SCORE_WORDS: Mapping[Kind, str] = {
    "human": "human",
    "best": "best",
    "baseline": "baseline",
    "raw": "none",
}


def colors(evaluation: Evaluation) -> dict[str, str]:
    """Return the colour of each rule, and of each recipe, by its name."""
    every = (*evaluation.recipes, *evaluation.rules)
    return {rule.name: color(rule) for rule in every}


def aggregate_table(
    evaluation: Evaluation,
    group: Group,
    found: Sequence[Aggregate],
    improvements: Mapping[str, Estimate],
) -> DataTable:
    """Return all aggregates of a group.

    With the IQM of all games, uninformative ones too, where some are left out.

    Args:
      evaluation: all cells.
      group: with scores.
      found: its aggregates.
      improvements: over the baseline, by rule.
    """
    every = [
        task
        for task in group.tasks
        if all(compare.is_scored(evaluation, a.rule, task) for a in found)
    ]
    has_more = len(every) > len(group.common)
    whole = (
        {a.rule: a.iqm for a in compare.aggregates(evaluation, group, every)}
        if has_more
        else {}
    )
    columns = ["rule", "IQM", "median", "mean", "optimality gap"]
    columns += ["P(improvement)"] if improvements else []
    columns += [f"IQM of all {len(every)} games"] if has_more else []
    rows = []
    for a in found:
        row: list[Cell] = [a.rule, a.iqm, a.median, a.mean, a.optimality_gap]
        row += [improvements.get(a.rule)] if improvements else []
        row += [whole[a.rule]] if has_more else []
        rows.append(tuple(row))
    name = f"aggregates-{group.name}"
    return DataTable(name, tuple(columns), tuple(rows), colors(evaluation))


def score_table(evaluation: Evaluation) -> DataTable:
    """Return a row for every rule and game.

    A rule has no score on a game where some seed finished no episode; the return that
    is shown is then of the other seeds.
    """
    columns = (
        "game",
        "rule",
        "status",
        "return",
        "score",
        "score of 1 is",
        "P(better than baseline)",
        "return of random",
        "return of score 1",
        "evidence",
        "seeds",
        "frames per seed",
        "scored episodes",
        "learning rate",
        "rate tuned",
    )
    rows = []
    for task in evaluation.tasks:
        scale = evaluation.scales[task]
        word = compare.evidence(evaluation, task)
        for rule in evaluation.rules:
            cells = evaluation.cells.get((rule.name, task))
            if not cells:
                continue
            returns = evaluation.returns(rule.name, task)
            result, status = cells[0].result, evaluation.status(rule.name, task)
            is_scored = compare.is_scored(evaluation, rule.name, task)
            has_score = is_scored and scale.kind != "raw"
            rows.append(
                (
                    task.name,
                    rule.name,
                    compare.STATUS_WORDS.get(status, status),
                    interval_of(returns) if returns else None,
                    interval_of(evaluation.scores(rule.name, task))
                    if has_score
                    else None,
                    SCORE_WORDS[scale.kind],
                    _improvement(evaluation, rule.name, task),
                    scale.random,
                    scale.reference,
                    word,
                    len(cells) if is_scored else f"{len(returns)} of {len(cells)}",
                    max(cell.result.frames for cell in cells),
                    sum(cell.result.scored_episodes for cell in cells),
                    None if rule.is_random else result.learning_rate,
                    None if rule.is_random else result.tuned,
                )
            )
    return DataTable("scores", columns, tuple(rows), colors(evaluation))


def missing_table(evaluation: Evaluation) -> DataTable:
    """Return the cells of the grid of rules, games and seeds that are not there."""
    rows = [
        (name, task.name, len(seeds), ", ".join(map(str, seeds)))
        for (name, task), seeds in compare.missing_seeds(evaluation).items()
    ]
    columns = ("rule", "game", "cells not run", "seeds")
    return DataTable("not-run", columns, tuple(rows), colors(evaluation))


def thin_table(evaluation: Evaluation) -> DataTable:
    """Return the cells whose score is of fewer episodes than is usual."""
    rows = [
        (
            rule_name(record),
            task_of(record).name,
            record.result.seed,
            record.result.scored_episodes,
            _why_no_return(record),
        )
        for record in evaluation.records()
        if record.result.scored_episodes < WANTED_EPISODES
    ]
    columns = ("rule", "game", "seed", "scored episodes", "note")
    return DataTable("few-episodes", columns, tuple(rows), colors(evaluation))


def games_not_run(evaluation: Evaluation) -> dict[str, list[str]]:
    """Return the games of each suite that was evaluated, of which there is no cell."""
    cells = list(evaluation.records())
    played = {cell.result.game for cell in cells}
    names = dict.fromkeys(str(cell.about.get("suite") or "") for cell in cells)
    found = {
        name: [game for game in SUITES[name].games if game not in played]
        for name in names
        if name in SUITES
    }
    return {name: games for name, games in found.items() if games}


def tuning_table(evaluation: Evaluation) -> DataTable:
    """Return the learning rates that were tried, by rule; empty where none were."""
    rows: dict[tuple[Cell, ...], None] = {}
    for record in evaluation.records():
        tuned = record.settings.get("tuning")
        if not isinstance(tuned, Mapping):
            continue
        by = "rank among the rates" if tuned.get("score") == "rank" else "score"
        rates = tuned.get("learning_rates", ())
        scores = record.about.get("tuning_scores") or [None] * len(rates)
        for rate, score in zip(rates, scores, strict=False):
            row = (
                rule_name(record),
                rate,
                score,
                by,
                ", ".join(map(str, tuned.get("games", ()))),
                len(tuned.get("seeds", ())),
                tuned.get("env_steps"),
                rate == tuned.get("chosen"),
            )
            rows[row] = None
    columns = (
        "rule",
        "learning rate",
        "mean on the validation games",
        "mean of",
        "validation games",
        "seeds",
        "env steps",
        "chosen",
    )
    return DataTable("tuning", columns, tuple(rows), colors(evaluation))


def raw_table(evaluation: Evaluation) -> DataTable:
    """Return the games that have no score, and why."""
    rows = []
    for task in evaluation.tasks:
        if not any(evaluation.returns(rule.name, task) for rule in evaluation.rules):
            is_infinite = any(
                evaluation.has_infinite(rule.name, task) for rule in evaluation.rules
            )
            why = "has a finite return" if is_infinite else "finished an episode"
            rows.append((task.name, f"no agent {why}"))
        elif evaluation.scales[task].kind == "raw":
            rows.append((task.name, evaluation.scales[task].why_raw))
    return DataTable("no-score", ("game", "why there is no score"), tuple(rows))


def settings_tables(evaluation: Evaluation) -> tuple[DataTable, DataTable]:
    """Return the settings that all cells share, and those that differ, by rule."""
    by_pair = {
        key: {k: _show(v) for k, v in flatten(cells[0].settings).items()}
        for key, cells in evaluation.cells.items()
    }
    names = list(dict.fromkeys(name for found in by_pair.values() for name in found))
    shared = {
        name: values.pop()
        for name in names
        if len(values := {found.get(name, "–") for found in by_pair.values()}) == 1
    }
    same = DataTable("settings-shared", ("setting", "value"), tuple(shared.items()))
    rows: dict[tuple[str, str, str], list[str]] = {}
    for (rule, task), found in by_pair.items():
        for name in names:
            if name not in shared and name in found:
                rows.setdefault((rule, name, found[name]), []).append(task.name)
    counts = {
        rule.name: sum(name == rule.name for name, _ in by_pair)
        for rule in evaluation.rules
    }
    differing = tuple(
        (rule, name, value, "all" if len(g) == counts[rule] else ", ".join(g))
        for (rule, name, value), g in rows.items()
    )
    columns = ("rule", "setting", "value", "games")
    different = DataTable("settings", columns, differing, colors(evaluation))
    return same, different


def origin_table(evaluation: Evaluation) -> DataTable:
    """Return where each rule's cells come from: commit, machine, hours."""
    rows = []
    for rule in evaluation.rules:
        cells = list(evaluation.records_of(rule.name))
        rows.append(
            (
                rule.name,
                rule.kind,
                rule.sha256[:12] or "–",
                len(cells),
                hours(cells),
                sum(cell.result.frames for cell in cells),
                _distinct(_hardware(cell) for cell in cells),
                _distinct(_commit(cell) for cell in cells),
            )
        )
    columns = (
        "rule",
        "kind",
        "sha256",
        "cells",
        "machine hours",
        "frames",
        "hardware",
        "commit",
    )
    return DataTable("origin", columns, tuple(rows), colors(evaluation))


def _commit(cell: CellRecord) -> str:
    commit = str(cell.about.get("commit") or "–")[:12]
    return f"{commit} + changes" if cell.about.get("modified") else commit


def versions_table(evaluation: Evaluation) -> DataTable:
    """Return the versions of Python and packages."""
    found: dict[str, dict[str, None]] = {}
    for record in evaluation.records():
        versions = record.about.get("versions")
        if isinstance(versions, Mapping):
            for name, version in versions.items():
                found.setdefault(str(name), {})[str(version)] = None
    rows = tuple((name, ", ".join(versions)) for name, versions in found.items())
    return DataTable("versions", ("package", "version"), rows)


def hours(cells: Sequence[CellRecord]) -> float | None:
    """Return the hours of machine time of some cells; None where unknown."""
    known = [c.result.wall_s for c in cells if c.result.wall_s is not None]
    return sum(known) / 3600 if known else None


def _why_no_return(cell: CellRecord) -> str:
    """Return why a cell has none; empty where it has one."""
    if cell.result.mean_return is not None:
        return ""
    return "the return is not finite" if is_infinite(cell) else "no episode finished"


def _improvement(evaluation: Evaluation, rule: str, task: Task) -> Estimate | None:
    baseline = evaluation.baseline
    if baseline is None or rule == baseline:
        return None
    if not all(compare.is_scored(evaluation, name, task) for name in (rule, baseline)):
        return None
    ours, theirs = evaluation.returns(rule, task), evaluation.returns(baseline, task)
    return improvement_interval(Runs.of([ours]), Runs.of([theirs]))


def _hardware(cell: CellRecord) -> str:
    """Return what a cell was computed on, as far as it says."""
    machine = cell.about.get("machine")
    told = machine.values() if isinstance(machine, Mapping) else [machine]
    parts = [cell.about.get("device"), *told]
    return ", ".join(str(part) for part in parts if part) or "–"


def _distinct(values: Iterable[object]) -> str:
    """Return each value once, in order."""
    return ", ".join(dict.fromkeys(str(value or "–") for value in values))


def _show(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
