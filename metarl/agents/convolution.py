"""Convolutions and max-pooling that stay fast, and small, inside loops on CPU.

Used by the pixel torsos. XLA on CPU runs convolutions inside `scan` and under `vmap` on
a slow path, so "im2col" writes them as matrix products; knows no configuration.
"""

from __future__ import annotations

from typing import Literal

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Implementation = Literal["im2col", "native"]
Padding = Literal["SAME", "VALID"]

# Measured on 2 x86 cores (42 x 42 x 4 and 42 x 42 x 16, batches of 128 and 544): up to
# about 16 MiB of patches one product for the whole batch is fastest; above that, chunks
# of 1 to 4 MiB are as fast or faster and need a fraction of the memory.
WHOLE_BATCH_BYTES = 16 * 2**20
CHUNK_BYTES = 2 * 2**20


def resolve_convolution(choice: Literal["auto", "im2col", "native"]) -> Implementation:
    """Return the implementation that ``choice`` stands for on the default backend."""
    if choice == "auto":
        return "im2col" if jax.default_backend() == "cpu" else "native"
    return choice


class Conv2D(hk.Module):
    """A square convolution; parameters and results are those of `hk.Conv2D`."""

    def __init__(
        self,
        output_channels: int,
        kernel: int,
        *,
        stride: int = 1,
        padding: Padding = "SAME",
        implementation: Implementation = "native",
        w_init: hk.initializers.Initializer | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self.output_channels = output_channels
        self.kernel = kernel
        self.stride = stride
        self.padding = padding
        self.implementation = implementation
        self.w_init = w_init

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Return ``[N, H', W', output_channels]`` of inputs ``[N, H, W, C]``."""
        shape = (self.kernel, self.kernel, inputs.shape[-1], self.output_channels)
        # 1 / sqrt(fan in), the default of Haiku's layers.
        fan_in = hk.initializers.TruncatedNormal(1 / np.sqrt(np.prod(shape[:-1])))
        init = self.w_init or fan_in
        w = hk.get_parameter("w", shape, inputs.dtype, init=init)
        b = hk.get_parameter("b", shape[-1:], inputs.dtype, init=jnp.zeros)
        y = conv2d(
            inputs,
            w,
            stride=self.stride,
            padding=self.padding,
            implementation=self.implementation,
        )
        return y + jnp.broadcast_to(b, y.shape)


def conv2d(
    x: jax.Array,
    w: jax.Array,
    *,
    stride: int = 1,
    padding: Padding = "SAME",
    implementation: Implementation = "native",
) -> jax.Array:
    """Return the convolution of ``x`` ``[N, H, W, C]`` with ``w`` ``[k, k, C, O]``.

    With "im2col", batches whose patches take more than `WHOLE_BATCH_BYTES` are worked
    off in chunks, and what the backward pass needs of a chunk is computed anew there:
    memory is that of inputs, outputs and one chunk, in the gradient too.

    Args:
      x: inputs, channels last.
      w: square kernel.
      stride: of both spatial axes.
      padding: "SAME" or "VALID".
      implementation: "im2col" or "native" (XLA's own convolution).

    Returns:
      ``[N, H', W', O]``.
    """
    if implementation == "native":
        return lax.conv_general_dilated(
            x,
            w,
            (stride, stride),
            padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    def product(x: jax.Array) -> jax.Array:
        return _sum_of_row_products(*_space_to_depth(x, w, stride, padding))

    size = x.shape[0]
    height, width = (_output_size(n, w.shape[0], stride, padding) for n in x.shape[1:3])
    patch_size = int(np.prod(w.shape[:3]))
    patch_bytes = size * height * width * patch_size * x.dtype.itemsize
    if patch_bytes <= WHOLE_BATCH_BYTES:
        return product(x)
    chunks = _num_chunks(size, -(-patch_bytes // CHUNK_BYTES))
    chunk = -(-size // chunks)
    x = jnp.pad(x, ((0, chunks * chunk - size), (0, 0), (0, 0), (0, 0)))
    # Inside a loop nothing is shared between forward and backward pass anyway, so the
    # barriers of `prevent_cse` would only cost time.
    y = lax.map(
        jax.checkpoint(product, prevent_cse=False),
        x.reshape(chunks, chunk, *x.shape[1:]),
    )
    return y.reshape(chunks * chunk, *y.shape[2:])[:size]


def _num_chunks(size: int, wanted: int) -> int:
    """Return into how many chunks of equal length to cut a batch of ``size``.

    A divisor of ``size`` where one is near, since filling up the last chunk costs a
    copy of the whole batch.
    """
    wanted = min(wanted, size)
    divisors = (n for n in range(wanted, min(4 * wanted, size) + 1) if size % n == 0)
    return next(divisors, wanted)


def _output_size(size: int, kernel: int, stride: int, padding: Padding) -> int:
    span = size if padding == "SAME" else size - kernel + 1
    return -(-span // stride)


def _space_to_depth(
    x: jax.Array, w: jax.Array, stride: int, padding: Padding
) -> tuple[jax.Array, jax.Array]:
    """Return the same convolution with stride 1 and without padding.

    Blocks of ``stride * stride`` pixels become channels, so that an 8 x 8 kernel of
    stride 4 is a 2 x 2 one: 4 slices of 16 C channels instead of 64 strided ones of C.
    """
    kernel, _, channels, outputs = w.shape
    blocks = -(-kernel // stride)  # blocks that a kernel covers along each axis
    config = [(0, 0, 0)]
    sizes = []
    pads = lax.padtype_to_pads(
        x.shape[1:3], (kernel, kernel), (stride, stride), padding
    )
    for size, (low, _) in zip(x.shape[1:3], pads, strict=True):
        outer = _output_size(size, kernel, stride, padding) + blocks - 1
        sizes.append(outer)
        config.append((low, outer * stride - size - low, 0))  # crops where negative
    x = lax.pad(x, jnp.zeros((), x.dtype), [*config, (0, 0, 0)])
    if stride == 1:
        return x, w
    depth = stride * stride * channels
    x = x.reshape(-1, sizes[0], stride, sizes[1], stride, channels)
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, *sizes, depth)
    extra = (0, blocks * stride - kernel)
    w = jnp.pad(w, (extra, extra, (0, 0), (0, 0)))
    w = w.reshape(blocks, stride, blocks, stride, channels, outputs)
    w = w.transpose(0, 2, 1, 3, 4, 5).reshape(blocks, blocks, depth, outputs)
    return x, w


def _sum_of_row_products(x: jax.Array, w: jax.Array) -> jax.Array:
    """Return the convolution of stride 1 without padding.

    One matrix product per row of the kernel: of all variants between one product for
    the whole kernel and one per kernel entry this was the fastest, in running and in
    compiling, and it holds the patches of one row only.
    """
    kernel, _, channels, outputs = w.shape
    height, width = x.shape[1] - kernel + 1, x.shape[2] - kernel + 1
    total = None
    for i in range(kernel):
        row = x[:, i : i + height]
        patches = jnp.concatenate(
            [row[:, :, j : j + width] for j in range(kernel)], axis=-1
        )
        term = patches @ w[i].reshape(kernel * channels, outputs)
        total = term if total is None else total + term
    assert total is not None
    return total


def max_pool(
    x: jax.Array, window: int, stride: int, *, implementation: Implementation = "native"
) -> jax.Array:
    """Return the maxima of square windows of ``x`` ``[N, H, W, C]``, padding "SAME".

    Equal to `hk.max_pool`, in the gradient too: of several equal maxima the first one
    in row-major order receives it. "im2col" takes maxima of strided slices, along the
    width and then the height: on CPU 2 to 3 times as fast as XLA's window reduction.
    """
    if implementation == "native":
        shape, strides = (1, window, window, 1), (1, stride, stride, 1)
        return lax.reduce_window(x, -jnp.inf, lax.max, shape, strides, "SAME")
    return _max_along(_max_along(x, 2, window, stride), 1, window, stride)


def _max_along(x: jax.Array, axis: int, window: int, stride: int) -> jax.Array:
    size = -(-x.shape[axis] // stride)
    missing = max((size - 1) * stride + window - x.shape[axis], 0)
    config = [(0, 0, 0)] * x.ndim
    config[axis] = (missing // 2, missing - missing // 2, 0)
    x = lax.pad(x, jnp.full((), -jnp.inf, x.dtype), config)
    end = (size - 1) * stride + 1
    best = lax.slice_in_dim(x, 0, end, stride, axis)
    for start in range(1, window):
        later = lax.slice_in_dim(x, start, start + end, stride, axis)
        # Not `jnp.maximum`, which splits the gradient between equal values.
        best = jnp.where((later > best) | jnp.isnan(later), later, best)
    return best
