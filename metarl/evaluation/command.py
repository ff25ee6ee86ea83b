"""`metarl evaluate`: plan the cells, train those that are missing, show the scores.

Host code: files, tracking, clocks and the terminal.
"""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jax

from metarl.console import heartbeat, say
from metarl.evaluation import memory, results
from metarl.evaluation.batches import batches
from metarl.evaluation.cells import Cell, cell_name, plan, require_an_update
from metarl.evaluation.jobs import Jobs, parse_jobs, part
from metarl.evaluation.results import Result
from metarl.evaluation.runner import BatchRun, CellRun, ToldToStop, never
from metarl.evaluation.shared_folder import claimed, require_writable
from metarl.evaluation.videos import Camera
from metarl.provenance import git_commit, package_versions
from metarl.rule_files import LoadedRule
from metarl.stop_signals import stop_signals
from metarl.tracking import RunLabels, Tracker, logged_name

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
    with stop_signals("after this rollout; finished cells are kept") as told_to_stop:
        grid = _plan(rules, files, overrides, share)
        rows = _evaluate(grid, told_to_stop)
    say("")
    for line in summary_table(rows):
        say(line)
    if len(rows) == len(grid.cells):
        return EXIT_DONE
    words = ["metarl", "evaluate", *rules, *map(str, files)]
    words += [] if suite is None else ["--suite", suite]
    words += [] if jobs is None else ["--jobs", jobs]
    say(f"stopped; go on with: {shlex.join([*words, *given])}")
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
    results_dir: Path


def _plan(
    rules: Sequence[str | Path | LoadedRule],
    files: Sequence[Path],
    overrides: Sequence[str],
    jobs: Jobs,
) -> _Grid:
    planned = plan(rules, files, overrides)
    for cell in planned:
        require_an_update(cell)
    cells = part(planned, jobs)
    if jobs.count > 1:
        say(f"job {jobs}: {len(cells)} of {len(planned)} cells")
    return _Grid(cells, planned[0].settings.results_dir)


def _evaluate(grid: _Grid, told_to_stop: ToldToStop) -> list[Result]:
    results_dir = grid.results_dir
    require_writable(results_dir, field="results_dir")
    train_missing(grid.cells, results_dir, told_to_stop)
    wanted = {cell.name for cell in grid.cells}
    rows = results.merge_cells(results_dir)
    say(f"results: {results_dir / 'results.csv'} ({len(rows)} rows), curves.csv beside")
    return [row for row in rows if cell_name(row.rule, row.game, row.seed) in wanted]


def train_missing(
    cells: Sequence[Cell], results_dir: Path, told_to_stop: ToldToStop = never
) -> None:
    """Train the cells that `results_dir` does not have, until ``told_to_stop``.

    Raises:
      UserError: it has one of them with other settings.
    """
    missing = [cell for cell in cells if not results.is_finished(results_dir, cell)]
    say(
        f"evaluating {len(cells)} cells on {jax.default_backend()}: "
        f"{len(cells) - len(missing)} are in {results_dir} already"
    )
    for batch in batches(missing):
        if told_to_stop():
            return
        # Another process may have written some in the meantime.
        left = [cell for cell in batch if not results.is_finished(results_dir, cell)]
        if left:
            _train(left, results_dir, told_to_stop)


def _train(batch: Sequence[Cell], results_dir: Path, told_to_stop: ToldToStop) -> None:
    """Train the cells of one batch and store each as it is done."""
    with heartbeat(f"preparing {len(batch)} cells"):
        run = BatchRun(batch)
    camera = Camera(results_dir, run)
    first = batch[0]
    games = ", ".join(sorted({cell.game for cell in batch}))
    seeds = ", ".join(str(seed) for seed in sorted({cell.seed for cell in batch}))
    say(
        f"rule={first.rule.name} games: {games}; seeds: {seeds}; "
        f"{first.env_steps:,} env steps each, {run.num_parameters:,} parameters; "
        f"{len(batch)} cells side by side, "
        f"about {memory.estimate(first).cell_bytes / 2**30:.2f} GiB each"
    )
    started = time.perf_counter()
    with contextlib.ExitStack() as stack:
        trackers = {
            cell.name: stack.enter_context(_tracked(cell, results_dir))
            for cell in batch
        }

        def on_row(cell_run: CellRun, metrics: Mapping[str, float]) -> None:
            camera.keep(cell_run)
            seconds = time.perf_counter() - started
            trackers[cell_run.cell.name].log(
                _row(cell_run, metrics, seconds), global_step=cell_run.env_steps
            )

        def on_finished(cell_run: CellRun) -> None:
            assert cell_run.result is not None
            seconds = time.perf_counter() - started
            about = {
                "commit": git_commit(),
                "versions": package_versions(),
                "device": jax.devices()[0].device_kind,
                "cells_beside": len(batch) - 1,
                "wall_s": seconds,
                "suite": cell_run.cell.settings.environment.suite,
            }
            result = dataclasses.replace(
                cell_run.result, wall_s=round(seconds / len(batch), 3)
            )
            results.write_cell(
                results_dir, cell_run.cell, result, cell_run.curve, about
            )
            results.merge_cells(results_dir)

        run.run(on_row, on_finished, told_to_stop=told_to_stop)
        camera.film(trackers, told_to_stop)


@contextlib.contextmanager
def _tracked(cell: Cell, results_dir: Path) -> Iterator[Tracker]:
    """Track one cell, beside whoever else may be at the very same one."""
    folder = results_dir / "tracking"
    with claimed(folder / f".{cell.name}.lock") as is_ours:
        name = cell.name if is_ours else f"{cell.name}__{secrets.token_hex(3)}"
        with _tracker(cell, folder / name) as tracker:
            yield tracker


def _tracker(cell: Cell, folder: Path) -> Tracker:
    """Return the tracker of one cell: one game and one seed, as tools expect it."""
    config = {
        **cell.settings.model_dump(mode="json"),
        "env_id": cell.game,
        "seed": cell.seed,
        "rule": cell.rule.name,
        "status": cell.rule.status(cell.game),
        "update_rule": cell.rule.manifest.config.model_dump(mode="json"),
    }
    commit = git_commit()
    labels = RunLabels(
        name=cell.name,
        group=cell.settings.exp_name,
        tags=(commit,) if commit else (),
        job_type="evaluate",
    )
    return Tracker(folder, cell.settings.tracking, config, labels)


def _row(
    run: CellRun, metrics: Mapping[str, float], seconds: float
) -> dict[str, float]:
    """Return a row of metrics by the names of `docs/metrics.md`."""
    row = {"charts/SPS": run.env_steps / seconds}
    point = run.curve[-1]
    if point.mean_return is not None:
        row["charts/episodic_return"] = point.mean_return
        row["charts/episodic_length"] = float(run.newest_lengths.mean())
    return row | {logged_name(name): value for name, value in metrics.items()}


def summary_table(results_of: Sequence[Result]) -> list[str]:
    """Return the lines of a small table: means over seeds by game and rule."""
    rows = results.summary(results_of)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            # The three text columns to the left, numbers to the right.
            cell.ljust(width) if i < 3 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
