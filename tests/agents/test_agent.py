"""One agent: its birth, its age, its optimiser's options, its target network."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from metarl.agents.agent import Agent, AgentState
from metarl.config import OptimizerConfig
from metarl.rules.base import TargetNetwork
from metarl.types import Params

OBSERVATIONS = jnp.zeros((1, tiny.OBSERVATION))
PARAMS = {"w": np.array([0.5, -2.0, 0.0]), "b": np.array([1.0])}


def agent_with(**optimizer: object) -> Agent:
    return tiny.agent_for(tiny.Scaled(), **optimizer)


def state_with(params: Params, *, env_steps: int = 0, updates: int = 0) -> AgentState:
    params = jax.tree.map(jnp.asarray, params)
    zeros = jax.tree.map(jnp.zeros_like, params)
    state = agent_with().init(jax.random.key(0), OBSERVATIONS)
    return dataclasses.replace(
        state,
        params=params,
        optimizer=dataclasses.replace(state.optimizer, mu=zeros, nu=zeros),
        env_steps=jnp.asarray(env_steps, jnp.int32),
        agent_updates=jnp.asarray(updates, jnp.int32),
    )


def adam_by_hand(grads: list[np.ndarray], config: OptimizerConfig) -> list[np.ndarray]:
    """Return Adam's directions, before clipping and the learning rate."""
    mu, nu, directions = 0.0, 0.0, []
    for n, g in enumerate(grads, start=1):
        mu = config.b1 * mu + (1 - config.b1) * g
        nu = config.b2 * nu + (1 - config.b2) * g**2
        scale = np.sqrt(nu / (1 - config.b2**n)) + config.eps
        directions.append(mu / (1 - config.b1**n) / scale)
    return directions


def test_a_new_agent_has_no_past() -> None:
    rule = tiny.Scaled(target_network=TargetNetwork("ema", 0.9))
    state = tiny.agent_for(rule).init(jax.random.key(1), OBSERVATIONS)
    assert int(state.env_steps) == int(state.agent_updates) == 0
    jax.tree.map(np.testing.assert_array_equal, state.target_params, state.params)
    for x in jax.tree.leaves((state.optimizer, state.rule_state)):
        assert not np.any(np.asarray(x))


def test_the_target_starts_as_a_copy_that_may_be_donated_with_the_parameters() -> None:
    rule = tiny.Scaled(target_network=TargetNetwork("copy", every=2))
    state = tiny.agent_for(rule).init(jax.random.key(1), OBSERVATIONS)

    def address(x: jax.Array) -> int:
        return x.unsafe_buffer_pointer()

    pairs = jax.tree.map(
        lambda a, b: address(a) != address(b), state.params, state.target_params
    )
    assert all(jax.tree.leaves(pairs))


def test_the_clock_counts_the_lifetime() -> None:
    clock = agent_with().clock(state_with(PARAMS, env_steps=250, updates=7))
    assert float(clock.env_steps) == 250
    assert int(clock.agent_updates) == 7
    assert float(clock.lifetime_fraction) == pytest.approx(0.25)


def test_actions_follow_the_policy() -> None:
    agent = agent_with()
    state = agent.init(jax.random.key(0), OBSERVATIONS)
    sure = {"w": jnp.zeros((tiny.HIDDEN, 3)), "b": jnp.array([-50.0, 50.0, -50.0])}
    state = dataclasses.replace(state, params={**state.params, "logits": sure})
    observations = jnp.ones((6, tiny.OBSERVATION))
    actions, logits = agent.act(state, observations, jax.random.key(2))
    np.testing.assert_array_equal(actions, np.ones(6))
    np.testing.assert_array_equal(logits, np.tile([-50.0, 50.0, -50.0], (6, 1)))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_decay": 0.3},
        {"max_abs_update": 0.4},
        {"b1": 0.5, "b2": 0.7, "eps": 0.1},
        {"weight_decay": 0.3, "max_abs_update": 0.4},
    ],
    ids=["plain", "decay", "clip", "betas", "decay_and_clip"],
)
def test_two_steps_of_adam(x64: None, options: dict[str, float]) -> None:
    agent = agent_with(learning_rate=0.1, **options)
    config = agent.optimizer
    state = state_with(PARAMS)
    grads = [
        {"w": np.array([0.1, -3.0, 0.0]), "b": np.array([2.0])},
        {"w": np.array([-0.4, 1.0, 1e-3]), "b": np.array([2.0])},
    ]
    expected = dict(PARAMS)
    for n, g in enumerate(grads):
        params, optimizer, metrics = agent.gradient_step(
            state, jax.tree.map(jnp.asarray, g)
        )
        steps = {}
        for name in ("w", "b"):
            direction = adam_by_hand([x[name] for x in grads[: n + 1]], config)[-1]
            clipped = np.clip(direction, -config.max_abs_update, config.max_abs_update)
            # Decay is decoupled: neither Adam nor the clip sees it.
            steps[name] = -0.1 * (clipped + config.weight_decay * expected[name])
        expected = {k: expected[k] + steps[k] for k in steps}
        for name, value in expected.items():
            np.testing.assert_allclose(params[name], value, rtol=1e-12)
        flat = np.concatenate([steps["w"], steps["b"]])
        assert float(metrics["update_norm"]) == pytest.approx(np.linalg.norm(flat))
        state = dataclasses.replace(state, params=params, optimizer=optimizer)
    assert int(state.optimizer.count) == 2


def test_a_large_gradient_is_scaled_down_before_adam_sees_it(x64: None) -> None:
    grads = {"w": jnp.array([0.3, 0.0, -1.2]), "b": jnp.array([0.4])}  # norm 1.3
    state = state_with(PARAMS)
    plain, bounded, large = (
        agent_with(max_grad_norm=bound).gradient_step(state, grads)
        for bound in (None, 0.13, 1.4)
    )
    np.testing.assert_allclose(bounded[1].mu["w"], [0.003, 0, -0.012], rtol=1e-12)
    np.testing.assert_allclose(bounded[1].nu["b"], [0.04**2 * 1e-3], rtol=1e-12)
    assert float(bounded[2]["grad_norm"]) == pytest.approx(1.3)  # as it was before
    tiny.assert_same_bits(plain, large)


@pytest.mark.parametrize(
    ("options", "env_steps", "rate"),
    [
        ({"schedule": "constant"}, 900, 0.2),
        ({"schedule": "linear", "end_learning_rate": 0.1}, 0, 0.2),
        ({"schedule": "linear", "end_learning_rate": 0.1}, 250, 0.175),
        ({"schedule": "linear", "end_learning_rate": 0.1}, 5000, 0.1),
        ({"schedule": "cosine"}, 500, 0.1),
        ({"schedule": "cosine"}, 250, 0.1 * (1 + np.sqrt(0.5))),
        ({"warmup_env_steps": 100}, 0, 0.0),
        ({"warmup_env_steps": 100}, 25, 0.05),
        ({"warmup_env_steps": 100}, 400, 0.2),
        ({"warmup_env_steps": 500, "schedule": "linear"}, 250, 0.075),
    ],
)
def test_schedule_and_warm_up_scale_the_update(
    x64: None, options: dict[str, object], env_steps: int, rate: float
) -> None:
    agent = agent_with(learning_rate=0.2, **options)
    state = state_with(PARAMS, env_steps=env_steps)
    grads = {"w": jnp.array([1.0, -1.0, 1.0]), "b": jnp.array([1.0])}
    params, _, metrics = agent.gradient_step(state, grads)
    assert float(metrics["learning_rate"]) == pytest.approx(rate, abs=1e-12)
    # The first direction of Adam is the sign, but for eps.
    moved = np.asarray(params["w"]) - PARAMS["w"]
    np.testing.assert_allclose(moved, [-rate, rate, -rate], rtol=1e-7, atol=1e-12)


def test_ema_follows_the_parameters_before_the_update() -> None:
    agent = tiny.agent_for(tiny.Scaled(target_network=TargetNetwork("ema", 0.75)))
    before = {"w": jnp.array([4.0])}
    state = dataclasses.replace(
        state_with(PARAMS), params=before, target_params={"w": jnp.array([8.0])}
    )
    followed = agent.follow(state, {"w": jnp.array([1000.0])})
    np.testing.assert_allclose(followed["w"], [7.0])


@pytest.mark.parametrize("every", [1, 3])
def test_copy_takes_the_parameters_after_every_nth_update(every: int) -> None:
    agent = tiny.agent_for(
        tiny.Scaled(target_network=TargetNetwork("copy", every=every))
    )
    target = {"w": jnp.array([-1.0])}
    for done in range(6):
        after = {"w": jnp.array([float(done)])}
        state = dataclasses.replace(
            state_with(PARAMS, updates=done),
            params={"w": jnp.array([-7.0])},
            target_params=target,
        )
        target = agent.follow(state, after)
        copied_at = (done + 1) // every * every - 1
        assert float(target["w"][0]) == copied_at


def test_without_a_target_network_there_are_no_target_parameters() -> None:
    agent = agent_with()
    state = agent.init(jax.random.key(0), OBSERVATIONS)
    assert state.target_params == {}
    assert agent.follow(state, state.params) == {}
