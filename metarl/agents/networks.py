"""The agents' networks, built from the configuration and a rule's spec.

What leaves here is a `metarl.types.Network`, a pair of pure functions: the rest of the
package sees no Haiku. Parameters are ``{module: {"w", "b"}}`` with modules `torso/...`,
one per state head (`logits/linear_0`), and `action_model/{cell,lstm,z/linear_0,...}`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Literal

import haiku as hk
import jax
import jax.numpy as jnp

from metarl.agents.action_model import ActionModel
from metarl.agents.convolution import resolve_convolution
from metarl.agents.torsos import MLP, Initializer, Torso, apply_torso
from metarl.config import NetworkConfig
from metarl.rules.base import Head, RuleSpec
from metarl.types import Network, Outputs, Params

# Of the last layer's weights of each head on the torso (DiscoRL's released code): the
# first policy is nearly uniform.
HEAD_STDDEV = 1e-2

# Of orthogonal weights (OpenAI baselines, PPO and A2C).
HIDDEN_GAIN = 2**0.5
POLICY_GAIN = 1e-2

PIXEL_MAX = 255


@functools.cache
def build_network(config: NetworkConfig, spec: RuleSpec, num_actions: int) -> Network:
    """Return the network with the outputs that ``spec`` asks for.

    Pixels, uint8 observations ``[N, H, W, C]``, are scaled to [0, 1]; all others are
    only cast to the parameters' type. Cached: equal arguments give the same object, so
    that what is compiled for one agent serves another.

    Args:
      config: torso, action model and hidden layers of the heads.
      spec: of the update rule.
      num_actions: A, the rows of the outputs per action.

    Returns:
      ``init`` and ``apply``; outputs are ``[N, size]``, per action ``[N, A, size]``.
    """
    implementation = resolve_convolution(config.convolution)
    of_model = tuple(h for h in spec.heads if h.per_action and not h.on_torso)
    hidden_init = _hidden_init(config)

    def outputs(observations: jax.Array, actions: jax.Array) -> tuple[Outputs, Outputs]:
        features = apply_torso(
            config.torso,
            implementation,
            observations,
            activation=config.activation,
            w_init=hidden_init,
        )
        result = {}
        for head in spec.heads:
            if head in of_model:
                continue
            shape = (num_actions, head.size) if head.per_action else (head.size,)
            mlp = MLP(
                (*config.head_hidden, math.prod(shape)),
                activation=config.activation,
                w_init=hidden_init,
                final_w_init=_final_init(config, head),
                name=head.name,
            )
            result[head.name] = mlp(features).reshape(-1, *shape)
        if not of_model:
            return result, {}
        model = ActionModel(config.action_model, of_model, num_actions)
        whole, taken = model(features, actions)
        return {**result, **whole}, taken

    def without_actions(observations: jax.Array) -> Outputs:
        return outputs(observations, jnp.zeros((0,), jnp.int32))[0]

    return _as_network(without_actions, outputs)


@functools.cache
def build_value_network(
    torso: Torso, convolution: Literal["auto", "im2col", "native"] = "auto"
) -> Network:
    """Return a network whose one output, `value`, is ``[N]``: a plain number."""
    implementation = resolve_convolution(convolution)

    def outputs(observations: jax.Array) -> Outputs:
        features = apply_torso(torso, implementation, observations)
        value = MLP((1,), final_w_init=_small(), name="value")(features)
        return {"value": value[:, 0]}

    return _as_network(outputs)


def _hidden_init(config: NetworkConfig) -> Initializer | None:
    if config.initialization == "fan_in":
        return None
    return _orthogonal(HIDDEN_GAIN)


def _final_init(config: NetworkConfig, head: Head) -> Initializer:
    if head.zero_init:
        return hk.initializers.Constant(0.0)
    if config.initialization == "fan_in":
        return _small()
    gain = POLICY_GAIN if head.name == "logits" else 1.0
    return _orthogonal(gain)


def _small() -> Initializer:
    return hk.initializers.TruncatedNormal(HEAD_STDDEV)


def _orthogonal(gain: float) -> Initializer:
    """Return weights ``[..., outputs]`` whose singular values are all ``gain``."""
    draw = jax.nn.initializers.orthogonal(gain)

    def init(shape: Sequence[int], dtype: jnp.dtype) -> jax.Array:
        return draw(hk.next_rng_key(), tuple(shape), dtype)

    return init


def _as_network(
    outputs: Callable[[jax.Array], Outputs],
    taken: Callable[[jax.Array, jax.Array], tuple[Outputs, Outputs]] | None = None,
) -> Network:
    """Return the pure functions of Haiku functions of float observations."""
    transformed = hk.transform(outputs)

    def init(key: jax.Array, observations: jax.Array) -> Params:
        return transformed.init(key, _as_floats(observations, jnp.result_type(float)))

    def apply(params: Params, observations: jax.Array) -> Outputs:
        return transformed.apply(params, None, _as_floats(observations, _dtype(params)))

    if taken is None:
        return Network(init, apply)
    with_taken = hk.transform(taken)

    def apply_taken(
        params: Params, observations: jax.Array, actions: jax.Array
    ) -> tuple[Outputs, Outputs]:
        floats = _as_floats(observations, _dtype(params))
        return with_taken.apply(params, None, floats, actions)

    return Network(init, apply, apply_taken)


def _dtype(params: Params) -> jnp.dtype:
    return jax.tree.leaves(params)[0].dtype


def _as_floats(observations: jax.Array, dtype: jnp.dtype) -> jax.Array:
    floats = observations.astype(dtype)
    if observations.dtype == jnp.uint8 and observations.ndim == 4:
        return floats / PIXEL_MAX
    return floats
