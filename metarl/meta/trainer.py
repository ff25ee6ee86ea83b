"""The meta-update: one Adam per group on its meta-gradient, their steps averaged.

Oh et al., Nature 648 (2025), Methods. Pure; the training loop calls it.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from metarl.config import MetaOptimizerConfig, OptimizerConfig
from metarl.numerics import (
    AdamState,
    adam_direction,
    adam_init,
    global_norm,
    scale_to_norm,
)
from metarl.numerics import learning_rate as scheduled_rate
from metarl.rules.base import Metrics
from metarl.types import Clock, Params, pytree


@pytree
class MetaState:
    """The rule being discovered, and its optimisers."""

    params: Params
    optimizers: AdamState  # [G]
    meta_steps: jax.Array  # i32[] done so far
    skipped: jax.Array  # i32[] groups whose meta-gradient was not finite, so far
    skipped_in_a_row: jax.Array  # i32[] meta-steps in a row with such a group


def init(meta_params: Params, *, groups: int) -> MetaState:
    """Return the state before the first meta-step."""

    def repeat(x: jax.Array) -> jax.Array:
        return jnp.broadcast_to(x, (groups, *jnp.shape(x)))

    return MetaState(
        params=meta_params,
        optimizers=jax.tree.map(repeat, adam_init(meta_params)),
        meta_steps=jnp.zeros((), jnp.int32),
        skipped=jnp.zeros((), jnp.int32),
        skipped_in_a_row=jnp.zeros((), jnp.int32),
    )


def update(
    config: MetaOptimizerConfig, state: MetaState, grads: Params
) -> tuple[MetaState, Metrics]:
    """Return the meta-parameters after one step.

    A group whose gradient is not finite has no say in this step, and its Adam stays
    as it was.

    Args:
      config: of the optimiser.
      state: before the step.
      grads: of every group, ``[G, ...]``.

    Returns:
      The state after it, and scalars to log.
    """

    def of_group(
        optimizer: AdamState, grads: Params
    ) -> tuple[Params, AdamState, jax.Array, jax.Array]:
        norm = global_norm(grads)
        finite = jnp.isfinite(norm)
        safe = jax.tree.map(lambda g: jnp.where(finite, g, 0), grads)
        direction, new = adam_direction(
            scale_to_norm(safe, config.max_grad_norm),
            optimizer,
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
        )
        new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, optimizer)
        direction = jax.tree.map(lambda d: jnp.where(finite, d, 0), direction)
        return direction, new, norm, finite

    directions, optimizers, norms, finite = jax.vmap(of_group)(state.optimizers, grads)
    count = jnp.maximum(jnp.sum(finite), 1)
    rate = learning_rate(config, state.meta_steps)
    steps = jax.tree.map(lambda d: -rate * jnp.sum(d, axis=0) / count, directions)
    skipped = jnp.sum(~finite, dtype=jnp.int32)
    new_state = MetaState(
        params=jax.tree.map(jnp.add, state.params, steps),
        optimizers=optimizers,
        meta_steps=state.meta_steps + 1,
        skipped=state.skipped + skipped,
        skipped_in_a_row=jnp.where(skipped > 0, state.skipped_in_a_row + 1, 0),
    )
    metrics = {
        "grad_norm": jnp.sum(jnp.where(finite, norms, 0)) / count,
        "update_norm": global_norm(steps),
        "learning_rate": rate,
        "skipped": new_state.skipped,
    }
    return new_state, metrics


def learning_rate(config: MetaOptimizerConfig, meta_steps: jax.Array) -> jax.Array:
    """Return the rate of the step that follows ``meta_steps`` others.

    The agents' schedule, in meta-steps; only that a warm-up's first step is no step of
    zero, which would cost a whole meta-gradient.
    """
    dtype = jnp.result_type(float)
    done = meta_steps.astype(dtype)
    schedule = OptimizerConfig(
        learning_rate=config.learning_rate,
        end_learning_rate=config.end_learning_rate,
        schedule=config.schedule,
    )
    fraction = jnp.minimum(done / (config.schedule_meta_steps or 1), 1)
    rate = scheduled_rate(schedule, Clock(done, meta_steps, fraction))
    if config.warmup_meta_steps == 0:
        return rate
    return rate * jnp.minimum((done + 1) / config.warmup_meta_steps, 1)


@jax.jit
def reset_optimizers(state: MetaState, groups: jax.Array) -> MetaState:
    """Return the state with new Adams for the ``groups bool[G]``."""
    optimizers = jax.tree.map(
        lambda x: jnp.where(groups.reshape(-1, *[1] * (x.ndim - 1)), 0, x),
        state.optimizers,
    )
    return dataclasses.replace(state, optimizers=optimizers)


def offending_leaf(grads: Params) -> str | None:
    """Return the path of the first tensor of ``grads`` that is not finite."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(grads)[0]:
        if not bool(jnp.all(jnp.isfinite(leaf))):
            return jax.tree_util.keystr(path)
    return None
