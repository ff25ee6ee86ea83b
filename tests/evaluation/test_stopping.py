"""An evaluation that is told to stop keeps what is done, and goes on later."""

from __future__ import annotations

import json
from pathlib import Path

from metarl.config import ActorCriticConfig
from metarl.evaluation import evaluate
from metarl.evaluation.cell_records import (
    Result,
)
from metarl.evaluation.runner import BatchRun
from metarl.rule_files import LoadedRule, new_manifest
from metarl.rules import make_rule

SETTINGS = [
    "environment.suite=catch_5x5",
    "environment.num_envs=4",
    "rollout_length=6",
    "agent.network.torso.hidden=[8]",
    "env_steps=100",
    "curve_points=2",
    "seeds=[1, 2]",
    "cells_at_once=1",
    "tracking.wandb=disabled",
]


def test_a_stop_comes_between_rollouts_and_loses_no_cell(tmp_path, monkeypatch):
    config = ActorCriticConfig(num_bins=5, max_abs_value=2.0)
    rule = LoadedRule(make_rule(config), {}, new_manifest(config), "small")
    rollouts = []
    iterate = BatchRun._iterate

    def counted(self):
        rollouts.append(self)
        return iterate(self)

    monkeypatch.setattr(BatchRun, "_iterate", counted)

    def evaluated(folder: Path, stop_after: int) -> list[Result]:
        overrides = [*SETTINGS, f"results_dir={folder}"]
        del rollouts[:]
        return evaluate(
            [rule],
            overrides=overrides,
            told_to_stop=lambda: len(rollouts) >= stop_after,
        )

    def learned(folder: Path, seed: int) -> object:
        path = folder / "cells" / f"small__Catch-v0__seed{seed}.json"
        cell = json.loads(path.read_text())
        return cell["curve"]

    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert len(evaluated(whole, 1000)) == 2
    of_a_cell = len(rollouts) // 2
    (first,) = evaluated(stopped, of_a_cell + 1)
    assert (first.seed, len(rollouts)) == (1, of_a_cell + 1)
    assert [row.seed for row in evaluated(stopped, 1000)] == [1, 2]
    assert len(rollouts) == of_a_cell
    assert all(learned(stopped, seed) == learned(whole, seed) for seed in (1, 2))
