"""The learning-rate grid: every rule is tried at the same rates, on validation games.

Between `tuning_grid.py` and `command.py`. A try is an ordinary cell, in the folder
`tuning/learning_rate=X` of the results, so that it is resumed like any other; what was
chosen follows from these cells alone. No game that is scored is tried.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from metarl.console import say
from metarl.envs.suites import Family
from metarl.envs.tasks import Task
from metarl.errors import UserError
from metarl.evaluation import results
from metarl.evaluation.cell_records import (
    Result,
)
from metarl.evaluation.cells import Cell, Tuned
from metarl.evaluation.mixing import CHOICE, require_one_of_a_name
from metarl.evaluation.tuning_grid import Grid, rated_cell

FOLDER = "tuning"

Train = Callable[[Sequence[Cell], Path], bool]
"""Trains the cells that a folder lacks; returns whether it has all of them then."""


def tuned_cells(
    cells: Sequence[Cell],
    grids: Sequence[Grid],
    results_dir: Path,
    train: Train,
    *,
    begin_at: float = 0.0,
    beside: Sequence[Cell] = (),
) -> list[Cell] | None:
    """Try the rates and return the cells with those that were best.

    Args:
      cells: to be scored.
      grids: of their rules and families, and maybe of others, which are left alone.
      results_dir: of the evaluation.
      train: trains what is missing.
      begin_at: the share of the tries that comes last, so that processes that share
        a folder begin with different ones.
      beside: cells of other parts of the same command, whose settings are compared
        with the folder's too.

    Returns:
      None where the tries were broken off.

    Raises:
      UserError: the folder has a cell or a try of other settings; before any is
        trained.
    """
    _require_same_settings([*cells, *beside], grids, results_dir)
    needed = {_key(cell) for cell in cells}
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
    rated = [_with_choice(cell, chosen) for cell in cells]
    for (rule, family), tuned in chosen.items():
        _announce(tuned, [c for c in rated if _key(c) == (rule, family)])
    return rated


def choose(grid: Grid, rows: Sequence[Sequence[Result]]) -> Tuned:
    """Return the best rate of a grid.

    By the mean over games and seeds of the normalised score where all games have one,
    (return - random) / (human - random), or the best known score in place of the
    human's; else of the rank among the rates, so that games count alike.

    Args:
      grid: what was tried.
      rows: of each option, in the order of its tries.

    Raises:
      UserError: no try has a score.
    """
    returns = np.array(
        [
            [math.nan if row.mean_return is None else row.mean_return for row in option]
            for option in rows
        ]
    )
    if np.isnan(returns).all():
        raise UserError(
            f"tuning: {grid.rule.name} has no score on {', '.join(grid.games)}, so no "
            f"rate is better than another: no episode finished, or returns are not "
            f"finite (raise tuning.env_steps, {grid.tries[0][0].env_steps:,} now)"
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
    return grid.chosen(
        best, score=by, scores=tuple(round(float(mean), 6) for mean in means)
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


def _require_same_settings(
    cells: Sequence[Cell], grids: Sequence[Grid], results_dir: Path
) -> None:
    """Refuse cells and tries that the folder has with other settings."""
    by_folder: dict[Path, list[Cell]] = {results_dir: []}
    for cell in cells:
        grid = _grid_of(cell, grids)
        if grid is None:
            results.is_finished(results_dir, cell)
            by_folder[results_dir].append(cell)
            continue
        # Any choice will do: what follows from it is left out.
        scores = tuple(0.0 for _ in grid.rates)
        for option in range(len(grid.rates)):  # each must be a rate
            rated = rated_cell(cell, grid.chosen(option, score="", scores=scores))
        results.is_finished(results_dir, rated, undecided=CHOICE)
        by_folder[results_dir].append(rated)
        for tried in (tried for option in grid.tries for tried in option):
            folder = _folder(tried, results_dir)
            results.is_finished(folder, tried)
            by_folder.setdefault(folder, []).append(tried)
    for folder, wanted in by_folder.items():
        require_one_of_a_name(folder, wanted)


def _grid_of(cell: Cell, grids: Sequence[Grid]) -> Grid | None:
    """Return what was tried for a cell; None for a rule that learns nothing."""
    return next((g for g in grids if (g.rule.name, g.family) == _key(cell)), None)


def _key(cell: Cell) -> tuple[str, Family]:
    """Return which grid a cell's rate comes from."""
    return cell.rule.name, cell.task.game.family


def _folder(tried: Cell, results_dir: Path) -> Path:
    rate = tried.settings.agent.optimizer.learning_rate
    return results_dir / FOLDER / f"learning_rate={rate!r}"


def _train_option(
    option: Sequence[Cell], results_dir: Path, train: Train
) -> list[Result] | None:
    """Return the rows of an option's cells, None where they were broken off."""
    by_folder: dict[Path, list[Cell]] = {}
    for cell in option:
        by_folder.setdefault(_folder(cell, results_dir), []).append(cell)
    rows: dict[str, Result] = {}
    for folder, cells in by_folder.items():
        if not train(cells, folder):
            return None
        rows |= {cell.name: results.read_cell(folder, cell).result for cell in cells}
    return [rows[cell.name] for cell in option]


def _with_choice(cell: Cell, chosen: dict[tuple[str, Family], Tuned]) -> Cell:
    choice = chosen.get(_key(cell))
    # A rule that learns nothing has none.
    return cell if choice is None else rated_cell(cell, choice)


def _announce(tuned: Tuned, cells: Sequence[Cell]) -> None:
    """Say what was chosen for ``cells``, and among what."""
    # The rates that factors make differ from game to game.
    options = tuned.factors or tuned.learning_rates
    best = options[tuned.learning_rates.index(tuned.chosen)]
    note = ", at the edge of the grid" if best in (min(options), max(options)) else ""
    scores = ", ".join(
        f"{option:g}: {score:.3g}"
        for option, score in zip(options, tuned.scores, strict=True)
    )
    chosen = f"learning rate {best:g}"
    if tuned.factors:
        rates = dict.fromkeys(c.settings.agent.optimizer.learning_rate for c in cells)
        shown = " or ".join(f"{rate:g}" for rate in rates)
        chosen = f"factor {best:g}, learning rate {shown} where it is scored"
    say(
        f"tuned: {cells[0].rule.name} on {', '.join(tuned.games)}: {chosen}{note} "
        f"(mean {tuned.score} of {scores})"
    )
