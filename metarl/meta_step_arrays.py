"""Keys and records of a meta-step, as arrays of all groups.

Pure, under `stack_agents.py` and `stack_training.py`.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from metarl.agents.agent import AgentState
from metarl.meta.inner_loop import Window
from metarl.meta.objective import ValueState
from metarl.types import Rollout


@functools.partial(jax.jit, static_argnames=("updates", "groups"))
def split_keys(
    key: jax.Array, *, updates: int, groups: int
) -> tuple[list[jax.Array], list[jax.Array]]:
    """Return a meta-step's keys to act with, and each update's, ``[G]``."""
    *keys, validation_key = jax.random.split(key, updates + 1)
    pairs = [jax.random.split(key) for key in keys]
    act_keys = [act_key for act_key, _ in pairs]
    update_keys = [jax.random.split(update_key, groups) for _, update_key in pairs]
    return [*act_keys, validation_key], update_keys


@jax.jit
def steps_per_group(rollout: Rollout) -> jax.Array:
    """Return the environment steps of a rollout, over each group: ``i32[G, K]``."""
    steps = jnp.sum(rollout.env_steps, axis=1, keepdims=True)
    return jnp.broadcast_to(steps, rollout.env_steps.shape)


@jax.jit
def with_steps_of(validation: Rollout, rollout: Rollout) -> Rollout:
    """Return ``rollout`` with the environment steps of both."""
    return dataclasses.replace(
        rollout, env_steps=rollout.env_steps + validation.env_steps
    )


@jax.jit
def block_window(
    agents: AgentState,
    values: ValueState,
    rollouts: list[Rollout],
    keys: list[jax.Array],
    validation: Rollout,
) -> Window:
    """Stack what one meta-step recorded behind the axis G."""
    stacked = jax.tree.map(lambda *x: jnp.stack(x, axis=1), *rollouts)
    return Window(agents, values, stacked, jnp.stack(keys, axis=1), validation)
