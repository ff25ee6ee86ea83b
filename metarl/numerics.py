"""Value transforms, running moments, divergences and Adam, as pure functions.

Sits under the rules and the meta-gradient; imports only types and configuration.
Unless said otherwise the formulas are those of Oh et al., Nature 648 (2025) and its
released code.
"""

from __future__ import annotations

import dataclasses
from typing import TypeVar

import jax
import jax.numpy as jnp

from metarl.config import OptimizerConfig
from metarl.types import Clock, Params, pytree

Tree = TypeVar("Tree")

SQUASH_EPSILON = 1e-3
"""Of the signed-hyperbolic transform (Pohlen et al. 2018, Proposition A.2)."""


def signed_log(x: jax.Array) -> jax.Array:
    """Return ``sign(x) log(1 + |x|)``."""
    return jnp.sign(x) * jnp.log1p(jnp.abs(x))


def signed_hyperbolic(x: jax.Array) -> jax.Array:
    """Return ``sign(x) (sqrt(|x| + 1) - 1) + e x``, which squashes large values."""
    return jnp.sign(x) * (jnp.sqrt(jnp.abs(x) + 1) - 1) + SQUASH_EPSILON * x


def signed_parabolic(u: jax.Array) -> jax.Array:
    """Return the inverse of `signed_hyperbolic`.

    The root is written as ``2 (e + 1 + |u|) / (sqrt(1 + 4 e (e + 1 + |u|)) + 1)``,
    which keeps the digits that ``(sqrt(..) - 1) / (2 e)`` loses in float32.
    """
    shifted = SQUASH_EPSILON + 1 + jnp.abs(u)
    root = 2 * shifted / (jnp.sqrt(1 + 4 * SQUASH_EPSILON * shifted) + 1)
    return jnp.sign(u) * (jnp.square(root) - 1)


@dataclasses.dataclass(frozen=True)
class ValueBins:
    """A scalar as a categorical distribution over evenly spaced bins.

    The bins stand at ``-max_abs ... max_abs`` in signed-hyperbolic space.
    """

    num_bins: int
    max_abs: float

    def support(self) -> jax.Array:
        """Return the positions of the bins, ``[num_bins]``."""
        return jnp.linspace(-self.max_abs, self.max_abs, self.num_bins)

    def to_scalar(self, logits: jax.Array) -> jax.Array:
        """Return the scalar that ``logits [..., num_bins]`` stand for, ``[...]``."""
        return signed_parabolic(softmax_dot(logits, self.support()[:, None])[..., 0])

    def to_probs(self, x: jax.Array) -> jax.Array:
        """Return the two-hot distribution ``[..., num_bins]`` of the scalar ``x``."""
        spacing = 2 * self.max_abs / (self.num_bins - 1)
        u = jnp.clip(signed_hyperbolic(x), -self.max_abs, self.max_abs)
        position = (u + self.max_abs) / spacing
        low, high = jnp.floor(position), jnp.ceil(position)
        # 1e-5 as in the released code: a value that sits on a bin (low == high)
        # gets p_low = 0 and p_high = 1 without a division by zero.
        gap = (high - low) * spacing
        p_low = (high - position) * spacing / (gap + 1e-5)
        at_low = jax.nn.one_hot(low.astype(int), self.num_bins, dtype=u.dtype)
        at_high = jax.nn.one_hot(high.astype(int), self.num_bins, dtype=u.dtype)
        return at_low * p_low[..., None] + at_high * (1 - p_low)[..., None]


def softmax_dot(logits: jax.Array, weights: jax.Array) -> jax.Array:
    """Return ``softmax(logits) @ weights``: ``[..., Y], [Y, n] -> [..., n]``.

    The probabilities are never stored: the normaliser is one more column of the
    product, and its division comes after it, on n numbers instead of Y.
    """
    ones = jnp.ones((weights.shape[0], 1), weights.dtype)
    sums = jnp.exp(_less_largest(logits)) @ jnp.concatenate([weights, ones], axis=1)
    return sums[..., :-1] / sums[..., -1:]


def _less_largest(logits: jax.Array) -> jax.Array:
    """Return ``logits`` with 0 as the largest, for functions that ignore an offset."""
    # The offset cancels in the caller's result, and so does its gradient.
    return logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))


def kl_divergence(p_logits: jax.Array, q_logits: jax.Array) -> jax.Array:
    """Return KL(p || q) of two categorical distributions, over the last axis.

    As ``sum p (log p - q) + log sum exp q``, with the logits q less their largest: of q
    no other array is made, and the gradient for it, softmax(q) - p, needs no further
    sum.
    """
    log_p, q = jax.nn.log_softmax(p_logits), _less_largest(q_logits)
    log_total = jnp.log(jnp.sum(jnp.exp(q), axis=-1))
    return jnp.sum(jnp.exp(log_p) * (log_p - q), axis=-1) + log_total


def cross_entropy(p: jax.Array, q_logits: jax.Array) -> jax.Array:
    """Return ``-sum p log q``, of probabilities ``p`` that sum to 1, and logits."""
    q = _less_largest(q_logits)
    return jnp.log(jnp.sum(jnp.exp(q), axis=-1)) - jnp.sum(p * q, axis=-1)


def entropy(logits: jax.Array) -> jax.Array:
    """Return the entropy in nats of a categorical distribution, over the last axis."""
    log_p = jax.nn.log_softmax(logits)
    return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)


def take_action(values: jax.Array, actions: jax.Array) -> jax.Array:
    """Return ``values[t, b, actions[t, b]]``: ``[T, B, A, ...] -> [T, B, ...]``.

    Of an action that there is not, 0.
    """
    axis = actions.ndim
    # Selected and summed rather than gathered: the transpose of a gather is a scatter,
    # which XLA on CPU writes one entry after another.
    taken = jax.nn.one_hot(actions, values.shape[axis], dtype=bool)
    taken = taken.reshape(taken.shape + (1,) * (values.ndim - taken.ndim))
    return jnp.sum(jnp.where(taken, values, 0), axis=axis)


def masked_mean(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Return the mean of ``x [T, B, ...]`` over the entries that ``mask [T, B]`` keeps.

    Nothing kept gives 0. What the mask drops has no influence, to the bit.
    """
    mask = mask.astype(bool).reshape(mask.shape + (1,) * (x.ndim - mask.ndim))
    count = jnp.sum(jnp.broadcast_to(mask, x.shape), dtype=x.dtype)
    return jnp.sum(jnp.where(mask, x, 0)) / jnp.maximum(count, 1)


@pytree
class Moments:
    """Exponentially weighted first and second moment of a scalar; all scalars."""

    moment1: jax.Array
    moment2: jax.Array
    decay_product: jax.Array  # decay ** updates: debiases the moments

    @classmethod
    def initial(cls) -> Moments:
        """Return the moments before any data."""
        return cls(jnp.zeros(()), jnp.zeros(()), jnp.ones(()))

    def update(self, x: jax.Array, mask: jax.Array, decay: float) -> Moments:
        """Return the moments after the batch ``x [T, B]``, where ``mask`` keeps it.

        A batch without any kept entry changes nothing.
        """
        seen = jnp.any(mask)
        return Moments(
            jnp.where(
                seen,
                decay * self.moment1 + (1 - decay) * masked_mean(x, mask),
                self.moment1,
            ),
            jnp.where(
                seen,
                decay * self.moment2 + (1 - decay) * masked_mean(jnp.square(x), mask),
                self.moment2,
            ),
            jnp.where(seen, decay * self.decay_product, self.decay_product),
        )

    def normalize(
        self, x: jax.Array, *, subtract_mean: bool, floor: float = 1e-6
    ) -> jax.Array:
        """Return ``x`` over its running deviation, with the mean removed if asked.

        ``floor`` is added to the deviation: the default is that of DiscoRL's released
        code.
        """
        # Before the first data the product is 1; any divisor serves, as both
        # moments are 0 then.
        weight = jnp.where(self.decay_product < 1, 1 - self.decay_product, 1)
        mean = self.moment1 / weight
        variance = jnp.maximum(self.moment2 / weight - jnp.square(mean), 0)
        centred = x - mean if subtract_mean else x
        # 1e-12 as in the released code (`initial` moments: x / (1e-6 + floor)).
        return centred / (jnp.sqrt(variance + 1e-12) + floor)


@pytree
class AdamState:
    """Moments of the gradient; trees like the parameters."""

    count: jax.Array  # i32[] updates so far
    mu: Params
    nu: Params


def adam_init(params: Tree) -> AdamState:
    """Return Adam's state before the first update."""
    zeros = jax.tree.map(jnp.zeros_like, params)
    return AdamState(jnp.zeros((), jnp.int32), zeros, zeros)


def adam_direction(
    grads: Tree, state: AdamState, *, b1: float, b2: float, eps: float
) -> tuple[Tree, AdamState]:
    """Return Adam's step before the learning rate, and the new state.

    Kingma and Ba (2015), Algorithm 1. The denominator is a constant for the outer
    gradient, as in discovery (Oh et al. 2025, SI section 3): differentiating it
    makes meta-gradients explode where the second moment is tiny.
    """
    count = state.count + 1
    mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, grads)
    nu = jax.tree.map(
        # Stops the meta-gradient through the second moment (see above).
        lambda n, g: jax.lax.stop_gradient(b2 * n + (1 - b2) * jnp.square(g)),
        state.nu,
        grads,
    )
    power = count.astype(jax.tree.leaves(mu)[0].dtype)
    correction1, correction2 = 1 - b1**power, 1 - b2**power
    direction = jax.tree.map(
        lambda m, n: (m / correction1) / (jnp.sqrt(n / correction2) + eps), mu, nu
    )
    return direction, AdamState(count, mu, nu)


def clip_elementwise(tree: Tree, bound: float) -> Tree:
    """Return ``tree`` with entries in ``[-bound, bound]``; no gradient outside."""
    return jax.tree.map(lambda x: jnp.clip(x, -bound, bound), tree)


def global_norm(tree: object) -> jax.Array:
    """Return the L2 norm of all entries of ``tree`` together."""
    return jnp.sqrt(sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(tree)))


def scale_to_norm(tree: Tree, max_norm: float) -> Tree:
    """Return ``tree``, scaled down to the global norm ``max_norm`` if it exceeds it.

    Differentiable everywhere: a tree of zeros has a gradient too.
    """
    squared = sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(tree))
    exceeds = jnp.sqrt(squared) > max_norm
    # The slope of a root at 0 is infinite, and times the zero of the branch not taken
    # it would be nan: so the root is taken of a number away from 0 there.
    norm = jnp.sqrt(jnp.where(exceeds, squared, max_norm**2))
    scale = jnp.where(exceeds, max_norm / norm, 1)
    return jax.tree.map(lambda x: x * scale, tree)


def learning_rate(config: OptimizerConfig, clock: Clock) -> jax.Array:
    """Return the learning rate at the agent's age: warm-up, then the schedule."""
    start, end = config.learning_rate, config.end_learning_rate
    fraction = jnp.clip(clock.lifetime_fraction, 0, 1)
    rates = {
        "constant": jnp.full_like(fraction, start),
        "linear": start + (end - start) * fraction,
        "cosine": end + (start - end) * 0.5 * (1 + jnp.cos(jnp.pi * fraction)),
    }
    if config.warmup_env_steps == 0:
        return rates[config.schedule]
    warm = jnp.minimum(clock.env_steps / config.warmup_env_steps, 1)
    return rates[config.schedule] * warm
