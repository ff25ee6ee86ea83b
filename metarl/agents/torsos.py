"""Haiku torsos: observations in, one feature vector per observation out.

Chosen by the configuration; the heads on top are in `networks.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from metarl.agents.convolution import Conv2D, Implementation, max_pool
from metarl.config import ImpalaTorso, MLPTorso, NatureTorso
from metarl.errors import UserError

Torso = MLPTorso | NatureTorso | ImpalaTorso
Initializer = hk.initializers.Initializer
Activation = Literal["relu", "leaky_relu", "tanh"]

_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "leaky_relu": functools.partial(jax.nn.leaky_relu, negative_slope=0.01),
    "tanh": jnp.tanh,
}


class MLP(hk.Module):
    """Linear layers, activations between them: `hk.nets.MLP` with shorter names."""

    def __init__(
        self,
        sizes: tuple[int, ...],
        *,
        activation: Activation = "relu",
        activate_final: bool = False,
        w_init: Initializer | None = None,
        final_w_init: Initializer | None = None,
        name: str | None = None,
    ) -> None:
        """Describe the layers.

        Args:
          sizes: units of each layer.
          activation: between the layers.
          activate_final: whether the activation follows the last layer too.
          w_init: of the initial weights; None: a truncated normal of deviation
            1 / sqrt(fan in).
          final_w_init: in place of it for the last layer.
          name: of the module; its layers are `linear_0`, `linear_1`, ...
        """
        super().__init__(name=name)
        self.sizes = sizes
        self.activation = _ACTIVATIONS[activation]
        self.activate_final = activate_final
        self.w_init = w_init
        self.final_w_init = final_w_init or w_init

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return ``[..., sizes[-1]]`` of ``[..., C]``."""
        for i, size in enumerate(self.sizes):
            final = i == len(self.sizes) - 1
            init = self.final_w_init if final else self.w_init
            x = hk.Linear(size, w_init=init, name=f"linear_{i}")(x)
            if not final or self.activate_final:
                x = self.activation(x)
        return x


class NatureNet(hk.Module):
    """The convolutional network of Mnih et al. (2015)."""

    def __init__(
        self,
        config: NatureTorso,
        implementation: Implementation,
        w_init: Initializer | None = None,
    ) -> None:
        super().__init__(name="torso")
        self.config = config
        self.implementation = implementation
        self.w_init = w_init

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return ``[N, dense]`` of frames ``[N, H, W, C]``."""
        config = self.config
        layers = zip(config.channels, config.kernels, config.strides, strict=True)
        for i, (channels, kernel, stride) in enumerate(layers):
            if min(x.shape[1:3]) < kernel:
                raise UserError(
                    f"agent.network.torso: layer {i} of 'nature' sees "
                    f"{x.shape[1]} x {x.shape[2]} pixels, its kernel has {kernel} x "
                    f"{kernel}; take larger frames, smaller kernels or strides, or "
                    "'impala'"
                )
            x = Conv2D(
                channels,
                kernel,
                stride=stride,
                padding="VALID",
                implementation=self.implementation,
                w_init=self.w_init,
                name=f"conv_{i}",
            )(x)
            x = jax.nn.relu(x)
        x = hk.Linear(config.dense, w_init=self.w_init, name="dense")(_flatten(x))
        return jax.nn.relu(x)


class ImpalaNet(hk.Module):
    """The residual network of Espeholt et al. (2018), without its recurrent core."""

    def __init__(
        self,
        config: ImpalaTorso,
        implementation: Implementation,
        w_init: Initializer | None = None,
    ) -> None:
        super().__init__(name="torso")
        self.config = config
        self.implementation = implementation
        self.w_init = w_init

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return ``[N, dense]`` of frames ``[N, H, W, C]``."""
        conv = functools.partial(
            Conv2D, implementation=self.implementation, w_init=self.w_init
        )
        for i, channels in enumerate(self.config.channels):
            x = conv(channels, 3, name=f"section_{i}_conv")(x)
            x = max_pool(x, 3, 2, implementation=self.implementation)
            for j in range(self.config.blocks):
                y = jax.nn.relu(x)
                y = conv(channels, 3, name=f"section_{i}_block_{j}_conv_0")(y)
                y = jax.nn.relu(y)
                x = x + conv(channels, 3, name=f"section_{i}_block_{j}_conv_1")(y)
        dense = hk.Linear(self.config.dense, w_init=self.w_init, name="dense")
        return jax.nn.relu(dense(_flatten(jax.nn.relu(x))))


def apply_torso(
    config: Torso,
    implementation: Implementation,
    observations: jax.Array,
    *,
    activation: Activation = "relu",
    w_init: Initializer | None = None,
) -> jax.Array:
    """Return features ``[N, F]`` of observations ``[N, ...]``; inside a transform.

    Args:
      config: which torso.
      implementation: of its convolutions.
      observations: ``[N, ...]``.
      activation: of `mlp`; the others are published with ReLU.
      w_init: of the initial weights; None: as in `MLP`.

    Raises:
      UserError: the torso does not take observations of this shape.
    """
    if isinstance(config, MLPTorso):
        mlp = MLP(
            config.hidden,
            activation=activation,
            activate_final=config.activate_final,
            w_init=w_init,
            name="torso",
        )
        return mlp(_flatten(observations))
    if observations.ndim != 4:
        raise UserError(
            f"agent.network.torso: '{config.kind}' takes frames of height x width x "
            f"channels, these observations have shape {observations.shape[1:]}; "
            "take 'mlp'"
        )
    if isinstance(config, NatureTorso):
        return NatureNet(config, implementation, w_init)(observations)
    return ImpalaNet(config, implementation, w_init)(observations)


def _flatten(x: jax.Array) -> jax.Array:
    return x.reshape(x.shape[0], int(np.prod(x.shape[1:])))
