"""`metarl evaluate`: plan the cells, train those that are missing, show the scores.

Host code: files, tracking, clocks and the terminal.
"""

from __future__ import annotations

import dataclasses
import functools
import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from metarl.console import say
from metarl.disk_space import told_if_full
from metarl.evaluation import results_tables, tuning, tuning_grid
from metarl.evaluation.cell_records import (
    Result,
)
from metarl.evaluation.cells import Cell, cell_name, plan, require_an_update
from metarl.evaluation.jobs import Jobs, parse_jobs, part
from metarl.evaluation.runner import ToldToStop, never
from metarl.evaluation.shared_folder import require_writable
from metarl.evaluation.summary import summary_table
from metarl.evaluation.training import train_missing
from metarl.evaluation.videos import is_left_to_film
from metarl.rule_files import LoadedRule
from metarl.stop_signals import stop_signals

EXIT_DONE, EXIT_PREEMPTED = 0, 75


def main(
    rules: Sequence[str],
    suite: str | None,
    files: Sequence[Path],
    overrides: Sequence[str],
    *,
    jobs: str | None = None,
) -> int:
    """Run `metarl evaluate` and return its exit code.

    Args:
      rules: files, folders, runs or names of built-in rules.
      suite: by name; None: the configuration says what is played.
      files: YAML files.
      overrides: `key=value`, on top.
      jobs: `i/n`, the part of the grid to train; None: all of it.
    """
    share = Jobs() if jobs is None else parse_jobs(jobs)
    given = list(overrides)
    if suite is not None:
        overrides = [f"environment.suite={suite}", *overrides]
    again = "finished cells are kept; make room and give the same command again"
    with (
        told_if_full(again),
        stop_signals("after this rollout; finished cells are kept") as told_to_stop,
    ):
        grid = _plan(rules, files, overrides, share)
        rows = _evaluate(grid, told_to_stop)
    say("")
    for line in summary_table(rows):
        say(line)
    is_left = told_to_stop() and is_left_to_film(grid.results_dir, grid.cells)
    if len(rows) == len(grid.cells) and not is_left:
        return EXIT_DONE
    words = ["metarl", "evaluate", *rules, *map(str, files)]
    words += [] if suite is None else ["--suite", suite]
    words += [] if jobs is None else ["--jobs", jobs]
    left = ", with agents left to film" if is_left else ""
    say(f"stopped{left}; go on with: {shlex.join([*words, *given])}")
    return EXIT_PREEMPTED


def evaluate(
    rules: Sequence[str | Path | LoadedRule],
    files: Sequence[Path] = (),
    overrides: Sequence[str] = (),
    *,
    jobs: Jobs = Jobs(),  # noqa: B008 -- frozen
    told_to_stop: ToldToStop = never,
) -> list[Result]:
    """Train fresh agents with frozen rules and write their scores.

    Cells that `results_dir` already has are left as they are.

    Args:
      rules: what `load_rule` takes, or loaded ones.
      files: YAML files.
      overrides: `key=value`, on top; such as `environment.suite=catch`.
      jobs: the part of the grid to train.
      told_to_stop: asked before every rollout; cells that are not done then are left
        out.

    Returns:
      The rows of the cells of this part, by rule, game and seed.

    Raises:
      UserError: a rule, game or setting does not exist, `results_dir` cannot be
        written to, or has one of the cells with other settings.
    """
    return _evaluate(_plan(rules, files, overrides, jobs), told_to_stop)


@dataclasses.dataclass(frozen=True)
class _Grid:
    """The cells that this process is to train, and where they go."""

    cells: list[Cell]
    beside: list[Cell]  # of other parts
    results_dir: Path
    tuning: list[tuning_grid.Grid]
    begin_at: float  # of the tries, by their share


def _plan(
    rules: Sequence[str | Path | LoadedRule],
    files: Sequence[Path],
    overrides: Sequence[str],
    jobs: Jobs,
) -> _Grid:
    planned = plan(rules, files, overrides)
    for cell in planned:
        require_an_update(cell)
    _warn_of_no_peers(planned)
    cells = part(planned, jobs)
    if jobs.count > 1:
        say(f"job {jobs}: {len(cells)} of {len(planned)} cells")
    # Of all cells, so that a mistake is told to every part.
    grids = tuning_grid.plan_grids(planned, files, overrides)
    results_dir = planned[0].settings.results_dir
    ours = {cell.name for cell in cells}
    beside = [cell for cell in planned if cell.name not in ours]
    begin_at = (jobs.index - 1) / jobs.count
    return _Grid(cells, beside, results_dir, grids, begin_at)


def _warn_of_no_peers(cells: Sequence[Cell]) -> None:
    """Say which rules are for peers and have none: their base is trained then."""
    alone = [
        cell.rule.name
        for cell in cells
        if cell.group_size == 1
        and cell.rule.rule.spec(cell.spec.num_actions).reads != "own"
    ]
    for name in dict.fromkeys(alone):
        say(
            f"warning: {name} is for peers, and with group_size=1 an agent has none: "
            "it learns as without them (give group_size=2 or more)",
            console=Console(stderr=True),
        )


def _evaluate(grid: _Grid, told_to_stop: ToldToStop) -> list[Result]:
    results_dir = grid.results_dir
    require_writable(results_dir, field="results_dir")
    cells = tuning.tuned_cells(
        grid.cells,
        grid.tuning,
        results_dir,
        functools.partial(train_missing, told_to_stop=told_to_stop),
        begin_at=grid.begin_at,
        beside=grid.beside,
    )
    if cells is not None:
        train_missing(cells, results_dir, told_to_stop)
    wanted = {cell.name for cell in grid.cells}
    rows = results_tables.merge_cells(results_dir)
    say(f"results: {results_dir / 'results.csv'} ({len(rows)} rows), curves.csv beside")
    return [row for row in rows if _name(row) in wanted]


def _name(row: Result) -> str:
    """Return the name of the cell that a row is of."""
    return cell_name(row.rule, row.game, row.seed, row.group_size)
