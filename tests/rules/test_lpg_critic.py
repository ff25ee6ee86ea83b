"""LPG with a critic: what its LSTM sees, what it learns from, and where it begins."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract.experience import make_experience

from metarl.agents.networks import build_network
from metarl.config import (
    ActorCriticConfig,
    LPGConfig,
    LPGCriticConfig,
    NetworkConfig,
)
from metarl.numerics import Moments
from metarl.rules import make_rule
from metarl.rules.base import Head, Targets
from metarl.rules.lpg_critic import LPGCritic
from metarl.types import Experience, Params, drop_invalid

T, B, A = 6, 3, 4
CONFIG = LPGCriticConfig(
    prediction_size=5, lstm=3, embedding_hidden=4, num_bins=11, max_abs_value=5.0
)
RULE = LPGCritic(CONFIG)
KEY = jax.random.key(0)
MOMENTS = Moments(jnp.array(0.3), jnp.array(1.7), jnp.array(0.5))


def new_params(seed: int = 0) -> Params:
    """Return meta-parameters without a zero, in NumPy."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(RULE.init_params, jax.random.key(0))
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), shapes)


def experience_with_ends() -> Experience:
    """Return a batch in which trajectory 0 ends after step 1 and is reset in step 2."""
    experience = make_experience(jax.random.key(3), RULE, T=T, B=B, A=A)
    ended, valid = np.zeros((T, B), bool), np.ones((T, B), bool)
    ended[1, 0], valid[2, 0] = True, False
    transitions = dataclasses.replace(
        experience.transitions,
        is_terminal=jnp.asarray(ended),
        cut=jnp.zeros((T, B), bool),
        valid=jnp.asarray(valid),
        own=jnp.ones((T, B), bool),
    )
    return dataclasses.replace(experience, transitions=transitions)


@jax.jit
def run(params: Params, experience: Experience) -> Targets:
    """Return the targets."""
    return RULE.targets(params, MOMENTS, experience, jax.random.key(0))[0]


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def signed_log(x: float) -> float:
    return float(np.sign(x) * np.log1p(np.abs(x)))


def values_of(v: np.ndarray) -> np.ndarray:
    """Return the values that logits stand for, by the bins' definition."""
    bins = np.linspace(-5, 5, 11)
    # The inverse of the signed-hyperbolic transform, epsilon 1e-3.
    u = np.abs(np.apply_along_axis(softmax, -1, v) @ bins)
    sign = np.sign(np.apply_along_axis(softmax, -1, v) @ bins)
    eps = 1e-3
    root = (np.sqrt(1 + 4 * eps * (u + 1 + eps)) - 1) / (2 * eps)
    return sign * (root**2 - 1)


def plain_advantages(experience: Experience) -> tuple[np.ndarray, ...]:
    """Return ratios, values and V-trace advantages, one transition after another."""
    t, outputs = jax.device_get((experience.transitions, experience.outputs))
    values = values_of(np.asarray(outputs["v"], float))
    rho, adv = np.ones((T, B)), np.zeros((T, B))
    for b in range(B):
        error = 0.0
        for i in reversed(range(T)):
            if not t.valid[i, b]:
                # Passed over: the state before it is where the next episode begins.
                error = 0.0
                continue
            a = t.actions[i, b]
            rho[i, b] = (
                softmax(outputs["logits"][i, b])[a]
                / softmax(t.behaviour_logits[i, b])[a]
            )
            weight = min(rho[i, b], 1.0)
            discount = 0.0 if t.is_terminal[i, b] else CONFIG.discount
            bootstrap = values[i + 1, b] + CONFIG.trace_lambda * error
            adv[i, b] = weight * (t.rewards[i, b] + discount * bootstrap - values[i, b])
            delta = weight * (
                t.rewards[i, b] + discount * values[i + 1, b] - values[i, b]
            )
            error = delta + discount * CONFIG.trace_lambda * weight * error
    return rho, values, adv


@pytest.mark.usefixtures("x64")
def test_the_policy_target_is_that_of_a_plain_loop() -> None:
    params, experience = new_params(), experience_with_ends()
    targets = jax.device_get(run(params, experience))
    t, outputs = jax.device_get((experience.transitions, experience.outputs))
    rho, values, adv = plain_advantages(experience)
    mask = t.valid
    decay = CONFIG.moments_decay
    # As `Moments` defines it: running mean of squares, corrected for its start.
    updated = MOMENTS.update(jnp.asarray(adv), jnp.asarray(mask), decay)
    deviation = np.sqrt(updated.normalize(jnp.ones(()), subtract_mean=False) ** -2.0)
    normalized = adv / (deviation - 1e-6 + 0.01)

    def phi(logits: np.ndarray) -> float:
        net = params["y_embedding"]
        hidden = softmax(logits) @ net["hidden"]["w"] + net["hidden"]["b"]
        return float((np.maximum(hidden, 0) @ net["out"]["w"] + net["out"]["b"])[0])

    pi_hat = np.full((T, B), np.nan)
    for b in range(B):
        hidden, cell = np.zeros(CONFIG.lstm), np.zeros(CONFIG.lstm)
        for i in reversed(range(T)):
            ended = bool(t.is_terminal[i, b])
            if ended:
                hidden, cell = np.zeros(CONFIG.lstm), np.zeros(CONFIG.lstm)
            if not t.valid[i, b]:
                continue
            pi = softmax(outputs["logits"][i, b])
            x = [
                signed_log(t.rewards[i, b]),
                float(ended),
                pi[t.actions[i, b]] - 1 / A,
                min(rho[i, b], 3.0) - 1,
                1 + np.sum(pi * np.log(pi)) / np.log(A),
                signed_log(values[i, b]),
                0.0 if ended else signed_log(values[i + 1, b]),
                signed_log(adv[i, b]),
                normalized[i, b],
                phi(outputs["y"][i, b]),
                0.0 if ended else phi(outputs["y"][i + 1, b]),
            ]
            gates = np.concatenate([x, hidden]) @ params["lstm"]["w"]
            add, new, keep, show = np.split(gates + params["lstm"]["b"], 4)
            cell = sigmoid(keep + 1) * cell + sigmoid(add) * np.tanh(new)
            hidden = sigmoid(show) * np.tanh(cell)
            out = params["pi_target"]
            shift, gain = hidden @ out["w"] + out["b"]
            pi_hat[i, b] = shift + gain * normalized[i, b]
    np.testing.assert_allclose(targets["pi"][mask], pi_hat[mask], rtol=1e-9)
    # What all actions are reinforced by alike is left out.
    rows = {name: x[:-1] for name, x in experience.outputs.items()}
    transitions = drop_invalid(experience.transitions)
    gradient = jax.grad(
        lambda x: jnp.sum(RULE.loss({**rows, "logits": x}, {}, targets, transitions)[0])
    )(rows["logits"])
    pi = np.apply_along_axis(softmax, -1, outputs["logits"][:-1])
    weight = (pi_hat - np.mean(pi_hat[mask]))[..., None]
    expected = -weight * (np.eye(A)[t.actions] - pi)
    np.testing.assert_allclose(gradient[mask], expected[mask], rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_values_learn_as_those_of_actor_critic() -> None:
    experience = experience_with_ends()
    other = make_rule(ActorCriticConfig(num_bins=11, max_abs_value=5.0))
    expected, _, _ = other.targets({}, MOMENTS, experience, jax.random.key(0))
    found = run(new_params(), experience)
    np.testing.assert_allclose(found["value"], expected["value"], atol=1e-12)
    transitions = experience.transitions
    outputs = {name: x[:-1] for name, x in experience.outputs.items()}

    def loss(v: jax.Array, rule: object, targets: Targets) -> jax.Array:
        return jnp.sum(rule.loss({**outputs, "v": v}, {}, targets, transitions)[0])

    gradients = [
        jax.grad(loss)(outputs["v"], rule, targets)
        for rule, targets in ((RULE, found), (other, expected))
    ]
    np.testing.assert_allclose(*gradients, atol=1e-12)


def test_a_new_rule_trains_values_and_not_the_policy() -> None:
    experience = experience_with_ends()
    targets = run(RULE.init_params(jax.random.key(1)), experience)
    assert not np.any(targets["pi"])
    outputs = {name: x[:-1] for name, x in experience.outputs.items()}
    gradient = jax.grad(
        lambda x: jnp.sum(RULE.loss(x, {}, targets, experience.transitions)[0])
    )(outputs)
    assert not np.any(gradient["logits"])
    assert np.all(np.any(gradient["v"] != 0, axis=(0, 1)))


def test_a_uniform_policy_without_rewards_is_seen_as_zeros() -> None:
    """What is always there would drown the rewards in the first meta-gradients."""
    experience = make_experience(jax.random.key(3), RULE, T=T, B=B, A=A)
    zeros = jax.tree.map(jnp.zeros_like, experience.outputs)
    transitions = dataclasses.replace(
        experience.transitions,
        rewards=jnp.zeros((T, B)),
        behaviour_logits=jnp.zeros((T, B, A)),
        is_terminal=jnp.zeros((T, B), bool),
        cut=jnp.zeros((T, B), bool),
        valid=jnp.ones((T, B), bool),
    )
    experience = dataclasses.replace(experience, outputs=zeros, transitions=transitions)
    params = new_params()
    params["y_embedding"]["out"] = jax.tree.map(
        np.zeros_like, params["y_embedding"]["out"]
    )
    blind = dict(params, lstm={**params["lstm"], "w": params["lstm"]["w"].copy()})
    blind["lstm"]["w"][: RULE.num_features] = 0
    np.testing.assert_allclose(
        run(params, experience)["pi"], run(blind, experience)["pi"], atol=1e-6
    )


def test_a_newborn_agent_has_no_values_and_learns_none_without_rewards() -> None:
    """Errors of the values would be as loud as success, once they are normalised."""
    network = build_network(
        NetworkConfig(torso={"kind": "mlp", "hidden": []}, head_hidden=[4]),
        RULE.spec(A),
        A,
    )
    observations = jax.random.normal(jax.random.key(1), (T + 1, B, 3))
    params = network.init(jax.random.key(0), observations[0])
    seen = jax.vmap(network.apply, in_axes=(None, 0))(params, observations)
    assert not np.any(seen["v"])
    assert np.any(seen["logits"])
    experience = experience_with_ends()
    transitions = dataclasses.replace(experience.transitions, rewards=jnp.zeros((T, B)))
    experience = dataclasses.replace(experience, outputs=seen, transitions=transitions)
    state = Moments.initial()
    targets, _, metrics = RULE.targets(new_params(), state, experience, KEY)
    # Rounding of the bins' mean is all that is left of the advantages.
    assert abs(float(metrics["adv"])) < 1e-5
    # Pulled to the bin of zero, on both sides of it alike.
    np.testing.assert_allclose(targets["value"][..., 5], 1.0, atol=1e-5)


def test_rare_success_counts_as_much_more_than_common_success() -> None:
    """With gain 1 and shift 0 actions are reinforced by normalised advantages."""
    params = jax.tree.map(jnp.zeros_like, RULE.init_params(KEY))
    params["pi_target"]["b"] = jnp.array([0.0, 1.0])
    experience = experience_with_ends()
    deviation = 0.1
    rare = dataclasses.replace(
        MOMENTS, moment1=jnp.zeros(()), moment2=jnp.array(0.5 * deviation**2)
    )
    targets, state, _ = RULE.targets(params, rare, experience, KEY)
    _, _, adv = plain_advantages(experience)
    valid = experience.transitions.valid
    scale = 1 / state.normalize(jnp.ones(()), subtract_mean=False, floor=0.01)
    expected = np.where(valid, adv, 0) / scale
    np.testing.assert_allclose(
        np.where(valid, targets["pi"], 0), expected, rtol=1e-4, atol=1e-5
    )
    assert np.max(np.abs(expected)) > 3


def test_it_is_a_kind_of_its_own() -> None:
    rule = make_rule(LPGCriticConfig())
    assert [head.name for head in rule.spec(4).heads] == ["logits", "y", "v"]
    lpg = make_rule(LPGConfig())
    sizes = [
        sum(x.size for x in jax.tree.leaves(jax.eval_shape(r.init_params, KEY)))
        for r in (rule, lpg)
    ]
    # Five numbers more for each of the LSTM's gates, and a gain.
    assert sizes[0] - sizes[1] == 5 * 4 * 256 + 257


def test_rows_of_actions_do_not_begin_at_zero() -> None:
    with pytest.raises(ValueError, match="head 'z': zero_init is for heads of the"):
        Head("z", 3, per_action=True, zero_init=True)
