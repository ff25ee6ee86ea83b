"""A bandit whose rule changes which data is collected, and nothing else.

A gradient of a fixed record sees nothing of that; evolution strategies do.
"""

from __future__ import annotations

from pathlib import Path

import bandit
import jax
import numpy as np
import tiny_run

from metarl import experiment as experiments
from metarl.config import TrainConfig
from metarl.meta_training import MetaTraining

VALIDATED = 8
"""Steps of a validation rollout, each of which may pay 1."""


def config(folder: Path, *overrides: str) -> TrainConfig:
    return tiny_run.config(
        folder,
        "update_rule={kind: custom, rule: 'bandit:Curious'}",
        "environment={suite: null, games: ['gym:Bandit-v0'], num_envs: 8}",
        f"population={{num_agents: 2, rollout_length: {VALIDATED}}}",
        "population.lifetime_env_steps=1",  # so one unroll
        # Heads on the observation: the policy shares no weight with what tries. Steps
        # are long, and in proportion to gradients.
        "agent.network.torso.hidden=[]",
        "agent.optimizer={learning_rate: 20, eps: 1, max_abs_update: 100}",
        *overrides,
    )


def test_a_gradient_of_the_record_is_exactly_0(tmp_path: Path) -> None:
    given = config(tmp_path, "meta.estimator=reverse")
    with MetaTraining(given) as training:
        training.start()
        (stack,) = training.stacks
        grads, metrics = stack.meta_gradient(training.meta.params, 0)
        # Something was learned, and judged.
        assert np.all(jax.device_get(metrics["inner/update_norm"]) > 0)
        assert np.all(jax.device_get(metrics["pg_loss"]) != 0)
        np.testing.assert_array_equal(grads["eta"], [0, 0])


def paid_by(eta: float, folder: Path) -> float:
    """Return what new agents are paid per step once they have learned by the rule."""
    with MetaTraining(config(folder, "seed=7")) as training:
        training.start()
        (stack,) = training.stacks
        key = experiments.meta_step_key(stack.stack, 7, 0)
        rule = {"eta": jax.device_put(np.float32(eta))}
        _, objective, _ = stack.play(rule, stack.population, key)
        return float(np.mean(objective)) / VALIDATED


def test_evolution_strategies_see_it_and_find_the_better_arm(tmp_path: Path) -> None:
    given = config(
        tmp_path,
        "meta={estimator: es, evolution: {pairs: 4, sigma: 0.3}}",
        "meta.optimizer.learning_rate=0.3",
    )
    with MetaTraining(given) as training:
        training.start()
        (stack,) = training.stacks
        grads, _ = stack.meta_gradient(training.meta.params, 0)
        # To be descended: more curiosity is better, in the eyes of every group.
        assert np.all(jax.device_get(grads["eta"]) < 0)
        for _ in range(6):
            training.meta_step()
        eta = float(training.meta.params["eta"])
    assert paid_by(0, tmp_path) < 2 * min(bandit.PAID)
    assert paid_by(eta, tmp_path) > 0.9 * max(bandit.PAID)
