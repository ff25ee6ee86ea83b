"""What the networks of a group give: on each agent's trajectories, and across.

Below `lesson.py`. No agent is evaluated on what its rule does not read.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from metarl.agents.agent import Agent
from metarl.agents.batch import Rows, join, others
from metarl.types import Outputs, Params, pytree


@pytree
class Seen:
    """Outputs of K agents on the columns C that each is shown."""

    own: Outputs  # [K, T, C, ...]
    # [K, K-1, T, C, ...] of each one's peers, as `others` lists them; empty where
    # nobody reads them, and for the pool: there they are a gather of `own`.
    across: Outputs


@jax.named_scope("network")
def evaluate(
    agent: Agent, params: Params, rows: Rows, *, constant: Params | None = None
) -> tuple[Seen, Seen]:
    """Return all agents' outputs, and what the loss reads of them.

    Args:
      agent: what they have in common.
      params: of the agents.
      rows: observations ``[K, T+1 or T, B, ...]``.
      constant: by which agents are evaluated on their peers' trajectories in place of
        ``params``, if the loss has no gradient for that.

    Returns:
      Outputs on all observations, and on the first T; see `Agent.evaluate`.
    """
    own, own_read = _evaluate_own(agent, params, rows)
    if agent.spec.reads != "peers":
        return Seen(own, {}), Seen(own_read, {})
    if constant is not None and not agent.moves_peers:
        params = constant
    across, across_read = _evaluate_across(agent, params, rows)
    return Seen(own, across), Seen(own_read, across_read)


@jax.named_scope("target_network")
def evaluate_target(agent: Agent, params: Params, rows: Rows) -> Outputs:
    """Return the target networks' outputs ``[K, T+1, C, ...]``; {} without one."""
    if agent.spec.target_network.kind == "none":
        return {}
    return _evaluate_own(agent, params, rows)[0]


def peers_of(agent: Agent, seen: Seen) -> Outputs:
    """Return the peers' outputs on what each agent is shown, ``[K, P, T, C, ...]``."""
    if agent.spec.reads == "own":
        return {name: x[:, None][:, :0] for name, x in seen.own.items()}
    if agent.spec.reads == "peers":
        return seen.across
    return {name: x[others(len(x))] for name, x in seen.own.items()}


def fill(peers: Outputs, own: Outputs, present: jax.Array) -> tuple[Outputs, jax.Array]:
    """Return the peers' outputs with the agent's own for those that are absent.

    So nothing that is not finite reaches anybody, and a rule that overlooks who is
    present feels no pull from who is not: the agent's own are constants here.

    Args:
      peers: ``[K, P, T, C, ...]``.
      own: ``[K, T, C, ...]``.
      present: bool[K, P] who might be.

    Returns:
      Outputs ``[K, P, T, C, ...]``; and who is present, having finite ones.
    """
    present = present & finite_rows(peers)
    own = jax.lax.stop_gradient(own)
    filled = {
        name: jnp.where(like(present, x), x, own[name][:, None])
        for name, x in peers.items()
    }
    return filled, present


def finite_rows(peers: Outputs) -> jax.Array:
    """Return of which peers all outputs ``[K, P, ...]`` are finite, ``bool[K, P]``."""
    found = [
        jnp.all(jnp.isfinite(x), axis=tuple(range(2, x.ndim))) for x in peers.values()
    ]
    return functools.reduce(jnp.logical_and, found)


def like(mask: jax.Array, x: jax.Array) -> jax.Array:
    """Return a mask of x's leading axes with as many axes as ``x``."""
    return mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim))


def _evaluate_own(agent: Agent, params: Params, rows: Rows) -> tuple[Outputs, Outputs]:
    """Return outputs on what each agent learns from: ``[K, T+1, C]``, ``[K, T, C]``."""
    if agent.spec.reads != "pool":
        return jax.vmap(functools.partial(_on_grid, agent))(
            params, rows.observations, rows.actions
        )
    assert rows.shared is not None
    return jax.vmap(functools.partial(_on_grid, agent), in_axes=(0, None, None))(
        params, join(rows.shared, axis=0), join(rows.actions, axis=0)
    )


def _evaluate_across(
    agent: Agent, params: Params, rows: Rows
) -> tuple[Outputs, Outputs]:
    """Return the peers' outputs on every agent's trajectories, ``[K, K-1, T, B]``."""
    assert rows.shared is not None
    num_peers = len(rows.actions)
    peers, number = others(num_peers), jnp.arange(num_peers - 1)
    # Agent j is peer p of the p + 1st before it.
    before = (jnp.arange(num_peers)[:, None] - 1 - number[None]) % num_peers

    def of_others(x: jax.Array) -> jax.Array:
        """Return ``[K, T, (K-1) B, ...]``: what agent j is shown of the others."""
        return join(x[before], axis=1)

    found = jax.vmap(functools.partial(_on_grid, agent))(
        params, of_others(rows.shared), of_others(rows.actions)
    )

    def of_peers(x: jax.Array) -> jax.Array:
        """Return ``[K, K-1, T, B, ...]`` of ``[K, T, (K-1) B, ...]``."""
        batch = rows.actions.shape[2]
        x = x.reshape(*x.shape[:2], num_peers - 1, batch, *x.shape[3:])
        return jnp.moveaxis(x, 2, 1)[peers, number[None]]

    outputs, read = jax.tree.map(of_peers, found)
    return outputs, read


def _on_grid(
    agent: Agent, params: Params, observations: jax.Array, actions: jax.Array
) -> tuple[Outputs, Outputs]:
    """Return one agent's outputs on ``[T+1, C, ...]``, and what the loss reads of T."""
    # The network is feed-forward, so time is more batch to it.
    steps, columns = observations.shape[:2]
    flat = observations.reshape(steps * columns, *observations.shape[2:])
    outputs, read = agent.evaluate(params, flat, actions.reshape(-1))
    return _unflatten(outputs, (steps, columns)), _unflatten(read, actions.shape)


def _unflatten(outputs: Outputs, lead: tuple[int, ...]) -> Outputs:
    return {k: x.reshape(*lead, *x.shape[1:]) for k, x in outputs.items()}
