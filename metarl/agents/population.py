"""A population: G groups of K agents, each with its own game, as stacked arrays.

Groups are mapped, not looped over: compile time does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax

from metarl.agents import group
from metarl.agents.agent import Agent, AgentState
from metarl.rules.base import Metrics
from metarl.types import Params, Rollout

Inputs = TypeVar("Inputs")
Results = TypeVar("Results")


def map_groups(
    function: Callable[[Inputs], Results], inputs: Inputs, *, chunk: int
) -> Results:
    """Apply ``function`` to every group: ``chunk`` at once, the chunks in turn.

    One after another is the faster way on CPU, where XLA runs batched work on the
    slow path; on an accelerator a chunk as large as memory allows is.
    """
    num_groups = jax.tree.leaves(inputs)[0].shape[0]
    size = min(chunk, num_groups)
    if size == num_groups > 1:
        return jax.vmap(function)(inputs)
    return jax.lax.map(function, inputs, batch_size=size if size > 1 else None)


def init(
    agent: Agent, key: jax.Array, observations: jax.Array, *, groups: int, peers: int
) -> AgentState:
    """Return new agents with leading axes ``[G, K]``; ``observations [N, ...]``."""
    return init_each(agent, jax.random.split(key, (groups, peers)), observations)


def init_each(agent: Agent, keys: jax.Array, observations: jax.Array) -> AgentState:
    """Return an agent per key ``[G, K]``, none of which depends on the others."""
    return jax.vmap(jax.vmap(lambda k: agent.init(k, observations)))(keys)


def update(
    agent: Agent,
    meta_params: Params,
    states: AgentState,
    rollouts: Rollout,
    keys: jax.Array,
    *,
    chunk: int,
) -> tuple[AgentState, Metrics]:
    """Update every group on its rollouts.

    Args:
      agent: what all agents have in common.
      meta_params: the rule's parameters.
      states: ``[G, K]``.
      rollouts: ``[G, K, T, B]``.
      keys: one per group, ``[G]``; consumed.
      chunk: groups updated at once.

    Returns:
      The agents after it and metrics ``[G, K]``.
    """

    def update_group(
        inputs: tuple[AgentState, Rollout, jax.Array],
    ) -> tuple[AgentState, Metrics]:
        new_states, record = group.update(agent, meta_params, *inputs)
        return new_states, record.metrics

    return map_groups(update_group, (states, rollouts, keys), chunk=chunk)


def update_each(
    agent: Agent,
    meta_params: Params,
    states: AgentState,
    rollouts: Rollout,
    keys: jax.Array,
    *,
    chunk: int,
) -> tuple[AgentState, Metrics]:
    """Update every group as `update` does, each by a rule of its own.

    Args:
      agent: what all agents have in common.
      meta_params: of the rules, ``[G, ...]``.
      states: ``[G, K]``.
      rollouts: ``[G, K, T, B]``.
      keys: one per group, ``[G]``; consumed.
      chunk: groups updated at once.

    Returns:
      The agents after it and metrics ``[G, K]``.
    """

    def update_group(
        inputs: tuple[Params, AgentState, Rollout, jax.Array],
    ) -> tuple[AgentState, Metrics]:
        new_states, record = group.update(agent, *inputs)
        return new_states, record.metrics

    return map_groups(update_group, (meta_params, states, rollouts, keys), chunk=chunk)
