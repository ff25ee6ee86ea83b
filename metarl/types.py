"""The arrays that pass between agents, rules and the meta-gradient.

Bottom of the import graph: nothing of metarl is imported here.

Dimension letters: T time, B trajectories, A actions, K peers, P = K - 1 other
agents, G groups, N inner updates, Y prediction size. Arrays are ``[T, B, ...]``;
bootstrapped ones ``[T+1, B, ...]``. The same classes hold a stacked rollout
(``[G, K, T, B, ...]``), so shapes stand as comments beside the fields.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp

Outputs = dict[str, jax.Array]
"""What a network returns, by head name: ``logits``, ``y``, ``z``, ``q``, ..."""

Params = Mapping[str, Any]
"""A nested tree of parameter arrays, of an agent or of a rule."""

_Class = TypeVar("_Class")


@dataclass_transform(frozen_default=True)
def pytree(cls: type[_Class]) -> type[_Class]:
    """Make ``cls`` a frozen dataclass whose fields are all pytree children."""
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls))


@pytree
class Transitions:
    """The per-transition part of a batch: everything a loss may read besides outputs.

    A transition t leads from observation t to observation t + 1.
    """

    actions: jax.Array  # i32[T, B]
    behaviour_logits: jax.Array  # f32[T, B, A] of the policy that acted
    rewards: jax.Array  # f32[T, B] caused by action t (clipped if so configured)
    is_terminal: jax.Array  # bool[T, B] the transition ended the episode: no bootstrap
    cut: jax.Array  # bool[T, B] truncated: bootstrap from t + 1, stop traces and state
    valid: jax.Array  # bool[T, B] False where the transition does not exist
    learn: jax.Array  # f32[T, B] weight of the loss alone
    own: jax.Array  # bool[T, B] collected by the agent that learns from it
    # f32[T, B] log-probability of the action under the policy that acted, where a
    # vocabulary is too large for logits (then [T, B, 0]); None: read it off those.
    behaviour_log_pi_a: jax.Array | None = None


@pytree
class Rollout:
    """T transitions of B trajectories with the T + 1 observations around them."""

    observations: jax.Array  # [T+1, B, ...]
    transitions: Transitions  # [T, B]
    returns: jax.Array  # f32[B] raw rewards of the trajectory, summed
    success: jax.Array  # bool[B] whether that sum is positive
    env_steps: jax.Array  # i32[] environment steps taken since the rollout before
    # f32[] mean raw return of the newest episodes that the agent has finished, nan
    # before the first; in a pooled rollout one per agent, [K]. None: nobody keeps it.
    score: jax.Array | None = None


@pytree
class Clock:
    """How old an agent is; all scalars."""

    env_steps: jax.Array  # f32[] environment steps of this lifetime, over the group
    agent_updates: jax.Array  # i32[] updates of this lifetime
    lifetime_fraction: jax.Array  # f32[] in [0, 1]


@pytree
class Peers:
    """What the other agents of the group predict about the same observations.

    The leading axis P = K - 1 has length 0 for a group of one, and where a rule reads
    its own trajectories alone; reductions are masked sums over
    ``max(1, present.sum())``. An absent peer's outputs are the agent's own.
    """

    outputs: Outputs  # each [P, T+1, B, ...] ([P, T, B, ...] in a loss)
    present: jax.Array  # bool[P]
    returns: jax.Array  # f32[B] raw returns of the trajectories that are shown
    success: jax.Array  # bool[B]


@pytree
class Experience:
    """Everything an update rule is told about one batch."""

    transitions: Transitions  # [T, B]
    outputs: Outputs  # own network on the T + 1 observations
    target_outputs: Outputs  # own target network; empty where the rule has none
    peers: Peers
    clock: Clock
    # f32[1 + P] mean raw returns of the newest episodes, the agent's own before its
    # peers', nan before their first; None where nobody keeps them.
    scores: jax.Array | None = None


class Network(NamedTuple):
    """A feed-forward network as a pair of pure functions.

    ``init(key, observations [N, ...]) -> params`` and
    ``apply(params, observations [N, ...]) -> outputs``, each output ``[N, ...]``.

    ``apply_taken(params, observations [N, ...], actions [M]) -> (outputs, rows)`` also
    returns every per-action output's row of the action taken on each of the first M
    observations, ``[M, ...]``, by a path of its own: a gradient through the rows does
    not pay for the actions that were not taken. None: the rows are read off.
    """

    init: Callable[[jax.Array, jax.Array], Params]
    apply: Callable[[Params, jax.Array], Outputs]
    apply_taken: (
        Callable[[Params, jax.Array, jax.Array], tuple[Outputs, Outputs]] | None
    ) = None


def drop_invalid(transitions: Transitions) -> Transitions:
    """Return ``transitions`` with constants in every field where ``valid`` is False.

    Rules call this first, so that whatever stands in a transition that does not
    exist reaches nothing, to the bit. The transition before an invalid one is cut:
    observation t + 1 is then the final frame of its trajectory.
    """
    t = transitions
    leads_nowhere = jnp.concatenate([~t.valid[1:], jnp.zeros_like(t.valid[:1])])
    return Transitions(
        actions=jnp.where(t.valid, t.actions, 0),
        behaviour_logits=jnp.where(t.valid[..., None], t.behaviour_logits, 0),
        rewards=jnp.where(t.valid, t.rewards, 0),
        is_terminal=t.valid & t.is_terminal,
        cut=t.valid & (t.cut | leads_nowhere),
        valid=t.valid,
        learn=jnp.where(t.valid, t.learn, 0),
        own=t.valid & t.own,
        behaviour_log_pi_a=(
            None
            if t.behaviour_log_pi_a is None
            else jnp.where(t.valid, t.behaviour_log_pi_a, 0)
        ),
    )
