"""Random experience of a task's shapes, made on the device.

Pure. So that no environment hides what is measured: it has every kind of transition,
and means nothing.
"""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp

from metarl.envs.tasks import PoolSpec
from metarl.types import Rollout, Transitions

END_RATE = 0.1
"""Share of transitions that might end an episode; 8 x 8 Catch has 1 in 7."""
CUT_SHARE = 0.2
"""Of these ends, those that are truncations."""


@partial(jax.jit, static_argnames=("spec", "lead", "steps", "batch"))
def rollouts(
    key: jax.Array, spec: PoolSpec, *, lead: tuple[int, ...], steps: int, batch: int
) -> Rollout:
    """Return independent random rollouts.

    Args:
      key: consumed.
      spec: shapes of observations and actions.
      lead: leading axes, such as ``(G, N, K)``.
      steps: T.
      batch: B.

    Returns:
      Leaves ``[*lead, T, B, ...]``; no transition follows an end but the invalid one.
    """
    # One after another: the random bits of all at once would be the peak of a process
    # whose memory is measured.
    keys = jax.random.split(key, math.prod(lead))
    flat = jax.lax.map(partial(_rollout, spec, steps, batch), keys)
    return jax.tree.map(lambda x: x.reshape(*lead, *x.shape[1:]), flat)


def _rollout(spec: PoolSpec, steps: int, batch: int, key: jax.Array) -> Rollout:
    keys = jax.random.split(key, 6)
    shape = (steps, batch)
    # Never two in a row, so that the transition after an end is the invalid one.
    might_end = jax.random.bernoulli(keys[0], END_RATE, shape)
    before = jnp.concatenate([jnp.zeros_like(might_end[:1]), might_end[:-1]])
    ends = might_end & ~before
    valid = ~jnp.concatenate([jnp.zeros_like(ends[:1]), ends[:-1]])
    cut = ends & jax.random.bernoulli(keys[1], CUT_SHARE, shape)
    logits = 0.1 * jax.random.normal(keys[2], (*shape, spec.num_actions))
    rewards = jax.random.uniform(keys[3], shape, minval=-1, maxval=1) * valid
    returns = jnp.sum(rewards, axis=0)
    return Rollout(
        observations=_observations(keys[4], spec, (steps + 1, batch)),
        transitions=Transitions(
            actions=jax.random.categorical(keys[5], logits).astype(jnp.int32),
            behaviour_logits=logits,
            rewards=rewards,
            is_terminal=ends & ~cut,
            cut=cut,
            valid=valid,
            learn=jnp.ones(shape, rewards.dtype),
            own=jnp.ones(shape, bool),
        ),
        returns=returns,
        success=returns > 0,
        env_steps=jnp.sum(valid, dtype=jnp.int32),
    )


def _observations(key: jax.Array, spec: PoolSpec, lead: tuple[int, ...]) -> jax.Array:
    shape, dtype = (*lead, *spec.observation_shape), spec.observation_dtype
    if dtype == jnp.bool_:
        return jax.random.bernoulli(key, 0.5, shape)
    if dtype == jnp.uint8:
        return jax.random.bits(key, shape, jnp.uint8)
    return jax.random.uniform(key, shape, dtype)
