"""Trains cells and stores each as it is done: files, tracking, videos and clocks.

Host code, between `command.py` (which cells) and `runner.py` (how they learn).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from metarl import runtime
from metarl.console import heartbeat, say
from metarl.evaluation import amendments, cell_records, memory, results, results_tables
from metarl.evaluation.agreement_records import MEASURES
from metarl.evaluation.batches import batches
from metarl.evaluation.cell_run import CellRun
from metarl.evaluation.cells import Cell
from metarl.evaluation.mixing import require_one_of_a_name
from metarl.evaluation.robustness import robustness_of
from metarl.evaluation.runner import BatchRun, PeerMetrics, ToldToStop, never
from metarl.evaluation.shared_folder import claimed
from metarl.evaluation.videos import Camera, film_left
from metarl.provenance import git_commit, is_modified, machine, package_versions
from metarl.tracking import RunLabels, Tracker, logged_name


def train_missing(
    cells: Sequence[Cell], results_dir: Path, told_to_stop: ToldToStop = never
) -> bool:
    """Train the cells that `results_dir` does not have, until ``told_to_stop``.

    Args:
      cells: of any rules and games.
      results_dir: made where missing.
      told_to_stop: asked before every rollout.

    Returns:
      Whether it has all of them.

    Raises:
      UserError: it has one of them with other settings, or others of the same name.
    """
    is_modified()  # as the code is now; each cell remembers it
    missing = [cell for cell in cells if not results.is_finished(results_dir, cell)]
    require_one_of_a_name(results_dir, missing)
    _update_statuses(cells, results_dir)
    say(
        f"evaluating {len(cells)} cells on {jax.default_backend()}: "
        f"{len(cells) - len(missing)} are in {results_dir} already"
    )
    film_left(results_dir, [c for c in cells if c not in missing], told_to_stop)
    for batch in batches(missing):
        if told_to_stop():
            return False
        # Another process may have written some in the meantime.
        left = [cell for cell in batch if not results.is_finished(results_dir, cell)]
        if left:
            require_one_of_a_name(results_dir, left)
            try:
                _train(left, results_dir, told_to_stop)
            except Exception as error:
                # A rule or an environment of the user's, whose traceback they need.
                names = ", ".join(cell.name for cell in left)
                error.add_note(
                    f"While training {names} in {results_dir}; finished cells are "
                    "kept, and the same command goes on with the others."
                )
                raise
    return all(results.is_finished(results_dir, cell) for cell in missing)


def _update_statuses(cells: Sequence[Cell], results_dir: Path) -> None:
    rules = {cell.rule.name: cell.rule for cell in cells}
    changed = amendments.update_statuses(results_dir, list(rules.values()))
    if changed:
        name, before, now = changed[0]
        more = f", and {len(changed) - 1} more" if changed[1:] else ""
        say(f"status: by the rule's manifest {name} is {now} now, not {before}{more}")


def _train(batch: Sequence[Cell], results_dir: Path, told_to_stop: ToldToStop) -> None:
    """Train the cells of one batch and store each as it is done."""
    runtime.forget_programs()  # those of earlier rules and games
    with heartbeat(f"preparing {len(batch)} cells"):
        run = BatchRun(batch)
    camera = Camera(results_dir, run)
    first = batch[0]
    games = ", ".join(sorted({cell.game for cell in batch}))
    seeds = ", ".join(str(seed) for seed in sorted({cell.seed for cell in batch}))
    say(
        f"rule={first.rule.name} games: {games}; seeds: {seeds}; "
        f"{first.env_steps:,} env steps each, {run.num_parameters:,} parameters; "
        f"{_group(first)}"
        f"{len(batch)} cells side by side, "
        f"about {memory.estimate(first).cell_bytes / 2**20:,.0f} MiB each"
    )
    started = time.perf_counter()
    with contextlib.ExitStack() as stack:
        trackers = {
            cell.name: stack.enter_context(_tracked(cell, results_dir))
            for cell in batch
        }
        logs = {name: _CellLog(tracker) for name, tracker in trackers.items()}

        def on_row(cell_run: CellRun, metrics: PeerMetrics) -> None:
            camera.keep(cell_run)
            logs[cell_run.cell.name].add_row(cell_run, metrics)

        def on_finished(cell_run: CellRun) -> None:
            assert cell_run.result is not None
            robustness = robustness_of(cell_run.cell, run.agent, run.peers_of(cell_run))
            seconds = time.perf_counter() - started
            about = {
                **_about(cell_run.cell, results_dir),
                "cells_beside": len(batch) - 1,
                "wall_s": seconds,
                **logs[cell_run.cell.name].found(cell_run),
            }
            result = dataclasses.replace(
                cell_run.result, wall_s=round(seconds / len(batch), 3)
            )
            is_ours = results.write_cell(
                results_dir,
                cell_run.cell,
                result,
                cell_run.curve,
                about,
                agents=cell_records.AgentRecords(
                    tuple(cell_run.peers), robustness, tuple(cell_run.agreement)
                ),
                before=functools.partial(camera.secure, cell_run),
            )
            if not is_ours:
                camera.leave(cell_run)
                say(
                    f"{cell_run.cell.name} was stored by another process in the "
                    "meantime: that result is kept, and this one dropped"
                )

        run.run(on_row, on_finished, told_to_stop=told_to_stop)
        # Of all cells there are: not after each.
        results_tables.merge_cells(results_dir)
        camera.film(trackers, told_to_stop)


def _group(cell: Cell) -> str:
    return f"groups of {cell.group_size}; " if cell.group_size > 1 else ""


class _CellLog:
    """Writes the metrics of one cell while it learns, and warns of what goes wrong."""

    def __init__(self, tracker: Tracker) -> None:
        """Start the clock of the first row."""
        self._tracker = tracker
        self._env_steps, self._written_at = 0, time.perf_counter()
        self._diverged_at: dict[int, int] = {}  # environment steps, by peer
        self._told_of_returns = False

    def add_row(self, run: CellRun, metrics: PeerMetrics) -> None:
        """Write a row; call where one was added to the cell's curve."""
        self._warn(run, metrics)
        now = time.perf_counter()
        seconds, env_steps = now - self._written_at, run.env_steps - self._env_steps
        self._env_steps, self._written_at = run.env_steps, now
        row = _row(run, metrics) | {"charts/SPS": env_steps / seconds}
        self._tracker.log(row, global_step=run.env_steps)

    def found(self, run: CellRun) -> dict[str, object]:
        """Return what went wrong, to be stored with the cell."""
        found: dict[str, object] = {}
        if self._diverged_at:
            found["diverged_at_env_steps"] = min(self._diverged_at.values())
        if self._diverged_at and run.cell.group_size > 1:
            # By its number, as JSON has it.
            failed = sorted(self._diverged_at.items())
            found["failed_peers"] = {str(peer): at for peer, at in failed}
        if run.nonfinite_returns:
            found["nonfinite_return"] = run.nonfinite_returns
        return found

    def _warn(self, run: CellRun, metrics: PeerMetrics) -> None:
        name, at = run.cell.name, f"{run.env_steps:,} env steps"
        # Seen at rows of the curve alone, and one such loss need not be the end.
        losses = metrics.get("loss", np.zeros(run.cell.group_size))
        for peer in np.flatnonzero(~np.isfinite(losses)) + 1:
            if int(peer) not in self._diverged_at:
                self._diverged_at[int(peer)] = run.env_steps
                say(f"warning: {name}: {_diverged(run.cell, int(peer), at)}")
        if run.nonfinite_returns and not self._told_of_returns:
            self._told_of_returns = True
            say(
                f"warning: {name}: the return of {run.nonfinite_returns} of "
                f"{run.episodes} episodes is not finite by {at}; means with such a "
                "return are left out"
            )


def _diverged(cell: Cell, peer: int, at: str) -> str:
    if cell.group_size == 1:
        return f"the loss is not finite at {at}; its agent may learn no more"
    return (
        f"the loss of peer {peer} is not finite at {at}; it may learn no more, and "
        "the others learn without it while it is so"
    )


def _about(cell: Cell, results_dir: Path) -> dict[str, object]:
    """Return where a result comes from, besides its settings."""
    about: dict[str, object] = {
        "commit": git_commit(),
        "modified": is_modified(),
        "versions": package_versions(),
        "device": jax.devices()[0].device_kind,
        "machine": machine(),
        "suite": cell.settings.environment.suite,
        **_origin(cell, results_dir),
    }
    if (tuned := cell.tuning) is not None:
        about["tuning_scores"] = list(tuned.scores)
        about |= {"tuning_factors": list(tuned.factors)} if tuned.factors else {}
    return about


def _origin(cell: Cell, results_dir: Path) -> dict[str, object]:
    """Return where the rule was read from, so that its run can be shown beside it.

    Relative to `results_dir`: both may move together.
    """
    path = cell.rule.path
    if path is None:
        return {}
    return {"rule_path": os.path.relpath(path.resolve(), results_dir.resolve())}


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


def _row(run: CellRun, metrics: PeerMetrics) -> dict[str, float]:
    """Return a row of metrics by the names of `docs/metrics.md`: means over peers."""
    row: dict[str, float] = {}
    point = run.curve[-1]
    if point.episodes:
        mean = point.mean_return
        row["charts/episodic_return"] = math.nan if mean is None else mean
        row["charts/episodic_length"] = float(run.newest_lengths.mean())
    if run.cell.group_size > 1:
        for number, peer in enumerate(run.peers, start=1):
            mean = peer.curve[-1].mean_return
            if mean is not None:
                row[f"peers/{number}/episodic_return"] = mean
    if run.agreement and run.agreement[-1].env_steps == run.env_steps:
        for name in MEASURES:
            if (value := getattr(run.agreement[-1], name)) is not None:
                row[f"peers/{name}"] = value
    return row | {
        logged_name(name): float(np.mean(values)) for name, values in metrics.items()
    }
