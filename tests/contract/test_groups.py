"""What every rule's agents must do as a group of K peers, and as a group of one."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from contract.recorded import FILE, agent_of, inputs_of, leaves_of
from contract.rule_cases import ALL_RULES, RULES
from contract.single_agent import single_agent_update

from metarl.agents import group
from metarl.agents.agent import AgentState

pytestmark = pytest.mark.usefixtures("x64")

RECORDED = sorted({name.partition("[")[0] for name in np.load(FILE).files})
SINGLE = [name for name, rule in RULES.items() if rule.spec(3).reads == "own"]
PEERS = 3


@functools.cache
def compiled(name: str) -> Callable:
    """Return the update of groups of a rule, compiled once for all tests."""
    agent = agent_of(ALL_RULES[name])
    return jax.jit(
        lambda *inputs: group.update(agent, *inputs), compiler_options=tiny.QUICK
    )


@functools.cache
def three(name: str) -> tuple[tuple, tuple[AgentState, group.UpdateRecord]]:
    """Return the inputs of a group of three, and what its update gives."""
    inputs = inputs_of(name, ALL_RULES[name], peers=PEERS)
    return inputs, compiled(name)(*inputs)


def at(tree: object, index: object) -> object:
    return jax.tree.map(lambda x: x[index], tree)


def results(after: AgentState, record: group.UpdateRecord) -> dict[str, np.ndarray]:
    """Return all that an update gave but for the group's age, by name."""
    return leaves_of(dataclasses.replace(after, env_steps=after.env_steps * 0), record)


def assert_close(found: dict, expected: dict) -> None:
    assert set(found) == set(expected)
    for key, wanted in expected.items():
        np.testing.assert_allclose(
            found[key], wanted, rtol=1e-12, atol=1e-12, err_msg=key
        )


@pytest.mark.parametrize("name", RECORDED)
def test_a_group_of_one_does_what_a_single_agent_did(name):
    found = leaves_of(*compiled(name)(*inputs_of(name, RULES[name])))
    with np.load(FILE) as file:
        recorded = {
            key.removeprefix(name): file[key]
            for key in file.files
            if key.startswith(f"{name}[")
        }
    assert_close({key: found[key] for key in recorded}, recorded)


@pytest.mark.parametrize("name", RECORDED)
def test_a_group_of_one_follows_the_formula(name):
    inputs = inputs_of(name, RULES[name])
    after, _ = compiled(name)(*inputs)
    expected = single_agent_update(name, agent_of(RULES[name]), *inputs)
    tiny.assert_close(at((after.params, after.optimizer.mu), 0), expected)


@pytest.mark.parametrize("name", SINGLE)
def test_three_agents_of_a_single_agent_rule_are_three_groups_of_one(name):
    (meta_params, states, rollouts, key), (after, record) = three(name)
    found = results(after, record)
    for k in range(PEERS):
        one = slice(k, k + 1)
        alone = compiled(name)(meta_params, at(states, one), at(rollouts, one), key)
        assert_close({path: x[one] for path, x in found.items()}, results(*alone))
    assert int(after.env_steps[0]) == 60 + int(rollouts.env_steps.sum())


@pytest.mark.parametrize("name", SINGLE)
def test_what_stands_in_peers_data_reaches_no_single_agent(name):
    (meta_params, states, rollouts, key), (after, record) = three(name)
    first = jnp.arange(PEERS) == 0

    def spoil(x: jax.Array) -> jax.Array:
        is_float = jnp.issubdtype(x.dtype, jnp.floating)
        mask = first.reshape(-1, *(1,) * (x.ndim - 1))
        return jnp.where(mask, x, jnp.nan) if is_float else x

    spoiled = jax.tree.map(spoil, (states, rollouts))
    found = results(*compiled(name)(meta_params, *spoiled, key))
    for path, wanted in results(after, record).items():
        np.testing.assert_array_equal(found[path][0], wanted[0], err_msg=path)
    params = [x for path, x in found.items() if path.startswith("['after'].params")]
    assert not any(np.isfinite(x[1:]).any() for x in params)


@pytest.mark.parametrize("name", ALL_RULES)
def test_the_order_of_peers_does_not_matter(name):
    (meta_params, states, rollouts, key), (after, record) = three(name)
    order = jnp.array([2, 0, 1])
    swapped = at((states, rollouts), order)
    found = results(*compiled(name)(meta_params, *swapped, key))
    expected = results(after, record)
    reads = ALL_RULES[name].spec(tiny.NUM_ACTIONS).reads
    if reads == "pool":  # whose columns change their places too
        found, expected = (
            {k: x for k, x in tree.items() if not k.startswith("['targets']")}
            for tree in (found, expected)
        )
    assert_close(found, {key: x[order] for key, x in expected.items()})
