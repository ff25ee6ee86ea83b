"""Populations: how groups are mapped changes no result and no compile time."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from metarl.agents import group, population
from metarl.agents.agent import AgentState
from metarl.rules.base import TargetNetwork
from metarl.types import Rollout

AGENT = tiny.agent_for(
    tiny.Scaled(peer_cost=0.3, target_network=TargetNetwork("ema", 0.9))
)
META_PARAMS = {"gain": 1.5, "bias": -0.25}
OBSERVATIONS = jnp.zeros((1, tiny.OBSERVATION))


def inputs(groups: int, peers: int = 2) -> tuple[AgentState, Rollout, jax.Array]:
    new = partial(population.init, AGENT, groups=groups, peers=peers)
    states = jax.jit(new, compiler_options=tiny.QUICK)(jax.random.key(1), OBSERVATIONS)
    keys = jax.random.split(jax.random.key(2), groups)
    return states, tiny.rollouts(0, groups, peers), keys


def update(
    states: AgentState, rollouts: Rollout, keys: jax.Array, chunk: int
) -> tuple[AgentState, dict[str, jax.Array]]:
    return population.update(AGENT, META_PARAMS, states, rollouts, keys, chunk=chunk)


def test_agents_of_a_population_are_all_different() -> None:
    states, _, _ = inputs(3)
    w = np.asarray(states.params["torso"]["w"])
    assert w.shape == (3, 2, tiny.OBSERVATION, tiny.HIDDEN)
    assert len(np.unique(w.reshape(6, -1), axis=0)) == 6
    np.testing.assert_array_equal(states.env_steps, np.zeros((3, 2)))


def test_chunks_change_nothing(x64: None) -> None:
    given = inputs(4)
    results = {
        chunk: jax.jit(
            lambda *x, c=chunk: update(*x, chunk=c), compiler_options=tiny.QUICK
        )(*given)
        for chunk in (1, 2, 3, 4)
    }
    for chunk in (2, 3, 4):
        tiny.assert_close(results[1], results[chunk])
    update_group = jax.jit(partial(group.update, AGENT), compiler_options=tiny.QUICK)
    # Each group is updated as it would be by itself.
    for g in range(4):
        states, rollouts, key = jax.tree.map(lambda x, g=g: x[g], given)
        alone, record = update_group(META_PARAMS, states, rollouts, key)
        after, metrics = jax.tree.map(lambda x, g=g: x[g], results[1])
        tiny.assert_close((after, metrics), (alone, record.metrics))


def num_equations(jaxpr: object) -> int:
    """Count equations, those of inner jaxprs included."""
    count = 0
    for equation in jaxpr.eqns:
        count += 1
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                count += num_equations(inner)
    return count


@pytest.mark.parametrize("groups", [1, 4])
def test_a_chunk_of_more_agents_than_there_are_is_all_of_them(groups: int) -> None:
    given = inputs(groups)
    programs = [
        jax.jit(partial(update, chunk=chunk)).lower(*given).as_text()
        for chunk in (groups, 9, 1)
    ]
    assert programs[0] == programs[1]
    assert (programs[0] == programs[2]) == (groups == 1)


@pytest.mark.parametrize("chunk", [1, 2, 16])
def test_the_program_does_not_grow_with_the_number_of_groups(chunk: int) -> None:
    sizes = {
        groups: num_equations(
            jax.make_jaxpr(lambda *x: update(*x, chunk=chunk))(*inputs(groups)).jaxpr
        )
        for groups in (2, 4, 6)
    }
    assert sizes[4] == sizes[6]
    # With as many groups as the chunk takes there is no loop around them.
    assert sizes[2] <= sizes[4]
    assert sizes[2] > 100


def test_a_second_update_does_not_compile_again() -> None:
    traces = []

    @jax.jit
    def step(states: AgentState, rollouts: Rollout, keys: jax.Array) -> AgentState:
        traces.append(1)
        return update(states, rollouts, keys, chunk=1)[0]

    states, _, keys = inputs(2)
    for n in range(3):
        states = step(states, tiny.rollouts(n, 2, 2), keys)
    assert len(traces) == 1
    np.testing.assert_array_equal(states.agent_updates, np.full((2, 2), 3))
