"""What the learning-rate grid consists of: rates, games to try them on, and cells.

Between `cells.py` and `tuning.py`, which trains the tries. No files here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

from metarl.config import EvaluationConfig, RandomConfig, RobustnessConfig, TuningConfig
from metarl.config.base import single_precision
from metarl.envs import suites
from metarl.envs.suites import Family
from metarl.envs.tasks import Task, resolve_environment
from metarl.errors import UserError
from metarl.evaluation.cells import Cell, Tuned, new_cell, require_an_update
from metarl.rule_files import LoadedRule, game_identity

ATARI_GAMES = "atari3_val"
"""The suite that rates are tried on for Atari games, where the user names none."""


@dataclasses.dataclass(frozen=True)
class Grid:
    """The tries of one rule for the games of one family.

    Attributes:
      rule: that is tried.
      family: of the games to be scored.
      rates: that the first of the scored games would get, one per option.
      tries: the cells of each option.
      factors: that make the options, in place of rates; the tries' own rates are
        then multiples of what their games have otherwise, as are those of each game
        that is scored (see `rated_cell`).
    """

    rule: LoadedRule
    family: Family
    rates: tuple[float, ...]
    tries: tuple[tuple[Cell, ...], ...]
    factors: tuple[float, ...] = ()

    @property
    def games(self) -> tuple[str, ...]:
        """Task ids that rates are tried on."""
        return tuple(dict.fromkeys(cell.game for cell in self.tries[0]))

    def chosen(self, option: int, *, score: str, scores: tuple[float, ...]) -> Tuned:
        """Return the record of a choice, for the first of the scored games.

        Args:
          option: that was best.
          score: by which; see `Tuned`.
          scores: of each option.
        """
        first = self.tries[0]
        return Tuned(
            learning_rates=self.rates,
            games=self.games,
            seeds=tuple(dict.fromkeys(cell.seed for cell in first)),
            env_steps=first[0].env_steps,
            chosen=self.rates[option],
            score=score,
            scores=scores,
            factors=self.factors,
        )


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
        _refuse_unread(config)
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


def _check(config: TuningConfig) -> None:
    if config.learning_rates and config.factors:
        raise UserError("tuning: learning_rates and factors are both given, take one")
    for name in ("learning_rates", "factors", "games", "seeds"):
        values = getattr(config, name)
        if len(set(values)) < len(values):
            raise UserError(f"tuning.{name}: {list(values)} (allowed: each once)")
    if not config.seeds:
        raise UserError("tuning.seeds: [] (allowed: one or more)")


def _refuse_unread(config: TuningConfig) -> None:
    """Refuse settings of a grid that has no rates."""
    for name, value in config:
        if value != getattr(TuningConfig(), name):
            shown = list(value) if isinstance(value, tuple) else value
            raise UserError(
                f"tuning.{name}: {shown} is for a grid, and no rate is to be tried "
                "(give tuning.learning_rates or tuning.factors too)"
            )


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
    family = scored.task.game.family
    return Grid(scored.rule, family, rates, tuple(options), config.factors)


def rated_cell(cell: Cell, tuned: Tuned) -> Cell:
    """Return a cell that is scored, with the rate that was chosen.

    Of factors, each multiplies the cell's own rate: games of one family may have
    several.
    """
    if tuned.factors:
        base = cell.settings.agent.optimizer.learning_rate
        rates = tuple(base * factor for factor in tuned.factors)
        best = rates[tuned.learning_rates.index(tuned.chosen)]
        tuned = dataclasses.replace(tuned, learning_rates=rates, chosen=best)
    return dataclasses.replace(_with_rate(cell, tuned.chosen), tuning=tuned)


def _with_rate(cell: Cell, rate: float) -> Cell:
    try:
        single_precision(rate)
    except ValueError as error:
        raise UserError(f"tuning: a learning rate of {rate:g} {error}") from None
    settings = cell.settings
    optimizer = settings.agent.optimizer.model_copy(update={"learning_rate": rate})
    agent = settings.agent.model_copy(update={"optimizer": optimizer})
    return dataclasses.replace(
        cell, settings=settings.model_copy(update={"agent": agent})
    )


def _as_try(cell: Cell) -> Cell:
    """Return a cell that nobody films or tests and that tries nothing itself."""
    settings = cell.settings.model_copy(
        update={
            "tuning": TuningConfig(),
            "robustness": RobustnessConfig(),
            "videos": False,
            "exp_name": f"{cell.settings.exp_name}-tuning",
        }
    )
    return dataclasses.replace(cell, settings=settings)
