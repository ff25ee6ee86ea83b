"""N agent updates in a row, as one function of the meta-parameters.

This is what the meta-gradient goes back through. The updates are the ones that the
acting agents made: same function, same batches, same keys. Pure; must not import
rollout or envs.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from metarl.agents import group
from metarl.agents.agent import Agent, AgentState
from metarl.agents.batch import own_columns
from metarl.config import RegularizerConfig
from metarl.meta.objective import ValueFunction, ValueState, outer_loss
from metarl.numerics import masked_mean
from metarl.rules.base import Metrics
from metarl.types import Params, Rollout, pytree

Tree = TypeVar("Tree")

Steps = tuple[tuple[Rollout, jax.Array], jax.Array | None, jax.Array | None]
"""Rollouts and keys of updates, whether they count, and their indices."""


@pytree
class Window:
    """What a meta-gradient is computed from, for one group; ``[G, ...]`` for all."""

    agents: AgentState  # [K] before the first update
    values: ValueState  # [K] likewise
    rollouts: Rollout  # [N, K, T, B] one per update
    keys: jax.Array  # [N] the updates' keys
    validation: Rollout  # [K, T', B] acted after the last update
    # bool[N] False: before these agents were born, and passed over; None: all are made.
    valid: jax.Array | None = None


@pytree
class StepLog:
    """What one inner update adds to the outer loss and to the logs; leaves ``[K]``."""

    regularizers: Metrics
    metrics: Metrics
    value_loss: jax.Array


@pytree
class Unrolled:
    """Where the updates of a window have led, for one group."""

    agents: AgentState  # [K]
    values: ValueState  # [K]
    values_kept: ValueState | None  # [K] after `values_after` updates, if that is set


@dataclasses.dataclass(frozen=True)
class InnerLoop:
    """The unrolled updates and the outer loss; static.

    Attributes:
      agent: what the agents have in common.
      value_function: of the outer objective.
      weights: of the regularisers.
      remat: recompute each update in the backward pass, so that memory grows with N
        only by the agents' states.
      values_after: with the value functions after so many updates the next window
        begins; None: after all.
    """

    agent: Agent
    value_function: ValueFunction
    weights: RegularizerConfig
    remat: bool = True
    values_after: int | None = None

    def step(
        self,
        meta_params: Params,
        agents: AgentState,
        values: ValueState,
        rollouts: Rollout,
        key: jax.Array,
    ) -> tuple[AgentState, ValueState, tuple[StepLog, group.UpdateRecord]]:
        """Update the agents of a group, and their value functions, once."""
        new_agents, record = group.update(
            self.agent, meta_params, agents, rollouts, key
        )
        new_values, log = self.log(values, rollouts, record)
        return new_agents, new_values, (log, record)

    @jax.named_scope("value_function")
    def log(
        self, values: ValueState, rollouts: Rollout, record: group.UpdateRecord
    ) -> tuple[ValueState, StepLog]:
        """Update the value functions of a group as well; return what to log.

        They judge the policy that the update was given, before it, each on its own
        agent's trajectories.
        """
        experience = record.experience
        transitions, logits = own_columns(
            (experience.transitions, experience.outputs["logits"]),
            owners=group.num_owners(self.agent.spec, len(rollouts.env_steps)),
        )
        new_values, (value_loss, _) = jax.vmap(self.value_function.update)(
            values, rollouts.observations, transitions, logits
        )
        regularizers = jax.vmap(self.agent.rule.regularizers)(
            record.targets, record.experience
        )
        return new_values, StepLog(regularizers, record.metrics, value_loss)

    def begin(self, window: Window) -> Unrolled:
        """Return what the first update of a window starts from."""
        kept = None if self.values_after is None else window.values
        return Unrolled(window.agents, window.values, kept)

    def steps_of(self, window: Window) -> Steps:
        """Return what a scan over a window's updates goes through, ``[N, ...]``."""
        index = None
        if self.values_after is not None:
            index = jnp.arange(window.keys.shape[0], dtype=jnp.int32)
        return (window.rollouts, window.keys), window.valid, index

    def advance(
        self,
        before: Unrolled,
        updated: tuple[AgentState, ValueState],
        valid: jax.Array | None,
        index: jax.Array | None,
    ) -> Unrolled:
        """Return where an update has led: nowhere, if it is before the agents' birth.

        Args:
          before: the update.
          updated: agents and value functions after it.
          valid: bool[] whether it counts; None: it does.
          index: i32[] of the update; None: no value functions are kept on the way.
        """
        agents, values = choose(valid, updated, (before.agents, before.values))
        kept = before.values_kept
        if index is not None and self.values_after is not None:
            kept = choose(jnp.equal(index + 1, self.values_after), values, kept)
        return Unrolled(agents, values, kept)

    def unroll(self, meta_params: Params, window: Window) -> tuple[Unrolled, StepLog]:
        """Return where N updates lead, and logs ``[N, K]``.

        May be differentiated in reverse: an update that does not count is computed on
        the newest's batch. Its own would give zeros too, but for what is not finite in
        it, as agents that diverged leave behind, and 0 times that is nan.
        """
        newest = jax.tree.map(lambda x: x[-1], window.rollouts)

        def step(
            before: Unrolled, inputs: tuple[Any, Any, Any]
        ) -> tuple[Unrolled, StepLog]:
            (rollouts, key), valid, index = inputs
            agents, values, (log, _) = self.step(
                meta_params,
                before.agents,
                before.values,
                choose(valid, rollouts, newest),
                key,
            )
            return self.advance(before, (agents, values), valid, index), log

        if self.remat:
            # Inside a scan nothing can be merged across the barrier anyway.
            step = jax.checkpoint(step, prevent_cse=False)
        return jax.lax.scan(step, self.begin(window), self.steps_of(window))

    def loss(
        self, meta_params: Params, window: Window
    ) -> tuple[jax.Array, tuple[AgentState, ValueState, Metrics]]:
        """Return the outer loss of a group: the mean over its peers.

        Args:
          meta_params: differentiable.
          window: of one group.

        Returns:
          The loss; and the agents after the updates, the value functions that the next
          window begins with, and the group's metrics.
        """
        end, log = self.unroll(meta_params, window)
        loss, metrics = self.judge(end, log, window.validation, window.valid)
        return loss, (end.agents, self.values_of(end), metrics)

    def values_of(self, end: Unrolled) -> ValueState:
        """Return the value functions that the next window begins with."""
        return end.values if end.values_kept is None else end.values_kept

    @jax.named_scope("outer_loss")
    def judge(
        self,
        end: Unrolled,
        log: StepLog,
        validation: Rollout,
        valid: jax.Array | None,
    ) -> tuple[jax.Array, Metrics]:
        """Return the outer loss of a group after its updates, and what to log.

        Args:
          end: differentiable, as is ``log.regularizers``.
          log: of the updates, ``[N, K]``.
          validation: ``[K, T', B]``.
          valid: bool[N] updates that count; None: all.
        """
        losses, metrics = jax.vmap(
            lambda agent, value, rollout: outer_loss(
                self.agent, self.value_function, self.weights, agent, value, rollout
            )
        )(end.agents, end.values, validation)

        def mean(x: jax.Array) -> jax.Array:
            if valid is None:
                return jnp.mean(x)
            return masked_mean(x, jnp.broadcast_to(valid[:, None], x.shape))

        regularizers = jax.tree.map(mean, log.regularizers)
        on_targets = sum(
            (self._weight(name) * value for name, value in regularizers.items()),
            start=jnp.zeros_like(losses[0]),
        )
        metrics = jax.tree.map(jnp.mean, metrics)
        metrics["reg_loss"] += on_targets
        loss = jnp.mean(losses) + on_targets
        inner = jax.tree.map(mean, log.metrics)
        metrics |= {
            **regularizers,
            "loss": loss,
            "value_loss": mean(log.value_loss),
        }
        metrics |= {f"inner/{name}": value for name, value in inner.items()}
        return loss, metrics

    def _weight(self, name: str) -> float:
        """Return the weight of a regulariser that a rule reports."""
        if name.startswith("squared_mean"):
            return self.weights.squared_mean
        return float(getattr(self.weights, name))


def choose(condition: jax.Array | None, new: Tree, old: Tree) -> Tree:
    """Return ``new`` where a ``condition`` holds (None: always), else ``old``."""
    if condition is None:
        return new
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), new, old)
