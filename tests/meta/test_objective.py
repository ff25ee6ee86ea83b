"""The outer objective and its value function, against one transition at a time."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from metarl.agents.agent import AgentState
from metarl.config import RegularizerConfig, ValueFunctionConfig
from metarl.meta.objective import ValueFunction, ValueState, outer_loss
from metarl.rules.disco import Disco
from metarl.types import Rollout, drop_invalid

CONFIG = ValueFunctionConfig(
    learning_rate=0.05,
    max_abs_update=0.6,
    discount=0.9,
    trace_lambda=0.8,
    moments_decay=0.95,
)
WEIGHTS = RegularizerConfig(policy_entropy=0.05, y_entropy=0.04, z_entropy=0.03)
VALUE_FUNCTION = ValueFunction(tiny.value_network(), CONFIG)
AGENT = tiny.agent_for(Disco(tiny.DISCO))
OBSERVATIONS = jnp.zeros((1, tiny.OBSERVATION))


value_update = jax.jit(VALUE_FUNCTION.update, compiler_options=tiny.QUICK)
judge = jax.jit(
    partial(outer_loss, AGENT, VALUE_FUNCTION, WEIGHTS), compiler_options=tiny.QUICK
)
outputs_at = jax.jit(AGENT.network.apply, compiler_options=tiny.QUICK)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - np.max(x, axis=-1, keepdims=True))
    return e / np.sum(e, axis=-1, keepdims=True)


def entropy(x: np.ndarray) -> np.ndarray:
    p = softmax(x)
    return -np.sum(p * np.log(p), axis=-1)


def unsquash(u: np.ndarray) -> np.ndarray:
    """Invert ``sign(x) (sqrt(|x| + 1) - 1) + e x`` by the published formula."""
    e = 1e-3
    root = (np.sqrt(1 + 4 * e * (np.abs(u) + 1 + e)) - 1) / (2 * e)
    return np.sign(u) * (root**2 - 1)


def actor() -> AgentState:
    return AGENT.init(jax.random.key(3), OBSERVATIONS)


def outputs_of(state: AgentState, rollout: Rollout) -> dict[str, np.ndarray]:
    lead = rollout.observations.shape[:2]
    flat = rollout.observations.reshape(-1, tiny.OBSERVATION)
    outputs = outputs_at(state.params, flat)
    return {k: np.asarray(x).reshape(*lead, *x.shape[1:]) for k, x in outputs.items()}


def vtrace_by_hand(
    rollout: Rollout, values: np.ndarray, log_pi: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return errors, advantages and ratios where transitions are valid, 0 elsewhere."""
    t = jax.tree.map(np.asarray, rollout.transitions)
    steps, batch = t.valid.shape
    log_mu = np.log(softmax(t.behaviour_logits))
    errors, advantages, ratios = (np.zeros((steps, batch)) for _ in range(3))
    for b in range(batch):
        for i in reversed(range(steps)):
            if not t.valid[i, b]:
                continue
            a = t.actions[i, b]
            ratios[i, b] = np.exp(log_pi[i, b, a] - log_mu[i, b, a])
            rho = min(1.0, ratios[i, b])
            discount = 0.0 if t.is_terminal[i, b] else CONFIG.discount
            # No trace comes back over a truncation, nor from a missing transition.
            alone = t.cut[i, b] or i == steps - 1 or not t.valid[i + 1, b]
            following = 0.0 if alone else errors[i + 1, b]
            bootstrap = values[i + 1, b] + CONFIG.trace_lambda * following
            td = t.rewards[i, b] + discount * values[i + 1, b] - values[i, b]
            errors[i, b] = rho * (td + discount * CONFIG.trace_lambda * following)
            advantages[i, b] = rho * (
                t.rewards[i, b] + discount * bootstrap - values[i, b]
            )
    return errors, advantages, ratios


def normalized(x: np.ndarray, valid: np.ndarray, *, centre: bool) -> np.ndarray:
    """Normalise by the moments of a first batch, which debiasing makes its own."""
    mean, square = np.mean(x[valid]), np.mean(x[valid] ** 2)
    deviation = np.sqrt(max(square - mean**2, 0) + 1e-12) + 1e-6
    return (x - mean if centre else x) / deviation


def test_the_outer_loss_by_hand(x64: None) -> None:
    state, rollout = actor(), tiny.rollout(5, steps=6)
    value_state = VALUE_FUNCTION.init(jax.random.key(4), OBSERVATIONS)
    outputs = outputs_of(state, rollout)
    valid = np.asarray(rollout.transitions.valid)
    actions = np.asarray(rollout.transitions.actions)
    flat = rollout.observations.reshape(-1, tiny.OBSERVATION)
    raw = VALUE_FUNCTION.network.apply(value_state.params, flat)["value"]
    values = unsquash(np.asarray(raw).reshape(7, 3))
    log_pi = np.log(softmax(outputs["logits"]))
    _, advantages, ratios = vtrace_by_hand(rollout, values, log_pi)
    weights = normalized(advantages, valid, centre=True)

    terms = [
        -log_pi[i, b, actions[i, b]] * weights[i, b] for i, b in np.argwhere(valid)
    ]
    pg_loss = np.mean(terms)
    policy_entropy = np.mean(entropy(outputs["logits"][:-1])[valid])
    z_entropy = np.mean(
        [entropy(outputs["z"][i, b, actions[i, b]]) for i, b in np.argwhere(valid)]
    )
    seen = np.concatenate([valid, np.ones((1, 3), bool)])
    y_entropy = np.mean(entropy(outputs["y"])[seen])
    regularizer = -0.05 * policy_entropy - 0.04 * y_entropy - 0.03 * z_entropy

    loss, metrics = judge(state, value_state, rollout)
    expected = {
        "pg_loss": pg_loss,
        "entropy": policy_entropy,
        "y_entropy_loss": -y_entropy,
        "z_entropy_loss": -z_entropy,
        "adv": np.mean(advantages[valid]),
        "normalized_adv": np.mean(weights[valid]),
        "value": np.mean(values),
        "val_importance_weight": np.mean(np.minimum(ratios[valid], 1)),
        "reg_loss": regularizer,
    }
    assert set(metrics) == set(expected)
    for name, value in expected.items():
        assert float(metrics[name]) == pytest.approx(value, rel=1e-10, abs=1e-12), name
    assert float(loss) == pytest.approx(pg_loss + regularizer, rel=1e-10)


def test_the_value_function_moves_to_its_normalised_errors(x64: None) -> None:
    rollout = tiny.rollout(6)
    value_state = VALUE_FUNCTION.init(jax.random.key(5), OBSERVATIONS)
    logits = outputs_of(actor(), rollout)["logits"]
    transitions = drop_invalid(rollout.transitions)
    after, (loss, advantages) = value_update(
        value_state, rollout.observations, transitions, jnp.asarray(logits)
    )
    valid = np.asarray(rollout.transitions.valid)
    x = np.asarray(rollout.observations)
    torso, head = (
        jax.tree.map(np.asarray, value_state.params[k]) for k in ("torso", "value")
    )
    hidden = np.tanh(x @ torso["w"] + torso["b"])
    raw = (hidden @ head["w"] + head["b"])[..., 0]
    errors, _, _ = vtrace_by_hand(rollout, unsquash(raw), np.log(softmax(logits)))
    targets = normalized(errors, valid, centre=False)
    np.testing.assert_allclose(
        np.asarray(advantages.normalized_errors)[valid], targets[valid], rtol=1e-9
    )
    assert float(loss) == pytest.approx(0.5 * np.mean(targets[valid] ** 2), rel=1e-9)
    # d loss / d u = -error / deviation: u rises where the return was underestimated.
    slope = np.where(valid, -targets, 0) / np.sum(valid)
    by_output = {
        "w": np.einsum("tbh,tb->h", hidden[:-1], slope)[:, None],
        "b": np.array([np.sum(slope)]),
    }
    for name, grad in by_output.items():
        np.testing.assert_allclose(
            after.optimizer.mu["value"][name], 0.1 * grad, rtol=1e-9, atol=1e-15
        )
        # Adam's first step is the sign, clipped at 0.6.
        np.testing.assert_allclose(
            after.params["value"][name], head[name] - 0.05 * 0.6 * np.sign(grad)
        )
    for moments, x in (
        (after.td_moments, errors),
        (after.adv_moments, np.asarray(advantages.advantages)),
    ):
        assert float(moments.moment1) == pytest.approx(0.05 * np.mean(x[valid]))
        assert float(moments.moment2) == pytest.approx(0.05 * np.mean(x[valid] ** 2))
        assert float(moments.decay_product) == pytest.approx(0.95)


@partial(jax.jit, compiler_options=tiny.QUICK)
def both_gradients(
    state: AgentState, value_state: ValueState, rollout: Rollout
) -> tuple[object, object]:
    def loss(params: object, value_params: object) -> jax.Array:
        return outer_loss(
            AGENT,
            VALUE_FUNCTION,
            WEIGHTS,
            dataclasses.replace(state, params=params),
            dataclasses.replace(value_state, params=value_params),
            rollout,
        )[0]

    return jax.grad(loss, argnums=(0, 1))(state.params, value_state.params)


def test_the_outer_loss_does_not_move_the_value_function(x64: None) -> None:
    value_state = VALUE_FUNCTION.init(jax.random.key(4), OBSERVATIONS)
    by_agent, by_value = both_gradients(actor(), value_state, tiny.rollout(5))
    assert not any(np.any(np.asarray(x)) for x in jax.tree.leaves(by_value))
    for head in ("logits", "y", "z"):
        assert np.any(np.asarray(by_agent[head]["w"])), head
    # Nothing of the objective reads these.
    for head in ("q", "aux_pi"):
        assert not np.any(np.asarray(by_agent[head]["w"])), head


def test_invalid_transitions_have_no_influence() -> None:
    state = actor()
    value_state = VALUE_FUNCTION.init(jax.random.key(4), OBSERVATIONS)
    logits = jnp.asarray(outputs_of(state, tiny.rollout(5))["logits"])
    seen = []
    for seed in (None, 1, 2):
        rollout = tiny.rollout(5)
        if seed is not None:
            rollout = tiny.poison(rollout, seed)
        after, (value_loss, _) = value_update(
            value_state, rollout.observations, drop_invalid(rollout.transitions), logits
        )
        loss = judge(state, value_state, rollout)
        gradients = both_gradients(state, value_state, rollout)
        seen.append((loss, gradients, after, value_loss))
    tiny.assert_same_bits(seen[0], seen[1])
    tiny.assert_same_bits(seen[0], seen[2])


def test_a_batch_without_any_transition_is_harmless() -> None:
    rollout = tiny.rollout(5)
    t = rollout.transitions
    nothing = dataclasses.replace(
        rollout, transitions=dataclasses.replace(t, valid=jnp.zeros_like(t.valid))
    )
    state = actor()
    value_state = VALUE_FUNCTION.init(jax.random.key(4), OBSERVATIONS)
    _, metrics = judge(state, value_state, nothing)
    assert float(metrics["pg_loss"]) == 0
    after, (loss, _) = value_update(
        value_state,
        nothing.observations,
        drop_invalid(nothing.transitions),
        jnp.asarray(outputs_of(state, nothing)["logits"]),
    )
    assert float(loss) == 0
    tiny.assert_same_bits(after.td_moments, value_state.td_moments)
    tiny.assert_same_bits(after.params, value_state.params)
