"""Agents are replaced when their lifetime ends."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import tiny_run
from compared_runs import assert_same_run, run

from metarl.meta_training import MetaTraining


def test_agents_are_replaced_when_their_lifetime_ends(tmp_path: Path) -> None:
    # 2 agents live about 50 steps per meta-step: the first for 75, then both for 150.
    overrides = ["population.lifetime_env_steps=150", "checkpoint.every=1"]
    config = tiny_run.config(tmp_path / "lives", "meta_steps=8", *overrides)
    ages, births = [], []
    with MetaTraining(config) as training:
        training.start()
        for _ in range(8):
            before = training.stacks[0].population.agents.params
            training.meta_step()
            agents = training.stacks[0].population.agents
            ages.append(np.asarray(agents.env_steps)[:, 0])
            births.append(np.asarray(agents.agent_updates)[:, 0] == 0)
            for group in np.flatnonzero(births[-1]):
                after = jax.tree.map(lambda x, g=group: x[g], agents)
                assert after.optimizer.count == 0
                np.testing.assert_array_equal(after.rule_state.lifetime.hidden, 0)
                np.testing.assert_array_equal(
                    after.params["torso/linear_0"]["w"],
                    after.target_params["torso/linear_0"]["w"],
                )
                assert not np.array_equal(
                    after.params["torso/linear_0"]["w"],
                    before["torso/linear_0"]["w"][group],
                )
    assert np.max(ages) < 150
    first = [int(np.argmax(np.array(births)[:, group])) for group in range(2)]
    assert first == [1, 3]
    np.testing.assert_array_equal(training.lives, np.sum(births, axis=0))
    assert training.lives.sum() >= 4


def test_resuming_through_births_changes_nothing(tmp_path: Path) -> None:
    overrides = ["population.lifetime_env_steps=150", "checkpoint.every=1"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert run(tiny_run.config(whole, "meta_steps=6", *overrides)) == 0
    assert run(tiny_run.config(stopped, "meta_steps=2", *overrides)) == 0
    assert run(tiny_run.resumed(stopped, "meta_steps=6"), resume=stopped) == 0
    assert_same_run(whole, stopped)
