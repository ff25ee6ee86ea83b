"""A run that could ship its rule, and cells of it, without training anything."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from report_cells import ABOUT, store
from report_runs import row, write_run

from metarl import config_loader, kept_rules
from metarl.config import TrainConfig
from metarl.evaluation.cells import plan
from metarl.rule_files import LoadedRule, Manifest, save_rule
from metarl.rules import make_rule

LPG = "{kind: lpg, prediction_size: 3, lstm: 2, embedding_hidden: 2}"


def write_shippable_run(
    folder: Path, rows: list[dict] | None = None, **config: object
) -> Path:
    """Write a run of `lpg` on 5 x 5 Catch with an initial and a newest rule.

    Args:
      folder: of the run.
      rows: of its metrics; None: some of a run that is done, without validations.
      **config: overrides; keys with dots go in a mapping.
    """
    if rows is None:
        rows = [
            row(10, **{"charts/SPS": 10.0}),
            row(20, **{"charts/SPS": 20.0, "agents/Catch-v0/episodic_return": 0.5}),
        ]
    write_run(folder, rows, **{"meta_steps": 20, "update_rule": LPG, **config})
    write_rule(folder / "initial_rule", folder, value=0.1, meta_steps=0, games=())
    write_rule(folder / "rule", folder, value=0.2, meta_steps=20)
    return folder


def write_rule(
    place: Path,
    run: Path,
    *,
    value: float,
    meta_steps: int,
    games: Sequence[str] = ("Catch-v0",),
    **manifest: object,
) -> Manifest:
    """Write a rule of a run, whose meta-parameters are all ``value``."""
    config = config_loader.load(TrainConfig, [run / "config.yaml"])
    rule = make_rule(config.update_rule)
    shapes = jax.eval_shape(lambda: rule.init_params(jax.random.key(0)))
    params = jax.tree.map(lambda x: np.full(x.shape, value, x.dtype), shapes)
    written = kept_rules.manifest_of(
        config,
        games=games,
        parent=None,
        meta_steps=meta_steps,
        env_steps=40 * meta_steps,
    )
    return save_rule(place, params, written.model_copy(update=manifest))


def store_cells(
    results_dir: Path,
    rule: str | Path | LoadedRule,
    finals: Sequence[float],
    *overrides: str,
    suite: str | None = None,
    **about: object,
) -> None:
    """Write the cells of an evaluation, with seeds 1, 2, ... and these returns.

    Args:
      results_dir: of the evaluation.
      rule: what `load_rule` takes, or a loaded one.
      finals: mean return of each seed.
      *overrides: of the evaluation; games, unless there is a suite.
      suite: of the games.
      **about: more that is known of each cell.
    """
    given = [*overrides, f"seeds={list(range(1, len(finals) + 1))}"]
    given += [] if suite is None else [f"environment.suite={suite}"]
    for cell in plan([rule], overrides=given):
        told = {**ABOUT, "suite": suite, **about}
        store(results_dir, cell, finals[cell.seed - 1], about=told)
