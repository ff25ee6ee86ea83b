"""What the agents of a group are shown of what it collected, by `RuleSpec.reads`.

Below `lesson.py`. Every array of K agents has a leading axis K; columns C are B or, of
the pool, K B: column ``k B + b`` is the b-th trajectory of peer k.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from metarl.rules.base import Reads
from metarl.types import Params, Rollout, Transitions, drop_invalid, pytree

Tree = TypeVar("Tree")


@pytree
class Rows:
    """Observations as networks are given them, with the actions taken on the first T.

    ``[K, T or T+1, B, ...]``: those of every agent's own trajectories.
    """

    observations: jax.Array
    # The same as other agents may see them; None: they are not to.
    shared: jax.Array | None
    actions: jax.Array  # i32[K, T, B]


@pytree
class Batch:
    """One batch of a group, as each of its agents is shown it."""

    rows: Rows
    transitions: Transitions  # [K, T, C]
    returns: jax.Array  # f32[K, C]
    success: jax.Array  # bool[K, C]
    # bool[K, P] where parameters and data are finite, of the peer and of the agent.
    present: jax.Array
    env_steps: jax.Array  # i32[] of the group
    score: jax.Array | None  # f32[K] of every agent; None where nobody keeps them


def show(reads: Reads, params: Params, rollouts: Rollout) -> Batch:
    """Return the batch that rollouts make.

    Whatever is not finite stays with its agent: trajectories of one whose parameters
    or data are not are invalid to all others, who see zeros in their place.

    Args:
      reads: what the rule reads.
      params: of the agents, ``[K]``.
      rollouts: that they collected, ``[K]``.
    """
    own = jax.vmap(_own)(rollouts.transitions)
    env_steps = jnp.sum(rollouts.env_steps, dtype=rollouts.env_steps.dtype)
    returns, success = rollouts.returns, rollouts.success
    rows = Rows(rollouts.observations, None, own.actions)
    num_peers = len(returns)
    if reads == "own":
        nobody = jnp.ones((num_peers, 0), bool)
        return Batch(rows, own, returns, success, nobody, env_steps, rollouts.score)
    # Log-probabilities of actions that the policy excluded are infinite by right.
    least = np.finfo(own.behaviour_logits.dtype).min
    drawn = jnp.maximum(own.behaviour_logits, least)
    acted = dataclasses.replace(own, behaviour_logits=drawn)
    sound = all_finite(params) & all_finite((rollouts.observations, acted, returns))
    seen = rollouts.observations
    if jnp.issubdtype(seen.dtype, jnp.floating):
        seen = jnp.where(_like(sound, seen), seen, 0)
    rows = dataclasses.replace(rows, shared=seen)
    # One that has failed is beside nobody: its loss is to move no peer.
    present = sound[:, None] & sound[others(num_peers)]
    if reads == "peers":
        return Batch(rows, own, returns, success, present, env_steps, rollouts.score)

    def of_pool(index: jax.Array) -> tuple[Transitions, jax.Array, jax.Array]:
        is_own = jnp.arange(num_peers) == index
        shown = is_own | sound
        transitions = dataclasses.replace(
            own,
            valid=own.valid & _like(shown, own.valid),
            own=own.own & _like(is_own, own.own),
        )
        return (
            jax.vmap(drop_invalid)(transitions),
            jnp.where(shown[:, None], returns, 0),
            success & shown[:, None],
        )

    transitions, returns, success = jax.vmap(of_pool)(jnp.arange(num_peers))
    return Batch(
        rows=rows,
        transitions=jax.tree.map(lambda x: join(x, axis=1), transitions),
        returns=returns.reshape(num_peers, -1),
        success=success.reshape(num_peers, -1),
        present=present,
        env_steps=env_steps,
        score=rollouts.score,
    )


def without_absent(
    transitions: Transitions, returns: jax.Array, success: jax.Array, there: jax.Array
) -> tuple[Transitions, jax.Array, jax.Array]:
    """Return an agent's pool without the trajectories of peers that turned out absent.

    As one's whose parameters are finite and whose outputs are not. Their transitions
    are invalid, and their returns 0.

    Args:
      transitions: ``[T, C]``.
      returns: ``[C]``.
      success: ``[C]``.
      there: of each owner of columns, bool[owners]; of the agent itself True.
    """
    columns = jnp.repeat(
        there, len(returns) // len(there), total_repeat_length=len(returns)
    )
    transitions = dataclasses.replace(
        transitions, valid=transitions.valid & columns[None]
    )
    return (
        drop_invalid(transitions),
        jnp.where(columns, returns, 0),
        success & columns,
    )


def others(num_peers: int) -> jax.Array:
    """Return the indices of each agent's K - 1 peers: ``i32[K, K-1]``."""
    index = jnp.arange(num_peers)[:, None] + 1 + jnp.arange(num_peers - 1)[None]
    return (index % num_peers).astype(jnp.int32)


def join(x: jax.Array, *, axis: int) -> jax.Array:
    """Return ``[..., K, T, B, ...]`` as ``[..., T, K B, ...]``; K is at ``axis``."""
    x = jnp.moveaxis(x, axis, axis + 1)
    lead, (peers, batch) = x.shape[: axis + 1], x.shape[axis + 1 : axis + 3]
    return x.reshape(*lead, peers * batch, *x.shape[axis + 3 :])


def own_columns(tree: Tree, *, owners: int) -> Tree:
    """Return each agent's own trajectories ``[K, T, B, ...]`` of all that it is shown.

    Args:
      tree: of arrays ``[K, T, C, ...]``.
      owners: how many agents' trajectories the columns are: K of the pool, else 1.
    """

    def own(x: jax.Array) -> jax.Array:
        steps, columns = x.shape[1:3]
        x = x.reshape(len(x), steps, owners, columns // owners, *x.shape[3:])
        index = jnp.arange(len(x)) % owners
        return jax.vmap(lambda x, k: jnp.take(x, k, axis=1))(x, index)

    return jax.tree.map(own, tree)


def minibatch(
    tree: Tree,
    index: jax.Array,
    *,
    of: Literal["trajectories", "transitions"],
    owners: int = 1,
) -> Tree:
    """Return some trajectories, or transitions, the same ones of every owner.

    Args:
      tree: of arrays ``[K, T, B, ...]``, or ``[K, T, K B, ...]`` of the pool.
      index: i32[M] numbers of trajectories, or of transitions ``t B + b``.
      of: what is numbered.
      owners: how many agents' trajectories the columns are.

    Returns:
      ``[K, T, M]`` or ``[K, T, K M]``; of transitions with T = 1.
    """

    def take(x: jax.Array) -> jax.Array:
        agents, steps, columns, *rest = x.shape
        batch = columns // owners
        x = x.reshape(agents, steps, owners, batch, *rest)
        if of == "transitions":
            x = jnp.moveaxis(x, 2, 1)  # [K, owners, T, B]
            steps, batch = 1, steps * batch
            x = x.reshape(agents, steps, owners, batch, *rest)
        x = jnp.take(x, index, axis=3)
        return x.reshape(agents, steps, owners * len(index), *rest)

    return jax.tree.map(take, tree)


def _own(transitions: Transitions) -> Transitions:
    own = jnp.ones_like(transitions.own)
    return drop_invalid(dataclasses.replace(transitions, own=own))


def all_finite(tree: object) -> jax.Array:
    """Return of which agents all floats are finite, ``bool[K]``."""
    found = [
        jnp.all(jnp.isfinite(x), axis=tuple(range(1, x.ndim)))
        for x in jax.tree.leaves(tree)
        if jnp.issubdtype(x.dtype, jnp.floating)
    ]
    return jnp.all(jnp.stack(found), axis=0)


def _like(mask: jax.Array, x: jax.Array) -> jax.Array:
    """Return ``mask [K]`` with as many axes as ``x [K, ...]``."""
    return mask.reshape(mask.shape + (1,) * (x.ndim - 1))
