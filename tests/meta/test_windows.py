"""Windows of which some updates are before the agents' birth, and those that slide."""

from __future__ import annotations

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from metarl.meta.estimators import ExactEstimator, ReverseMode
from metarl.meta.inner_loop import InnerLoop, Window
from metarl.meta.mixed_mode import MixedMode
from metarl.rules.base import TargetNetwork, UpdateRule
from metarl.rules.disco import Disco

DISCO = Disco(tiny.DISCO)
PULL = tiny.Scaled(peer_cost=0.3, target_network=TargetNetwork("copy", every=2))


@cache
def loop_for(rule: UpdateRule, **settings: object) -> InnerLoop:
    return dataclasses.replace(tiny.inner_loop_for(tiny.agent_for(rule)), **settings)


def window_for(rule: UpdateRule, *, updates: int) -> Window:
    """Return one group's window ``[1, ...]``, in the middle of its agents' lives."""
    peers = 1 if rule is DISCO else 2
    window = tiny.window_for(loop_for(rule), 3, updates=updates, peers=peers)
    window = dataclasses.replace(window, agents=tiny.warm(window.agents, 5))
    return jax.tree.map(lambda x: x[None], window)


def newest(window: Window, updates: int) -> Window:
    """Return the window of the last updates alone."""
    rollouts, keys = jax.tree.map(
        lambda x: x[:, -updates:], (window.rollouts, window.keys)
    )
    return dataclasses.replace(window, rollouts=rollouts, keys=keys)


def marked(window: Window, *valid: bool) -> Window:
    return dataclasses.replace(window, valid=jnp.array([valid]))


def gradient(kind: type[ExactEstimator], loop: InnerLoop, window: Window) -> tuple:
    params = (
        tiny.disco_params(7)
        if loop.agent.rule is DISCO
        else {"gain": jnp.asarray(1.5), "bias": jnp.asarray(-0.25)}
    )
    compute = jax.jit(kind(loop).gradient, compiler_options=tiny.QUICK)
    return jax.device_get(compute(params, window))


def assert_equal(found: tuple, expected: tuple) -> None:
    tiny.assert_close(found, expected, tolerance=1e-12)
    assert sum(np.linalg.norm(x) for x in jax.tree.leaves(expected[0])) > 1e-4


@pytest.mark.parametrize(
    ("kind", "rule"),
    [(ReverseMode, PULL), (MixedMode, PULL), (MixedMode, DISCO)],
    ids=["reverse", "mixed", "mixed disco"],
)
def test_updates_before_the_birth_are_as_if_the_window_were_shorter(
    x64: None, kind: type[ExactEstimator], rule: UpdateRule
) -> None:
    loop = loop_for(rule)
    window = window_for(rule, updates=4)
    masked = gradient(kind, loop, marked(window, False, False, True, True))
    assert_equal(masked, gradient(kind, loop, newest(window, 2)))


@pytest.mark.parametrize("kind", [ReverseMode, MixedMode])
def test_what_agents_leave_behind_that_diverged_reaches_nobody(
    x64: None, kind: type[ExactEstimator]
) -> None:
    loop = loop_for(PULL)
    window = marked(window_for(PULL, updates=4), False, False, True, True)

    def spoiled(x: jax.Array) -> jax.Array:
        is_float = jnp.issubdtype(x.dtype, jnp.floating)
        return x.at[:, :2].set(jnp.nan) if is_float else x

    left = jax.tree.map(spoiled, window.rollouts)
    found = gradient(kind, loop, dataclasses.replace(window, rollouts=left))
    tiny.assert_same_bits(found, gradient(kind, loop, window))


@pytest.mark.parametrize("kind", [ReverseMode, MixedMode])
def test_a_window_without_a_birth_is_a_block(
    x64: None, kind: type[ExactEstimator]
) -> None:
    loop, window = loop_for(PULL), window_for(PULL, updates=3)
    all_valid = gradient(kind, loop, marked(window, True, True, True))
    expected = gradient(kind, loop, window)
    assert_equal(all_valid, expected)
    # The value functions of a window that slides by all of it are those at its end.
    slid = gradient(kind, loop_for(PULL, values_after=3), window)
    assert_equal(slid, expected)


@pytest.mark.parametrize("kind", [ReverseMode, MixedMode])
def test_value_functions_go_on_where_the_next_window_begins(
    x64: None, kind: type[ExactEstimator]
) -> None:
    window = window_for(PULL, updates=4)
    grads, values, metrics = gradient(kind, loop_for(PULL, values_after=1), window)
    expected = gradient(kind, loop_for(PULL), window)
    assert_equal((grads, metrics), (expected[0], expected[2]))
    first = dataclasses.replace(
        window,
        rollouts=jax.tree.map(lambda x: x[:, :1], window.rollouts),
        keys=window.keys[:, :1],
    )
    _, after_one, _ = gradient(kind, loop_for(PULL), first)
    tiny.assert_close(values, after_one)
    np.testing.assert_array_equal(values.optimizer.count, 1)
    np.testing.assert_array_equal(expected[1].optimizer.count, 4)
