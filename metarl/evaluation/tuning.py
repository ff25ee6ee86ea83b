"""The learning-rate grid: every rule is tried at the same rates, on validation games.

Between `cells.py` and `command.py`. A try is an ordinary cell, in the folder
`tuning/learning_rate=X` of the results, so that it is resumed like any other; what was
chosen follows from these cells alone. No game that is scored is tried.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from metarl.config import EvaluationConfig, RandomConfig, TuningConfig
from metarl.console import say
from metarl.envs import suites
from metarl.envs.suites import Family
from metarl.envs.tasks import Task, resolve_environment
from metarl.errors import UserError
from metarl.evaluation import results
from metarl.evaluation.cells import Cell, Tuned, new_cell, require_an_update
from metarl.evaluation.results import Result
from metarl.rule_files import LoadedRule, game_identity

FOLDER = "tuning"
ATARI_GAMES = "atari3_val"
"""The suite that rates are tried on for Atari games, where the user names none."""

Train = Callable[[Sequence[Cell], Path], bool]
"""Trains the cells that a folder lacks; returns whether it has all of them then."""


@dataclasses.dataclass(frozen=True)
class Grid:
    """The tries of one rule for the games of one family.

    Attributes:
      rule: that is tried.
      family: of the games to be scored.
      rates: that the scored games would get, one per option.
      tries: the cells of each option.
    """

    rule: LoadedRule
    family: Family
    rates: tuple[float, ...]
    tries: tuple[tuple[Cell, ...], ...]


def is_on(config: EvaluationConfig) -> bool:
    """Return whether rates are to be tried."""
    return bool(config.tuning.learning_rates or config.tuning.factors)


def plan_grids(
    cells: Sequence[Cell], files: Sequence[Path], overrides: Sequence[str]
) -> list[Grid]:
    """Return what is to be tried before ``cells`` are trained: all that are scored.

    Args:
      cells: of every rule and game.
      files: the user's YAML files.
      overrides: the user's `key=value`.

    Raises:
      UserError: the grid makes no sense, a game would be tried and scored, or there
        is none to try.
    """
    config = cells[0].settings.tuning
    if not is_on(cells[0].settings):
        return []
    _check(config)
    scored = {game_identity(cell.game): cell.game for cell in cells}
    grids: dict[tuple[str, Family], Grid] = {}
    for cell in cells:
        key = (cell.rule.name, cell.task.game.family)
        learns = not isinstance(cell.rule.manifest.config, RandomConfig)
        if key in grids or not learns:
            continue
        tasks = _tasks(cell)
        for task in tasks:
            if clash := scored.get(game_identity(task.game.task_id)):
                raise UserError(
                    f"tuning.games: rates are not tried on games that are scored, and "
                    f"'{clash}' is one (allowed: any other game, such as "
                    f"tuning.games='[Assault-v5]')"
                )
        grids[key] = _grid(cell, tasks, files, overrides)
    found = list(grids.values())
    _require_equal_budgets(found)
    return found


def tuned_cells(
    cells: Sequence[Cell],
    grids: Sequence[Grid],
    results_dir: Path,
    train: Train,
    *,
    begin_at: float = 0.0,
) -> list[Cell] | None:
    """Try the rates and return the cells with those that were best.

    Args:
      cells: to be scored.
      grids: of their rules and families, and maybe of others, which are left alone.
      results_dir: of the evaluation.
      train: trains what is missing.
      begin_at: the share of the tries that comes last, so that processes that share
        a folder begin with different ones.

    Returns:
      None where the tries were broken off.
    """
    needed = {(cell.rule.name, cell.task.game.family) for cell in cells}
    ours = [grid for grid in grids if (grid.rule.name, grid.family) in needed]
    places = [(n, i) for n, grid in enumerate(ours) for i in range(len(grid.tries))]
    first = int(begin_at * len(places))
    rows: dict[tuple[int, int], list[Result]] = {}
    for n, i in places[first:] + places[:first]:
        found = _train_option(ours[n].tries[i], results_dir, train)
        if found is None:
            return None
        rows[n, i] = found
    chosen: dict[tuple[str, Family], Tuned] = {}
    for n, grid in enumerate(ours):
        tuned = choose(grid, [rows[n, i] for i in range(len(grid.tries))])
        chosen[grid.rule.name, grid.family] = tuned
        _announce(grid, tuned)
    return [_with_choice(cell, chosen) for cell in cells]


def choose(grid: Grid, rows: Sequence[Sequence[Result]]) -> Tuned:
    """Return the best rate of a grid.

    By the mean over games and seeds of the normalised score where all games have one,
    (return - random) / (human - random), or the best known score in place of the
    human's; else of the rank among the rates, so that games count alike.

    Args:
      grid: what was tried.
      rows: of each option, in the order of its tries.

    Raises:
      UserError: not one episode was finished.
    """
    returns = np.array(
        [
            [math.nan if row.mean_return is None else row.mean_return for row in option]
            for option in rows
        ]
    )
    if np.isnan(returns).all():
        raise UserError(
            f"tuning: {grid.rule.name} finished no episode of "
            f"{', '.join(_games(grid))}, so no rate is better than another "
            f"(raise tuning.env_steps, {grid.tries[0][0].env_steps:,} now)"
        )
    ranges = [_range(cell.task) for cell in grid.tries[0]]
    known = [bounds for bounds in ranges if bounds is not None]
    if len(known) == len(ranges) and not np.isnan(returns).any():
        low, high = np.array(known).T
        scores, by = (returns - low) / (high - low), "normalized_score"
    else:
        scores, by = _ranks(returns), "rank"
    means = scores.mean(axis=1)
    # Of equal ones the first; the user's order is one of preference.
    best = int(np.argmax(means))
    first = grid.tries[0]
    return Tuned(
        learning_rates=grid.rates,
        games=_games(grid),
        seeds=tuple(dict.fromkeys(cell.seed for cell in first)),
        env_steps=first[0].env_steps,
        chosen=grid.rates[best],
        score=by,
        scores=tuple(round(float(mean), 6) for mean in means),
    )


def _ranks(returns: np.ndarray) -> np.ndarray:
    """Return how many options each is better than, a tie as half of one.

    No finished episode is worse than any.
    """
    values = np.where(np.isnan(returns), -np.inf, returns)
    above = values[:, None] > values[None]
    ties = values[:, None] == values[None]
    ranks: np.ndarray = above.sum(axis=1) + 0.5 * (ties.sum(axis=1) - 1)
    return ranks


def _range(task: Task) -> tuple[float, float] | None:
    """Return the scores that count as 0 and 1; None where either is not known."""
    game = task.game
    high = game.best_score if game.human_score is None else game.human_score
    if game.random_score is None or high is None:
        return None
    return game.random_score, high


def _check(config: TuningConfig) -> None:
    if config.learning_rates and config.factors:
        raise UserError("tuning: learning_rates and factors are both given, take one")
    for name in ("learning_rates", "factors", "games", "seeds"):
        values = getattr(config, name)
        if len(set(values)) < len(values):
            raise UserError(f"tuning.{name}: {list(values)} (allowed: each once)")
    if not config.seeds:
        raise UserError("tuning.seeds: [] (allowed: one or more)")


def _tasks(cell: Cell) -> tuple[Task, ...]:
    """Return what rates are tried on for the games of a cell's family.

    The games of that family that the user names; without any, all that the user names;
    without those, the validation games of Atari.
    """
    family = cell.task.game.family
    config = cell.settings.tuning
    environment = cell.settings.environment
    if config.games:
        named = environment.model_copy(update={"suite": None, "games": config.games})
        tasks = resolve_environment(named, same_shapes=False)
        same = tuple(task for task in tasks if task.game.family == family)
        return same or tasks
    if family != "atari":
        raise UserError(
            f"tuning.games: needed to tune for {cell.game}, none of which is scored "
            f"(Atari has {ATARI_GAMES})"
        )
    suite = suites.get_suite(ATARI_GAMES)
    return tuple(Task(suites.GAMES[name], suite.options) for name in suite.games)


def _require_equal_budgets(grids: Iterable[Grid]) -> None:
    """Refuse to try a rate on a game twice: for one family longer than for another."""
    tries: dict[tuple[float, str], Cell] = {}
    for grid in grids:
        for cell in (cell for option in grid.tries for cell in option):
            rate = cell.settings.agent.optimizer.learning_rate
            other = tries.setdefault((rate, cell.name), cell)
            if other.env_steps != cell.env_steps:
                raise UserError(
                    f"tuning.env_steps: needed here, where the scored games have "
                    f"budgets of {other.env_steps:,} and {cell.env_steps:,} steps and "
                    f"are both tuned for on {cell.game}"
                )


def _grid(
    scored: Cell,
    tasks: Iterable[Task],
    files: Sequence[Path],
    overrides: Sequence[str],
) -> Grid:
    config = scored.settings.tuning
    env_steps = config.env_steps or scored.env_steps
    # Schedules follow from the budget.
    overrides = [*overrides, f"env_steps={env_steps}"]
    base = scored.settings.agent.optimizer.learning_rate
    rates = config.learning_rates or tuple(base * factor for factor in config.factors)
    options = []
    for i, rate in enumerate(rates):
        cells = []
        for task in tasks:
            for seed in config.seeds:
                cell = new_cell(
                    scored.rule, task, seed, env_steps, files=files, overrides=overrides
                )
                if config.factors:
                    optimizer = cell.settings.agent.optimizer
                    rate = optimizer.learning_rate * config.factors[i]
                cell = _with_rate(cell, rate)
                require_an_update(cell)
                cells.append(_as_try(cell))
        options.append(tuple(cells))
    return Grid(scored.rule, scored.task.game.family, rates, tuple(options))


def _with_rate(cell: Cell, rate: float) -> Cell:
    settings = cell.settings
    optimizer = settings.agent.optimizer.model_copy(update={"learning_rate": rate})
    agent = settings.agent.model_copy(update={"optimizer": optimizer})
    return dataclasses.replace(
        cell, settings=settings.model_copy(update={"agent": agent})
    )


def _as_try(cell: Cell) -> Cell:
    """Return a cell that nobody films and that tries nothing itself."""
    settings = cell.settings.model_copy(
        update={
            "tuning": TuningConfig(),
            "videos": False,
            "exp_name": f"{cell.settings.exp_name}-tuning",
        }
    )
    return dataclasses.replace(cell, settings=settings)


def _train_option(
    option: Sequence[Cell], results_dir: Path, train: Train
) -> list[Result] | None:
    """Return the rows of an option's cells, None where they were broken off."""
    by_folder: dict[Path, list[Cell]] = {}
    for cell in option:
        rate = cell.settings.agent.optimizer.learning_rate
        place = results_dir / FOLDER / f"learning_rate={rate!r}"
        by_folder.setdefault(place, []).append(cell)
    rows: dict[str, Result] = {}
    for folder, cells in by_folder.items():
        if not train(cells, folder):
            return None
        rows |= {cell.name: results.read_cell(folder, cell).result for cell in cells}
    return [rows[cell.name] for cell in option]


def _with_choice(cell: Cell, chosen: dict[tuple[str, Family], Tuned]) -> Cell:
    choice = chosen.get((cell.rule.name, cell.task.game.family))
    if choice is None:
        return cell  # a rule that learns nothing
    rated = _with_rate(cell, choice.chosen)
    return dataclasses.replace(rated, tuning=choice)


def _games(grid: Grid) -> tuple[str, ...]:
    return tuple(dict.fromkeys(cell.game for cell in grid.tries[0]))


def _announce(grid: Grid, tuned: Tuned) -> None:
    scores = ", ".join(
        f"{rate:g}: {score:.3g}"
        for rate, score in zip(tuned.learning_rates, tuned.scores, strict=True)
    )
    edges = (min(tuned.learning_rates), max(tuned.learning_rates))
    note = ", at the edge of the grid" if tuned.chosen in edges else ""
    say(
        f"tuned: {grid.rule.name} on {', '.join(tuned.games)}: learning rate "
        f"{tuned.chosen:g}{note} (mean {tuned.score} of {scores})"
    )
