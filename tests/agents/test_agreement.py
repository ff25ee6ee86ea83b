"""How far peers agree: by hand, whoever comes first, without those that failed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from metarl.agents import agreement
from metarl.agents.agent import Agent, AgentState
from metarl.agents.agreement import Agreement, agreement_of
from metarl.config import QLearningConfig, ScalarValuesConfig
from metarl.rules.q_learning import QLearning
from metarl.types import Rollout

POLICY = tiny.agent_for(tiny.Scaled())
VALUES = tiny.agent_for(
    QLearning(QLearningConfig(values=ScalarValuesConfig(), epsilon_fraction=0.5))
)


@cache
def compiled() -> Callable:
    return jax.jit(
        agreement_of,
        static_argnums=0,
        static_argnames="most_states",
        compiler_options=tiny.QUICK,
    )


def measure(
    agent: Agent, states: AgentState, rollouts: Rollout, **options: int
) -> Agreement:
    return jax.device_get(compiled()(agent, states, rollouts, **options))


def agents_of(agent: Agent, peers: int, *, env_steps: int = 250) -> AgentState:
    observations = jnp.zeros((1, tiny.OBSERVATION))
    keys = jax.random.split(jax.random.key(7), peers)
    new = jax.jit(jax.vmap(lambda k: agent.init(k, observations)))(keys)
    return dataclasses.replace(new, env_steps=jnp.full(peers, env_steps, jnp.int32))


def at(tree: object, index: object) -> object:
    return jax.tree.map(lambda x: x[index], tree)


def by_hand(logits: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """Return greedy agreement and divergence, pair by pair and state by state."""
    probs = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    alike, divergences = [], []
    for s in np.flatnonzero(counts):
        for i in range(len(probs)):
            for j in range(i):
                p, q = probs[i, s], probs[j, s]
                m = (p + q) / 2
                alike.append(p.argmax() == q.argmax())
                divergences.append(
                    (np.sum(p * np.log(p / m)) + np.sum(q * np.log(q / m))) / 2
                )
    return float(np.mean(alike)), float(np.mean(divergences))


def test_two_policies_by_hand() -> None:
    excluded = -np.inf
    logits = jnp.array(
        [
            [[0.0, 0.0, excluded], [1.0, excluded, excluded], [9.0, 8.0, 7.0]],
            [[0.0, excluded, excluded], [excluded, 1.0, excluded], [7.0, 8.0, 9.0]],
        ]
    )
    both = jnp.array([True, True])
    first = agreement.compare(logits, both, jnp.array([True, False, False]))
    # (1/2, 1/2) and (1, 0), whose mean is (3/4, 1/4).
    expected = (0.5 * np.log(2 / 3) + 0.5 * np.log(2) + np.log(4 / 3)) / 2
    assert float(first.divergence) == pytest.approx(expected, rel=1e-5)
    assert (float(first.greedy), int(first.present)) == (1.0, 2)
    # Policies that share no action are as far apart as can be.
    apart = agreement.compare(logits, both, jnp.array([False, True, False]))
    assert float(apart.divergence) == pytest.approx(np.log(2), rel=1e-6)
    assert float(apart.greedy) == 0.0
    # Over both states; the third does not count.
    two = agreement.compare(logits, both, jnp.array([True, True, False]))
    assert float(two.divergence) == pytest.approx((expected + np.log(2)) / 2, rel=1e-5)
    assert float(two.greedy) == 0.5


@pytest.mark.usefixtures("x64")
def test_it_is_the_mean_over_pairs_in_the_states_of_all() -> None:
    states, rollouts = agents_of(POLICY, 3), tiny.rollouts(11, 3)
    found = measure(POLICY, states, rollouts)
    pool = tiny.pooled(rollouts)
    seen = pool.observations[:-1].reshape(-1, tiny.OBSERVATION)
    logits = [POLICY.network.apply(at(states.params, k), seen) for k in range(3)]
    expected = by_hand(
        np.array([x["logits"] for x in logits]), pool.transitions.valid.reshape(-1)
    )
    np.testing.assert_allclose([found.greedy, found.divergence], expected, rtol=1e-12)
    assert 0 < found.greedy < 1
    assert found.present == 3


@pytest.mark.usefixtures("x64")
def test_the_order_of_peers_does_not_matter() -> None:
    states, rollouts = agents_of(POLICY, 3), tiny.rollouts(11, 3)
    order = jnp.array([2, 0, 1])
    found, swapped = (
        # 4 of the 15 of each.
        measure(POLICY, at(states, index), at(rollouts, index), most_states=12)
        for index in (jnp.arange(3), order)
    )
    np.testing.assert_allclose(found.greedy, swapped.greedy, rtol=1e-12)
    np.testing.assert_allclose(found.divergence, swapped.divergence, rtol=1e-12)
    every = measure(POLICY, states, rollouts)
    assert abs(float(every.divergence - found.divergence)) > 1e-6


def test_identical_peers_agree_fully() -> None:
    one = agents_of(POLICY, 1)
    states = jax.tree.map(lambda x: jnp.repeat(x, 3, axis=0), one)
    found = measure(POLICY, states, tiny.rollouts(11, 3))
    assert found.greedy == 1.0
    assert 0 <= found.divergence < 1e-6


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nothing_of_a_failed_peer_counts(bad: float) -> None:
    states, rollouts = agents_of(POLICY, 3), tiny.rollouts(11, 3)
    two = jnp.array([0, 2])
    expected = measure(POLICY, at(states, two), at(rollouts, two))

    def spoil(x: jax.Array) -> jax.Array:
        is_float = jnp.issubdtype(x.dtype, jnp.floating)
        return x.at[1].set(bad) if is_float else x

    spoiled = dataclasses.replace(states, params=jax.tree.map(spoil, states.params))
    unseen = dataclasses.replace(rollouts, observations=spoil(rollouts.observations))
    for found in (
        measure(POLICY, spoiled, rollouts),  # its states do not count either
        measure(POLICY, states, unseen),
        measure(POLICY, spoiled, unseen),
    ):
        assert (expected.present, found.present) == (2, 2)
        np.testing.assert_allclose(found.greedy, expected.greedy, rtol=1e-12)
        np.testing.assert_allclose(found.divergence, expected.divergence, rtol=1e-12)
    everybody = measure(POLICY, states, rollouts)
    assert abs(float(everybody.divergence - expected.divergence)) > 1e-6


def test_of_one_alone_there_is_no_agreement() -> None:
    nobody = agreement.compare(
        jnp.zeros((2, 4, 3)), jnp.array([True, False]), jnp.ones(4, bool)
    )
    assert np.isnan([nobody.greedy, nobody.divergence]).all()
    assert int(nobody.present) == 1
    nowhere = agreement.compare(
        jnp.zeros((2, 4, 3)), jnp.array([True, True]), jnp.zeros(4, bool)
    )
    assert np.isnan([nowhere.greedy, nowhere.divergence]).all()


@pytest.mark.usefixtures("x64")
def test_states_whose_transition_does_not_exist_do_not_count() -> None:
    states, rollouts = agents_of(POLICY, 2), tiny.rollouts(11, 2)
    valid = np.asarray(rollouts.transitions.valid)
    seen = np.array(rollouts.observations)
    seen[:, :-1][~valid] = 50.0
    seen[:, -1] = -50.0  # behind the last transition
    other = dataclasses.replace(rollouts, observations=jnp.asarray(seen))
    tiny.assert_same_bits(
        *(measure(POLICY, states, given) for given in (rollouts, other))
    )
    seen[:, 0] = 50.0
    moved = dataclasses.replace(rollouts, observations=jnp.asarray(seen))
    assert measure(POLICY, states, moved).divergence != pytest.approx(
        measure(POLICY, states, rollouts).divergence, rel=1e-3
    )


@pytest.mark.usefixtures("x64")
def test_q_learners_are_compared_by_how_they_act() -> None:
    # A quarter of the lifetime: epsilon is half-way to its end.
    states, rollouts = agents_of(VALUES, 2), tiny.rollouts(11, 2)
    rule, clock = VALUES.rule, VALUES.clock(at(states, 0))
    epsilon = float(rule.epsilon(clock))
    assert 0.4 < epsilon < 0.6
    pool = tiny.pooled(rollouts)
    seen = pool.observations[:-1].reshape(-1, tiny.OBSERVATION)
    greedy = np.array(
        [
            VALUES.network.apply(at(states.params, k), seen)["q"][..., 0].argmax(-1)
            for k in range(2)
        ]
    )
    alike = (greedy[0] == greedy[1])[pool.transitions.valid.reshape(-1)].mean()
    assert 0 < alike < 1
    # Where greedy actions differ the policies are (x, y, y) and (y, x, y).
    y = epsilon / tiny.NUM_ACTIONS
    x, m = 1 - 2 * y, (1 - y) / 2
    apart = x * np.log(x / m) + y * np.log(y / m)
    found = measure(VALUES, states, rollouts)
    assert float(found.greedy) == pytest.approx(alike)
    assert float(found.divergence) == pytest.approx((1 - alike) * apart)
