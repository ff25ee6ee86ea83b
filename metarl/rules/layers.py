"""Layers that the discovered rules' meta-networks are made of.

Pure functions over ``{"w", "b"}`` of weights and biases; must not import agents,
environments or files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from metarl.numerics import softmax_dot
from metarl.types import Transitions

Layer = dict[str, jax.Array]


def init_linear(key: jax.Array, inputs: int, outputs: int) -> Layer:
    """Return a new layer.

    Weights are truncated normal with deviation ``1 / sqrt(inputs)``, biases zero
    (the initialisation of Haiku's layers, which DiscoRL's released code uses).
    """
    weights = jax.random.truncated_normal(key, -2, 2, (inputs, outputs))
    return {"w": weights / math.sqrt(inputs), "b": jnp.zeros(outputs)}


def zero_linear(inputs: int, outputs: int) -> Layer:
    """Return a layer whose output is zero."""
    return {"w": jnp.zeros((inputs, outputs)), "b": jnp.zeros(outputs)}


def linear(layer: Layer, x: jax.Array) -> jax.Array:
    """Return ``x @ w + b``, over the last axis."""
    y = x @ layer["w"]
    return y + jnp.broadcast_to(layer["b"], y.shape)


def embed(nets: Sequence[dict[str, Layer]], logits: jax.Array) -> list[jax.Array]:
    """Return each net's scalar per distribution: ``[..., Y] -> [...]``.

    A net is a hidden layer of rectified units under an output, ``{"hidden", "out"}``.
    One product for all nets, so that the wide array is read once.
    """
    weights = jnp.concatenate([net["hidden"]["w"] for net in nets], axis=1)
    hidden = jnp.split(softmax_dot(logits, weights), len(nets), axis=-1)
    biased = [
        h + jnp.broadcast_to(net["hidden"]["b"], h.shape)
        for net, h in zip(nets, hidden, strict=True)
    ]
    return [
        linear(net["out"], jax.nn.relu(h))[..., 0]
        for net, h in zip(nets, biased, strict=True)
    ]


def lstm_cell(gates: jax.Array, cell: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return hidden and cell state; gates in the order i, g, f, o, forget bias 1."""
    i, g, f, o = jnp.split(gates, 4, axis=-1)
    cell = jax.nn.sigmoid(f + 1) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(cell), cell


def reverse_lstm(
    layer: Layer, features: jax.Array, transitions: Transitions
) -> jax.Array:
    """Run backwards in time; return the hidden states ``[T, B, H]``.

    No state passes back over the end of an episode, nor over a cut.

    Args:
      layer: of the gates, ``[F + H, 4 H]``.
      features: ``[T, B, F]``.
      transitions: after `drop_invalid`.
    """
    width, batch = features.shape[-1], features.shape[1]
    inputs = linear({"w": layer["w"][:width], "b": layer["b"]}, features)
    recurrent = layer["w"][width:]
    keep = ~(transitions.is_terminal | transitions.cut)

    def step(
        carry: tuple[jax.Array, jax.Array], at: tuple[jax.Array, jax.Array]
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        x, kept = at
        hidden, cell = (jnp.where(kept[:, None], state, 0) for state in carry)
        carry = lstm_cell(x + hidden @ recurrent, cell)
        return carry, carry[0]

    zeros = jnp.zeros((batch, recurrent.shape[0]), inputs.dtype)
    _, hidden = jax.lax.scan(step, (zeros, zeros), (inputs, keep), reverse=True)
    return hidden
