"""What a reader of an evaluation should know before its numbers, and what they say.

Between `compare.py` and the page; sentences alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from metarl.evaluation.cell_records import (
    CellRecord,
)
from metarl.report import compare, evaluation_tables
from metarl.report.compare import Aggregate, Group
from metarl.report.markup import count_of, number
from metarl.report.scores import Evaluation, lies_above, task_of
from metarl.report.sound_cells import is_infinite
from metarl.report.tables import describe
from metarl.rule_files.manifest import game_identity

FEW_SEEDS = 5
TRIES = "tuning"
"""The folder of a grid's tries, in that of the results."""


def cautions(evaluation: Evaluation) -> list[str]:
    """Return what a reader should know before the numbers."""
    found = [
        *_about_budgets(evaluation),
        *_about_games(evaluation),
        *_about_tuning(evaluation),
        *_about_seeds(evaluation),
        *_about_origin(evaluation),
    ]
    missing = sum(len(s) for s in compare.missing_seeds(evaluation).values())
    if missing:
        found.append(
            "Not run, of the rules, games and seeds that are in these results: "
            f"{count_of(missing, 'cell')}."
        )
    thin = len(evaluation_tables.thin_table(evaluation).rows)
    if thin:
        found.append(f"Scored on fewer than 100 episodes: {count_of(thin, 'cell')}.")
    diverged = _names_of(
        cell
        for cell in evaluation.records()
        if cell.about.get("diverged_at_env_steps") is not None
    )
    if diverged:
        found.append(
            f"Losses became infinite or NaN in {count_of(len(diverged), 'cell')}: "
            f"{', '.join(diverged)}."
        )
    infinite = _names_of(filter(is_infinite, evaluation.records()))
    if infinite:
        found.append(
            f"The return is not finite in {count_of(len(infinite), 'cell')}, whose "
            f"game is in no aggregate: {', '.join(infinite)}."
        )
    if evaluation.baseline is None:
        found.append(
            "There is no baseline rule in these results (--baseline names one)."
        )
    return found


def finding(found: Sequence[Aggregate]) -> str:
    """Return which rule has the highest IQM, and from which others it is apart."""
    best, *others = found
    text = f"Highest IQM: {best.rule}, {describe(best.iqm)}"
    if best.iqm.low is None:
        return (
            f"{text}. It has no interval, since it has a single seed on some game, and "
            "shows no difference."
        )
    text += " (95 % interval in brackets)"
    if not others:
        return f"{text}."
    known = [o for o in others if o.iqm.low is not None]
    near = [o.rule for o in known if not lies_above(best.iqm, o.iqm)]
    without = [o.rule for o in others if o.iqm.low is None]
    if near:
        text += f"; its interval overlaps {_possessive(near)}"
    elif known:
        whose = "the others that have one" if without else "all other rules"
        text += f"; its interval lies above those of {whose}"
    if without:
        has = "has" if len(without) == 1 else "have"
        text += f"; {', '.join(without)} {has} none (a single seed on some game)"
    return f"{text}."


def _possessive(names: Sequence[str]) -> str:
    return f"{'that' if len(names) == 1 else 'those'} of {', '.join(names)}"


def _names_of(cells: Iterable[CellRecord]) -> list[str]:
    return [
        f"{cell.result.label} on {cell.result.game}, seed {cell.result.seed}"
        for cell in cells
    ]


def _about_budgets(evaluation: Evaluation) -> Iterable[str]:
    for group in compare.make_groups(evaluation):
        found = [
            (rule, cell)
            for task in group.tasks
            for rule in evaluation.rules
            for cell in evaluation.cells.get((rule.name, task), ())
        ]
        # The rule `random` learns nothing, in whatever time, at no rate.
        learning = [cell for rule, cell in found if not rule.is_random]
        yield from _unequal_budgets(group, learning)
        yield from _budgets_between_games(group, learning)
        protocols = sorted({cell.result.protocol for _, cell in found} - {""})
        if len(protocols) > 1:
            yield f"{group.title}: protocols {', '.join(protocols)} are mixed."
        if len({cell.result.tuned for cell in learning}) > 1:
            yield f"{group.title}: only some learning rates were tuned."


def _unequal_budgets(group: Group, cells: Sequence[CellRecord]) -> Iterable[str]:
    for task in group.tasks:
        frames = [_budget_of(cell) for cell in cells if task_of(cell) == task]
        # Lived frames, where no budget is stored, end a part of a rollout apart.
        if frames and max(frames) > 1.1 * min(frames):
            yield (
                f"{task.name}: some agents learned from {number(min(frames))} frames, "
                f"others from {number(max(frames))}. That is no fair comparison."
            )


def _budgets_between_games(group: Group, cells: Sequence[CellRecord]) -> Iterable[str]:
    """Say where games that share an IQM were learned for unequal times."""
    budgets = {
        task: max(_budget_of(cell) for cell in cells if task_of(cell) == task)
        for task in group.common
    }
    if not budgets or group.kind == "raw":
        return
    least, most = (
        min(budgets, key=budgets.__getitem__),
        max(budgets, key=budgets.__getitem__),
    )
    if budgets[most] > 1.1 * budgets[least]:
        yield (
            f"{group.title}: one IQM is over games of unequal budgets, from "
            f"{number(budgets[least])} frames ({least.name}) to "
            f"{number(budgets[most])} ({most.name}). Curves end at the smallest."
        )


def _budget_of(cell: CellRecord) -> int:
    """Return the frames that a cell was to learn from; what it did where not stored.

    Cells of one budget live for whole rollouts, and so past it by unequal parts of one.
    """
    result, budget = cell.result, cell.settings.get("env_steps")
    if not isinstance(budget, int) or not result.env_steps:
        return result.frames
    return round(budget * result.frames / result.env_steps)


def _about_games(evaluation: Evaluation) -> Iterable[str]:
    """Say where rules bring options of their own, as those of their meta-training."""
    found: dict[str, list[str]] = {}
    for task in evaluation.tasks:
        if unlike := compare.played_unlike(evaluation, task):
            found.setdefault("; ".join(unlike), []).append(task.name)
    for options, names in found.items():
        yield f"Not the same game to all rules: {', '.join(names)} ({options})."


def _about_tuning(evaluation: Evaluation) -> Iterable[str]:
    """Say which scores a learning rate was chosen by, and which are of tries."""
    for rule in evaluation.rules:
        cells = tuple(evaluation.records_of(rule.name))
        tried = {game_identity(game) for cell in cells for game in _tuned_on(cell)}
        games = dict.fromkeys(
            cell.result.game
            for cell in cells
            if game_identity(cell.result.game) in tried
        )
        if games:
            yield (
                f"The learning rate of {rule.name} was chosen on games that it is "
                f"scored on here: {', '.join(games)}. These scores are no test of it."
            )
    folders = sorted({path for path in evaluation.folders.values() if _is_try(path)})
    if folders:
        yield (
            "Tries of a learning-rate grid are among these results, not what an agent "
            f"with the chosen rate got: {', '.join(map(str, folders))}."
        )


def _tuned_on(cell: CellRecord) -> Sequence[str]:
    """Return the games that chose a cell's learning rate; none where it was given."""
    tuning = cell.settings.get("tuning")
    games = tuning.get("games") if isinstance(tuning, Mapping) else None
    return [str(game) for game in games] if isinstance(games, list) else []


def _is_try(results: Path) -> bool:
    """Return whether a folder holds an option of a grid, as `tuning.py` names them."""
    path = results.resolve()
    return path.parent.name == TRIES and path.name.startswith("learning_rate=")


def _about_seeds(evaluation: Evaluation) -> Iterable[str]:
    counts = [len(cells) for cells in evaluation.cells.values()]
    single = sum(count == 1 for count in counts)
    if single:
        yield (
            f"{single} of {count_of(len(counts), 'pair')} of rule and game "
            f"{'has' if single == 1 else 'have'} a single seed, which says nothing of "
            "how much runs differ."
        )
    several = [count for count in counts if count > 1]
    if several and min(several) < FEW_SEEDS:
        least = min(several)
        few = f"{'' if least == max(several) else 'as few as '}{least}"
        whose = "per other rule and game" if single else "per rule and game"
        yield (
            f"There are {few} seeds {whose}. Bootstrap "
            "intervals of so few are too narrow: they hold the true value less often "
            "than 95 % of the time (How the numbers are made says how often)."
        )


def _about_origin(evaluation: Evaluation) -> Iterable[str]:
    abouts = [cell.about for cell in evaluation.records()]
    for key, words in (("commit", "commits"), ("device", "kinds of device")):
        kinds = {str(about.get(key)) for about in abouts if about.get(key)}
        if len(kinds) > 1:
            yield f"Cells come from {len(kinds)} {words}."
    versions = {str(about.get("versions")) for about in abouts if about.get("versions")}
    if len(versions) > 1:
        yield f"Cells were computed with {len(versions)} sets of package versions."
