"""Haiku torsos: observations in, one feature vector per observation out.

Chosen by the configuration; the heads on top are in `networks.py`.
"""

from __future__ import annotations

import functools

import haiku as hk
import jax
import numpy as np

from metarl.agents.convolution import Conv2D, Implementation, max_pool
from metarl.config import ImpalaTorso, MLPTorso, NatureTorso
from metarl.errors import UserError

Torso = MLPTorso | NatureTorso | ImpalaTorso


class MLP(hk.Module):
    """Linear layers with ReLU between them: `hk.nets.MLP` with shorter names."""

    def __init__(
        self,
        sizes: tuple[int, ...],
        *,
        activate_final: bool = False,
        final_stddev: float | None = None,
        name: str | None = None,
    ) -> None:
        """Describe the layers.

        Args:
          sizes: units of each layer.
          activate_final: whether a ReLU follows the last layer too.
          final_stddev: of the last layer's initial weights, a truncated normal; None:
            1 / sqrt(fan in), as in all other layers.
          name: of the module; its layers are `linear_0`, `linear_1`, ...
        """
        super().__init__(name=name)
        self.sizes = sizes
        self.activate_final = activate_final
        self.final_stddev = final_stddev

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return ``[..., sizes[-1]]`` of ``[..., C]``."""
        for i, size in enumerate(self.sizes):
            final = i == len(self.sizes) - 1
            init = None
            if final and self.final_stddev is not None:
                init = hk.initializers.TruncatedNormal(self.final_stddev)
            x = hk.Linear(size, w_init=init, name=f"linear_{i}")(x)
            if not final or self.activate_final:
                x = jax.nn.relu(x)
        return x


class NatureNet(hk.Module):
    """The convolutional network of Mnih et al. (2015)."""

    def __init__(self, config: NatureTorso, implementation: Implementation) -> None:
        super().__init__(name="torso")
        self.config = config
        self.implementation = implementation

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
                name=f"conv_{i}",
            )(x)
            x = jax.nn.relu(x)
        x = hk.Linear(config.dense, name="dense")(_flatten(x))
        return jax.nn.relu(x)


class ImpalaNet(hk.Module):
    """The residual network of Espeholt et al. (2018), without its recurrent core."""

    def __init__(self, config: ImpalaTorso, implementation: Implementation) -> None:
        super().__init__(name="torso")
        self.config = config
        self.implementation = implementation

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return ``[N, dense]`` of frames ``[N, H, W, C]``."""
        conv = functools.partial(Conv2D, implementation=self.implementation)
        for i, channels in enumerate(self.config.channels):
            x = conv(channels, 3, name=f"section_{i}_conv")(x)
            x = max_pool(x, 3, 2, implementation=self.implementation)
            for j in range(self.config.blocks):
                y = jax.nn.relu(x)
                y = conv(channels, 3, name=f"section_{i}_block_{j}_conv_0")(y)
                y = jax.nn.relu(y)
                x = x + conv(channels, 3, name=f"section_{i}_block_{j}_conv_1")(y)
        x = hk.Linear(self.config.dense, name="dense")(_flatten(jax.nn.relu(x)))
        return jax.nn.relu(x)


def apply_torso(
    config: Torso, implementation: Implementation, observations: jax.Array
) -> jax.Array:
    """Return features ``[N, F]`` of observations ``[N, ...]``; inside a transform.

    Raises:
      UserError: the torso does not take observations of this shape.
    """
    if isinstance(config, MLPTorso):
        mlp = MLP(config.hidden, activate_final=config.activate_final, name="torso")
        return mlp(_flatten(observations))
    if observations.ndim != 4:
        raise UserError(
            f"agent.network.torso: '{config.kind}' takes frames of height x width x "
            f"channels, these observations have shape {observations.shape[1:]}; "
            "take 'mlp'"
        )
    if isinstance(config, NatureTorso):
        return NatureNet(config, implementation)(observations)
    return ImpalaNet(config, implementation)(observations)


def _flatten(x: jax.Array) -> jax.Array:
    return x.reshape(x.shape[0], int(np.prod(x.shape[1:])))
