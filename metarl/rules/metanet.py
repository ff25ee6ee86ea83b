"""DiscoRL's meta-network: features of a batch in, learning targets out.

Oh et al., Nature 648 (2025), Methods and SI section 2; sizes and feature order of
the released Disco103 weights. Pure functions over a nested dict of parameters;
`disco_names.py` maps them to the published names. Knows no losses and no agents.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from metarl.config import DiscoConfig
from metarl.numerics import masked_mean, signed_log, take_action
from metarl.rules.layers import (
    Layer,
    embed,
    init_linear,
    linear,
    lstm_cell,
    reverse_lstm,
)
from metarl.types import Experience, Params, pytree

NUM_ACTION_INPUTS = 9
"""Numbers per action that the action embedding sees."""


def num_features(config: DiscoConfig) -> int:
    """Return the width of the trajectory features (27 for Disco103)."""
    return 23 + 2 * config.action_channels[1]


@pytree
class LifetimeState:
    """State of the LSTM that steps once per agent update."""

    hidden: jax.Array  # [lifetime_lstm]
    cell: jax.Array  # [lifetime_lstm]


@pytree
class ValueEstimates:
    """What the value head says about the batch; constants for every gradient."""

    value: jax.Array  # [T+1, B] of the agent
    target_value: jax.Array  # [T+1, B] of the target network
    q_value: jax.Array  # [T+1, B, A]
    target_q_value: jax.Array  # [T+1, B, A]
    rho: jax.Array  # [T, B] pi(a) / mu(a)
    q_target: jax.Array  # [T, B] Retrace
    adv: jax.Array  # [T, B]
    normalized_adv: jax.Array  # [T, B]
    qv_adv: jax.Array  # [T+1, B, A]
    normalized_qv_adv: jax.Array  # [T+1, B, A]
    q_td: jax.Array  # [T, B]
    normalized_q_td: jax.Array  # [T, B]


@pytree
class MetaOutputs:
    """What the meta-network returns, with the features that it computed."""

    pi: jax.Array  # [T, B, A] logits
    y: jax.Array  # [T, B, Y] logits
    z: jax.Array  # [T, B, Y] logits, for the action taken
    meta_input: jax.Array  # [T, B, 1] passed on to the lifetime network
    trajectory_features: jax.Array  # [T, B, 27]
    lifetime_features: jax.Array  # [T, B, 27]
    action_features: jax.Array  # [T, B, A, 2] of the trajectory network


def init(key: jax.Array, config: DiscoConfig) -> Params:
    """Return new meta-parameters."""
    keys = iter(jax.random.split(key, 32))
    features, channels = num_features(config), config.action_channels
    trajectory, lifetime = config.trajectory_lstm, config.lifetime_lstm

    def new(inputs: int, outputs: int) -> Layer:
        return init_linear(next(keys), inputs, outputs)

    def embeddings() -> dict[str, dict[str, Layer]]:
        hidden = config.embedding_hidden
        inputs = (2 * NUM_ACTION_INPUTS, 2 * channels[0])
        return {
            "y_embedding": {
                "hidden": new(config.prediction_size, hidden),
                "out": new(hidden, 1),
            },
            "z_embedding": {
                "hidden": new(config.prediction_size, hidden),
                "out": new(hidden, 1),
            },
            "action_embedding": {
                "layer_0": new(inputs[0], channels[0]),
                "layer_1": new(inputs[1], channels[1]),
            },
        }

    policy_inputs = 2 * (trajectory + channels[1])
    return {
        "trajectory": {
            **embeddings(),
            "lstm": new(features + trajectory, 4 * trajectory),
            "gate": new(lifetime, trajectory),
            "meta_input": new(trajectory, 1),
            "y_target": new(trajectory, config.prediction_size),
            "z_target": new(trajectory, config.prediction_size),
            "policy_embedding": new(policy_inputs, config.policy_channels),
            "policy_target": new(config.policy_channels, 1),
        },
        "lifetime": {
            **embeddings(),
            "input": new(features + 2, config.lifetime_input),
            "lstm": new(config.lifetime_input + lifetime, 4 * lifetime),
        },
    }


def initial_lifetime_state(config: DiscoConfig) -> LifetimeState:
    """Return the lifetime state of a new agent."""
    zeros = jnp.zeros(config.lifetime_lstm)
    return LifetimeState(hidden=zeros, cell=zeros)


def apply(
    params: Params,
    state: LifetimeState,
    experience: Experience,
    values: ValueEstimates,
) -> tuple[MetaOutputs, LifetimeState]:
    """Return the targets of a batch and the lifetime state after it.

    Args:
      params: what `init` returns.
      state: lifetime state before the batch; it is what gates this call's outputs.
      experience: the batch, after `drop_invalid`.
      values: value quantities of the same batch.

    Returns:
      Targets as logits, and the new lifetime state.
    """
    inputs = _Inputs.of(experience, values)
    net, lifetime_net = params["trajectory"], params["lifetime"]
    predictions, lifetime_predictions = _predictions((net, lifetime_net), experience)
    features, actions = _features(net, inputs, predictions)
    lifetime, _ = _features(lifetime_net, inputs, lifetime_predictions)
    x = reverse_lstm(net["lstm"], features, experience.transitions)
    x = x * jnp.broadcast_to(linear(net["gate"], state.hidden), x.shape)
    outputs = MetaOutputs(
        pi=_policy_target(net, x, actions),
        y=linear(net["y_target"], x),
        z=linear(net["z_target"], x),
        meta_input=linear(net["meta_input"], x),
        trajectory_features=features,
        lifetime_features=lifetime,
        action_features=actions,
    )
    state = _lifetime_step(lifetime_net, state, outputs, lifetime, experience)
    return outputs, state


@pytree
class _Inputs:
    """The inputs that both networks share; constants, unlike the `_Predictions`."""

    actions: jax.Array  # i32[T, B]
    per_step: jax.Array  # [T, B, 9] features 0-8
    pi: jax.Array  # [T+1, B, A]
    per_action: jax.Array  # [T, B, A, 7] all action inputs but those made of z

    @classmethod
    def of(cls, experience: Experience, values: ValueEstimates) -> _Inputs:
        transitions = experience.transitions
        own, target = experience.outputs, experience.target_outputs
        actions = transitions.actions
        pi, mu, target_pi = (
            # Policies are inputs, not paths: the meta-gradient may not shape
            # what the agent believes through them (Oh et al. 2025, released code).
            jax.lax.stop_gradient(jax.nn.softmax(logits))
            for logits in (
                own["logits"],
                transitions.behaviour_logits,
                target["logits"],
            )
        )
        steps = actions.shape[0]
        v = signed_log(values.value)
        per_step = [
            take_action(pi[:-1], actions),
            take_action(mu, actions),
            signed_log(transitions.rewards),
            1.0 - transitions.is_terminal,
            v[:-1],
            v[1:],
            signed_log(values.adv),
            values.normalized_adv,
            take_action(target_pi[:-1], actions),
        ]
        per_action = [
            pi[:-1],
            mu,
            target_pi[:-1],
            signed_log(values.target_q_value[:steps]),
            signed_log(values.qv_adv[:steps]),
            values.normalized_qv_adv[:steps],
            jax.nn.one_hot(actions, pi.shape[-1], dtype=pi.dtype),
        ]
        return cls(
            actions=actions,
            per_step=jnp.stack(per_step, axis=-1),
            pi=pi,
            per_action=jnp.stack(per_action, axis=-1),
        )


@pytree
class _Predictions:
    """One network's view of y and z: a scalar per distribution. Gradients pass."""

    y: jax.Array  # [T+1, B]
    z: jax.Array  # [T+1, B, A]
    target_y: jax.Array  # [T+1, B]
    target_z: jax.Array  # [T+1, B, A]


def _predictions(
    nets: Sequence[Params], experience: Experience
) -> tuple[_Predictions, ...]:
    """Return what each of the networks sees of the agent's y and z."""
    own, target = experience.outputs, experience.target_outputs
    columns = [
        embed([net[f"{name}_embedding"] for net in nets], outputs[name])
        for outputs in (own, target)
        for name in ("y", "z")
    ]
    return tuple(_Predictions(*row) for row in zip(*columns, strict=True))


def _features(
    net: Params, inputs: _Inputs, predictions: _Predictions
) -> tuple[jax.Array, jax.Array]:
    """Return trajectory features ``[T, B, 27]`` and action ones ``[T, B, A, 2]``."""
    y, target_y = predictions.y, predictions.target_y
    z, target_z = predictions.z, predictions.target_z
    actions = _action_embedding(net["action_embedding"], inputs, z, target_z)
    columns = [y[:-1], y[1:], target_y[:-1], target_y[1:]]
    for embedded in (z, target_z):
        expected = jnp.sum(inputs.pi * embedded, axis=-1)
        largest = jnp.max(embedded, axis=-1)
        columns += [
            take_action(embedded[:-1], inputs.actions),
            expected[:-1],
            expected[1:],
            largest[:-1],
            largest[1:],
        ]
    features = [
        inputs.per_step,
        jnp.stack(columns, axis=-1),
        jnp.mean(actions, axis=2),
        take_action(actions, inputs.actions),
    ]
    return jnp.concatenate(features, axis=-1), actions


def _action_embedding(
    net: dict[str, Layer], inputs: _Inputs, z: jax.Array, target_z: jax.Array
) -> jax.Array:
    """Return an embedding of every action that also sees the mean over actions."""
    fixed = inputs.per_action
    learned = jnp.stack([z[:-1], target_z[:-1]], axis=-1)
    x = jnp.concatenate([fixed[..., :3], learned, fixed[..., 3:]], axis=-1)
    for name in ("layer_0", "layer_1"):
        mean = jnp.broadcast_to(jnp.mean(x, axis=2, keepdims=True), x.shape)
        x = jax.nn.relu(linear(net[name], jnp.concatenate([x, mean], axis=-1)))
    return x


def _policy_target(net: Params, x: jax.Array, actions: jax.Array) -> jax.Array:
    """Return the policy target's logits ``[T, B, A]``.

    The layer's input per action is ``[x, e_a, x, mean_a e_a]``; as x is shared by all
    actions, its two products are computed once.
    """
    layer, width = net["policy_embedding"], x.shape[-1]
    x_w, e_w, mean_x_w, mean_e_w = jnp.split(
        layer["w"], [width, width + actions.shape[-1], 2 * width + actions.shape[-1]]
    )
    shared = linear({"w": x_w + mean_x_w, "b": layer["b"]}, x)
    shared += jnp.mean(actions, axis=2) @ mean_e_w
    hidden = jax.nn.relu(shared[:, :, None] + actions @ e_w)
    return linear(net["policy_target"], hidden)[..., 0]


def _lifetime_step(
    net: Params,
    state: LifetimeState,
    outputs: MetaOutputs,
    features: jax.Array,
    experience: Experience,
) -> LifetimeState:
    """Return the lifetime state after the batch; unchanged if nothing was valid."""
    (y,) = embed([net["y_embedding"]], outputs.y)
    x = linear(
        net["input"],
        jnp.concatenate([features, outputs.meta_input, y[..., None]], axis=-1),
    )
    own = experience.transitions.own
    mean = jax.vmap(masked_mean, in_axes=(-1, None))(x, own)
    gates = linear(net["lstm"], jnp.concatenate([mean, state.hidden]))
    hidden, cell = lstm_cell(gates, state.cell)
    seen = jnp.any(own)
    return LifetimeState(
        hidden=jnp.where(seen, hidden, state.hidden),
        cell=jnp.where(seen, cell, state.cell),
    )
