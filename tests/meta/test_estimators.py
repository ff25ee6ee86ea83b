"""Reverse mode over a population: chunks, its record, its program's size."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from metarl.agents.agent import AgentState
from metarl.meta.estimators import Population, ReverseMode
from metarl.meta.inner_loop import Window
from metarl.types import Params

LOOP = tiny.inner_loop_for(tiny.agent_for(tiny.Scaled(peer_cost=0.3)))
META_PARAMS = {"gain": jnp.asarray(1.5), "bias": jnp.asarray(-0.25)}


def windows(groups: int) -> Window:
    return tiny.stack(
        [tiny.window_for(LOOP, g + 1, updates=2, peers=2) for g in range(groups)]
    )


def at(tree: object, index: int) -> object:
    return jax.tree.map(lambda x: x[index], tree)


def test_chunks_change_nothing(x64: None) -> None:
    window = windows(3)
    results = {
        chunk: jax.jit(
            ReverseMode(LOOP, chunk=chunk).gradient, compiler_options=tiny.QUICK
        )(META_PARAMS, window)
        for chunk in (1, 2, 3)
    }
    tiny.assert_close(results[1], results[2])
    tiny.assert_close(results[1], results[3])
    grads, values, metrics = results[1]
    gradient = jax.jit(jax.grad(LOOP.loss, has_aux=True), compiler_options=tiny.QUICK)
    for g in range(3):
        alone, (_, *rest) = gradient(META_PARAMS, at(window, g))
        tiny.assert_close(at((grads, values, metrics), g), (alone, *rest))
    assert np.all(np.abs(np.asarray(grads["gain"])) > 1e-4)


@pytest.mark.parametrize("chunk", [1, 8])
def test_the_program_does_not_grow_with_the_number_of_groups(chunk: int) -> None:
    estimator = ReverseMode(LOOP, chunk=chunk)
    sizes = [
        len(str(jax.make_jaxpr(estimator.gradient)(META_PARAMS, window)).splitlines())
        for window in (windows(2), windows(5))
    ]
    assert sizes[0] == sizes[1]


def test_it_plays_once_and_differentiates_the_record(x64: None) -> None:
    estimator = ReverseMode(LOOP)
    window, calls = windows(2), []
    start = Population(window.agents, window.values)
    acted: AgentState = dataclasses.replace(
        start.agents, env_steps=start.agents.env_steps + 60
    )

    def play(
        meta_params: Params, population: Population, key: jax.Array
    ) -> tuple[Population, jax.Array, Window]:
        calls.append((meta_params, population, key))
        after = dataclasses.replace(population, agents=acted)
        return after, jnp.zeros(2), window

    key = jax.random.key(0)
    after, grads, metrics = estimator(play, META_PARAMS, start, key)
    assert len(calls) == 1
    assert calls[0][0] is META_PARAMS
    assert calls[0][1] is start
    expected, values, expected_metrics = estimator.gradient(META_PARAMS, window)
    tiny.assert_same_bits((grads, metrics), (expected, expected_metrics))
    # The acted agents go on, with the value functions that judged them.
    assert after.agents is acted
    tiny.assert_same_bits(after.values, values)
    assert metrics["loss"].shape == (2,)
