from __future__ import annotations

import jax
import numpy as np
import pytest

from metarl.agents import population
from metarl.agents.agent import Agent, AgentState
from metarl.agents.build import build_agent
from metarl.config import (
    AgentConfig,
    EnvironmentConfig,
    MLPTorso,
    NetworkConfig,
    PolicyGradientConfig,
)
from metarl.envs.tasks import resolve_environment
from metarl.rollout import actor as actors
from metarl.rollout.actor import Actor, split_groups
from metarl.rollout.memory import empty_for_device
from metarl.rules import make_rule

ENVIRONMENT = EnvironmentConfig(suite="catch_5x5", num_envs=4)
(TASK,) = resolve_environment(ENVIRONMENT)


def make_agent() -> Agent:
    config = AgentConfig(network=NetworkConfig(torso=MLPTorso(hidden=(8,))))
    rule = make_rule(PolicyGradientConfig())
    return build_agent(config, rule, 3, lifetime_env_steps=1000)


def keys_of(*seeds: int) -> jax.Array:
    """Return a key per group, ``[G, 1]``."""
    return jax.vmap(jax.random.key)(np.array(seeds, np.uint32))[:, None]


def make_states(*seeds: int) -> AgentState:
    observations = np.zeros((1, 5, 5), np.float32)
    return population.init_each(make_agent(), keys_of(*seeds), observations)


def make_actor(groups: int, *, chunk: int = 1, **options: object) -> Actor:
    settings = {"seeds": [7] * groups, **options}
    return Actor(make_agent(), [TASK] * groups, ENVIRONMENT, chunk=chunk, **settings)


def play(actor: Actor, states: AgentState, *, rollouts: int = 2, length: int = 6):
    actor.start()
    try:
        return [
            jax.device_get(actor.collect(states, length, jax.random.key(i)))
            for i in range(rollouts)
        ]
    finally:
        actor.close()


def assert_same(left: object, right: object) -> None:
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_array_equal(a, b)


def test_rollouts_follow_one_another_without_a_gap():
    first, second = play(make_actor(2), make_states(1, 2))
    assert first.observations.shape == (2, 1, 7, 4, 5, 5)
    assert first.transitions.rewards.shape == (2, 1, 6, 4)
    np.testing.assert_array_equal(
        first.observations[:, :, -1], second.observations[:, :, 0]
    )


def test_counts_steps_that_exist_and_sums_rewards():
    first, second = play(make_actor(1), make_states(1))
    # An episode on a 5 x 5 board is 4 steps; the reset after it is no transition.
    ends = np.array([[False] * 3 + [True, False, False]]).T
    np.testing.assert_array_equal(
        first.transitions.is_terminal[0, 0], np.repeat(ends, 4, axis=1)
    )
    invalid = np.array([[True] * 4 + [False, True]]).T
    np.testing.assert_array_equal(
        first.transitions.valid[0, 0], np.repeat(invalid, 4, axis=1)
    )
    assert first.env_steps[0, 0] == 4 * 5
    np.testing.assert_array_equal(first.returns, first.transitions.rewards.sum(axis=2))
    assert set(np.unique(first.returns)) <= {-1.0, 1.0}
    np.testing.assert_array_equal(first.success, first.returns > 0)
    assert second.env_steps[0, 0] == 4 * 5


def test_episodes_are_counted_once():
    actor = make_actor(2)
    actor.start()
    states = make_states(1, 2)
    rollouts = [
        jax.device_get(actor.collect(states, 10, jax.random.key(i))) for i in range(2)
    ]
    episodes = actor.drain_episodes()
    for g in range(2):
        rewards = np.concatenate([r.transitions.rewards[g, 0] for r in rollouts])
        ends = np.concatenate([r.transitions.is_terminal[g, 0] for r in rollouts])
        # Rewards come with the end of an episode only, in order of time.
        np.testing.assert_array_equal(episodes[g][0].returns, rewards[ends])
        assert set(episodes[g][0].lengths.tolist()) == {4}
    assert [len(e[0].returns) for e in actor.drain_episodes()] == [0, 0]
    actor.close()


def test_chunks_change_nothing():
    states = make_states(1, 2, 3)
    apart = play(make_actor(3, chunk=1), states)
    together = play(make_actor(3, chunk=2), states)
    for a, b in zip(apart, together, strict=True):
        np.testing.assert_array_equal(a.observations, b.observations)
        np.testing.assert_array_equal(a.transitions.actions, b.transitions.actions)
        np.testing.assert_allclose(
            a.transitions.behaviour_logits,
            b.transitions.behaviour_logits,
            rtol=1e-5,
            atol=1e-7,
        )


def test_groups_of_one_base_seed_play_differently():
    (rollout,) = play(make_actor(2), make_states(1, 1), rollouts=1)
    assert np.any(rollout.observations[0] != rollout.observations[1])


def test_recorded_logits_are_those_of_the_recorded_observations():
    # A device that read the host's memory too late would have seen other ones. Of the
    # chunks, one lies in one piece of that memory and the other does not.
    states = make_states(1, 2, 3)
    network = make_agent().network
    apply = jax.jit(jax.vmap(lambda params, x: network.apply(params, x)["logits"]))
    params = jax.tree.map(lambda x: x[:, 0], states.params)
    for rollout in play(make_actor(3, chunk=2), states):
        seen = rollout.observations[:, 0, :-1]
        found = rollout.transitions.behaviour_logits[:, 0]
        expected = np.asarray(apply(params, seen.reshape(3, -1, 5, 5)))
        expected = expected.reshape(found.shape)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
        assert np.abs(expected[:, 1:] - expected[:, :-1]).max() > 1e-4


def test_a_device_with_memory_of_its_own_gets_the_same():
    states, apart = make_states(1, 2), make_actor(2)
    apart._shares_memory = False  # as on an accelerator: all that moves is said
    assert_same(play(apart, states), play(make_actor(2), states))


def test_own_keys_and_seed_index_make_a_group_independent_of_its_place():
    def of_seed_5(seeds: list[int]):
        actor = make_actor(len(seeds), seeds=seeds, seed_indices=[0] * len(seeds))
        actor.start()
        rollout = actor.collect(make_states(*seeds), 12, keys_of(*seeds))
        actor.close()
        place = seeds.index(5)
        return jax.tree.map(lambda x: x[place], jax.device_get(rollout))

    alone = of_seed_5([5])
    assert_same(of_seed_5([3, 9, 5]), alone)
    assert_same(of_seed_5([5, 4]), alone)


def test_takes_agents_in_chunks():
    states = make_states(1, 2)
    chunks = [jax.tree.map(lambda x, i=i: x[i : i + 1], states) for i in range(2)]
    assert_same(play(make_actor(2), chunks), play(make_actor(2), states))


def test_cutting_into_chunks_compiles_once_per_size():
    tree = {"x": np.arange(13.0).reshape(13, 1), "keys": keys_of(*range(13))}
    on_device = jax.device_put(tree)
    before = actors._chunk._cache_size()
    cut = split_groups(on_device, (3, 3, 3, 3, 1))
    assert actors._chunk._cache_size() == before + 2
    joined = jax.tree.map(lambda *x: np.concatenate(x), *(c["x"] for c in cut))
    np.testing.assert_array_equal(joined, tree["x"])
    ends = [jax.random.key_data(c["keys"][-1, 0])[1] for c in cut]
    assert [int(seed) for seed in ends] == [2, 5, 8, 11, 12]


def test_restored_pools_go_on_to_the_bit():
    states = make_states(1, 2)
    actor = make_actor(2)
    actor.start()
    actor.collect(states, 9, jax.random.key(0))
    saved = actor.state()
    expected = jax.device_get(actor.collect(states, 9, jax.random.key(1)))
    actor.close()
    other = make_actor(2)
    other.restore(saved)
    assert_same(other.collect(states, 9, jax.random.key(1)), expected)
    other.close()


def test_a_new_epoch_is_a_new_seed():
    config = ENVIRONMENT.model_copy(update={"epoch_steps": 6})
    actor = Actor(make_agent(), [TASK], config, seeds=[7])
    first, second = play(actor, make_states(1))
    # Rebuilt before the second rollout: all episodes begin with it.
    assert second.transitions.is_terminal[0, 0].argmax(axis=0).tolist() == [3] * 4
    assert np.any(first.observations[:, :, 0] != second.observations[:, :, 0])


def test_later_rollouts_leave_earlier_ones_alone():
    actor = make_actor(2)
    actor.start()
    states = make_states(1, 2)
    first = actor.collect(states, 6, jax.random.key(0))
    seen = jax.tree.map(np.array, first)  # copies: the host may share its memory
    for i in range(3):
        actor.collect(states, 6, jax.random.key(i))
    assert_same(first, seen)
    actor.close()


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="needs a device on the host")
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.bool_])
def test_a_cpu_device_reads_the_hosts_memory(dtype: type):
    for size in (1, 7, 4096):
        array = empty_for_device((size, 3), np.dtype(dtype))
        assert (array.shape, array.dtype) == ((size, 3), dtype)
        on_device = jax.device_put(array)
        assert on_device.unsafe_buffer_pointer() == array.ctypes.data


def test_times_are_those_since_the_last_call():
    actor = make_actor(1)
    play(actor, make_states(1))
    times = actor.take_times()
    assert set(times) == {"env", "inference", "transfer"}
    assert all(value > 0 for value in times.values())
    assert set(actor.take_times().values()) == {0.0}


@pytest.mark.parametrize("value", ["own", "learn"])
def test_all_transitions_are_the_agents_own_to_learn(value: str):
    (rollout,) = play(make_actor(1), make_states(1), rollouts=1)
    assert np.all(getattr(rollout.transitions, value) == 1)
