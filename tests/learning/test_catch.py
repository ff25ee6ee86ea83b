"""Agents really learn: the commands of the README, on EnvPool's Catch.

The fast test runs with the others, the slow ones by `make test-slow`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from metarl.evaluation import evaluate
from metarl.evaluation.results import (
    read_cells,
)
from metarl.rule_files import import_rule


@pytest.fixture(autouse=True)
def _no_wandb(monkeypatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")


def test_actor_critic_learns_a_small_board(tmp_path: Path):
    # A random policy's mean is -0.6; this one reaches 0.9 after 34,000 steps.
    (result,) = evaluate(
        ["actor_critic"],
        overrides=[
            "environment.suite=catch_5x5",
            "environment.num_envs=16",
            "rollout_length=8",
            "agent.network.torso.hidden=[64]",
            "agent.optimizer.learning_rate=3e-3",
            "env_steps=40000",
            "seeds=[1]",
            f"results_dir={tmp_path}",
        ],
    )
    assert result.mean_return >= 0.8


@pytest.mark.slow
def test_actor_critic_learns_catch_with_its_default_settings(tmp_path: Path):
    results = evaluate(
        ["actor_critic"],
        overrides=[
            "environment.suite=catch",
            "seeds=[1, 2, 3, 4, 5]",
            f"results_dir={tmp_path}",
        ],
    )
    assert len(results) == 5
    assert min(result.mean_return for result in results) >= 0.9


@pytest.mark.slow
def test_disco103_learns_catch_within_1000_updates(tmp_path: Path, reference: Path):
    """The published rule does on EnvPool what it does in the released notebook.

    There, on an 8 x 8 board, the mean return passes 0.9 after about 700 updates.
    """
    rule = import_rule(reference / "data" / "disco_103.npz", tmp_path / "disco103")
    evaluate(
        [rule],
        overrides=[
            "environment.suite=catch_8x8",
            "env_steps=52500",  # some 1,000 updates
            "seeds=[1, 2, 3, 4, 5]",
            f"results_dir={tmp_path}",
        ],
    )
    learned = {
        record.result.seed
        for record in read_cells(tmp_path)
        if any(
            point.mean_return is not None
            and point.mean_return >= 0.9
            and point.agent_updates <= 1000
            for point in record.curve
        )
    }
    assert len(learned) >= 4
