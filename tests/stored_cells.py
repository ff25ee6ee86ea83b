"""Cells of one rule, their results and their files, without training anything."""

from __future__ import annotations

import csv
import dataclasses

import numpy as np

from metarl.envs.pool import Episodes
from metarl.evaluation import results
from metarl.evaluation.cell_records import (
    CurveRow,
    make_result,
)
from metarl.evaluation.cells import Cell, plan
from metarl.rule_files import load_rule

COLUMNS = (
    "rule,game,status,seed,group_size,env_steps,episodes,mean_return,"
    "human_normalized_score,scored_episodes,frames,protocol,learning_rate,tuned,wall_s,"
    "best_return,worst_return"
)


def cell(game: str = "Catch-v0", seed: int = 1, *overrides: str, **manifest) -> Cell:
    rule = load_rule("actor_critic")
    rule = dataclasses.replace(rule, manifest=rule.manifest.model_copy(update=manifest))
    (found,) = plan(
        [rule],
        overrides=[f"environment.games=[{game}]", f"seeds=[{seed}]", *overrides],
    )
    return found


def store(folder, cell: Cell, mean: float | None = 0.5, **others) -> bool:
    result = make_result(
        cell, env_steps=100, episodes=3, last_returns=[] if mean is None else [mean]
    )
    curve = [CurveRow(50, 2, 1, None), CurveRow(100, 4, 2, 0.25)]
    return results.write_cell(folder, cell, result, curve, {"wall_s": 1.0}, **others)


def rows_of(path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def episodes(*returns: float) -> list[Episodes]:
    """Return what a single agent finished."""
    values = np.array(returns, np.float64)
    return [Episodes(values, np.full(len(returns), 4))]
