"""Trains cells and stores each as it is done: files, tracking, videos and clocks.

Host code, between `command.py` (which cells) and `runner.py` (how they learn).
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jax

from metarl.console import heartbeat, say
from metarl.evaluation import amendments, memory, results
from metarl.evaluation.batches import batches
from metarl.evaluation.cells import Cell
from metarl.evaluation.runner import BatchRun, CellRun, ToldToStop, never
from metarl.evaluation.shared_folder import claimed
from metarl.evaluation.videos import Camera, film_left
from metarl.provenance import git_commit, machine, package_versions
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
      UserError: it has one of them with other settings.
    """
    missing = [cell for cell in cells if not results.is_finished(results_dir, cell)]
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
            _train(left, results_dir, told_to_stop)
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
        f"about {memory.estimate(first).cell_bytes / 2**20:,.0f} MiB each"
    )
    started = time.perf_counter()
    diverged: dict[str, int] = {}  # environment steps by the cell's name
    with contextlib.ExitStack() as stack:
        trackers = {
            cell.name: stack.enter_context(_tracked(cell, results_dir))
            for cell in batch
        }

        def on_row(cell_run: CellRun, metrics: Mapping[str, float]) -> None:
            camera.keep(cell_run)
            name = cell_run.cell.name
            if name not in diverged and not math.isfinite(metrics.get("loss", 0.0)):
                diverged[name] = cell_run.env_steps
                say(
                    f"warning: {name}: the loss is not finite after "
                    f"{cell_run.env_steps:,} env steps; its agent learns no more"
                )
            seconds = time.perf_counter() - started
            trackers[name].log(
                _row(cell_run, metrics, seconds), global_step=cell_run.env_steps
            )

        def on_finished(cell_run: CellRun) -> None:
            assert cell_run.result is not None
            seconds = time.perf_counter() - started
            about: dict[str, object] = {
                "commit": git_commit(),
                "versions": package_versions(),
                "device": jax.devices()[0].device_kind,
                "machine": machine(),
                "cells_beside": len(batch) - 1,
                "wall_s": seconds,
                "suite": cell_run.cell.settings.environment.suite,
                **_origin(cell_run.cell, results_dir),
            }
            if (at := diverged.get(cell_run.cell.name)) is not None:
                about["diverged_at_env_steps"] = at
            if (tuned := cell_run.cell.tuning) is not None:
                about["tuning_scores"] = list(tuned.scores)
                about |= (
                    {"tuning_factors": list(tuned.factors)} if tuned.factors else {}
                )
            result = dataclasses.replace(
                cell_run.result, wall_s=round(seconds / len(batch), 3)
            )
            camera.secure(cell_run)
            results.write_cell(
                results_dir, cell_run.cell, result, cell_run.curve, about
            )
            results.merge_cells(results_dir)

        run.run(on_row, on_finished, told_to_stop=told_to_stop)
        camera.film(trackers, told_to_stop)


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
