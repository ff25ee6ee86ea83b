"""Mutual rules in a group's update: minibatches of transitions, several epochs."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from metarl.agents import group
from metarl.agents.agent import AgentState
from metarl.config import MUTUAL, PPOConfig
from metarl.config.mutual import bases
from metarl.rules import make_rule
from metarl.rules.base import Metrics, UpdateRule
from metarl.types import Rollout

pytestmark = pytest.mark.usefixtures("x64")

KINDS = [kind for kind in MUTUAL if "ppo" in bases(kind)]
BASE = PPOConfig(epochs=2, minibatches=3)
# Flags under which every rule fires on these rollouts.
OPTIONS = {"success_gated_transfer": {"gated": False}}


def update(rule: UpdateRule, peers: int) -> tuple[AgentState, Metrics]:
    """Return a group after one update of small agents, and its metrics ``[K]``."""
    agent = tiny.agent_for(rule, learning_rate=1e-2)
    keys = jax.random.split(jax.random.key(0), peers)
    zeros = jnp.zeros((1, tiny.OBSERVATION))
    states = jax.vmap(lambda k: agent.init(k, zeros))(keys)

    @functools.partial(jax.jit, compiler_options=tiny.QUICK)
    def run(states: AgentState, rollouts: Rollout) -> tuple[AgentState, Metrics]:
        after, record = group.update(agent, {}, states, rollouts, jax.random.key(1))
        return after, record.metrics

    return run(states, tiny.rollouts(0, peers))


@functools.cache
def base_update(peers: int) -> tuple[AgentState, Metrics]:
    return update(make_rule(BASE), peers)


@pytest.mark.parametrize("kind", KINDS)
def test_agents_without_a_coefficient_update_as_those_of_the_base(kind):
    options = OPTIONS.get(kind, {})
    config = MUTUAL[kind](base=BASE, coefficient=0.0, **options)
    after, metrics = update(make_rule(config), 2)
    expected, base_metrics = base_update(2)
    tiny.assert_close(after.params, expected.params)
    for name, value in base_metrics.items():
        np.testing.assert_allclose(metrics[name], value, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_peers_change_every_agent(kind):
    config = MUTUAL[kind](base=BASE, **OPTIONS.get(kind, {}))
    after, metrics = update(make_rule(config), 2)
    expected, _ = base_update(2)
    for k in range(2):
        pairs = tiny.pairs(after.params, expected.params)
        assert any(np.any(x[k] != y[k]) for x, y in pairs)
    for name, value in metrics.items():
        assert np.all(np.isfinite(value)), name
