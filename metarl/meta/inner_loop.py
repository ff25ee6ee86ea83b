"""N agent updates in a row, as one function of the meta-parameters.

This is what the meta-gradient goes back through. The updates are the ones that the
acting agents made: same function, same batches, same keys. Pure; must not import
rollout or envs.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from metarl.agents import group
from metarl.agents.agent import Agent, AgentState
from metarl.config import RegularizerConfig
from metarl.meta.objective import ValueFunction, ValueState, outer_loss
from metarl.rules.base import Metrics
from metarl.types import Params, Rollout, pytree


@pytree
class Window:
    """What a meta-gradient is computed from, for one group; ``[G, ...]`` for all."""

    agents: AgentState  # [K] before the first update
    values: ValueState  # [K] likewise
    rollouts: Rollout  # [N, K, T, B] one per update
    keys: jax.Array  # [N] the updates' keys
    validation: Rollout  # [K, T', B] acted after the last update


@pytree
class StepLog:
    """What one inner update adds to the outer loss and to the logs; leaves ``[K]``."""

    regularizers: Metrics
    metrics: Metrics
    value_loss: jax.Array


@dataclasses.dataclass(frozen=True)
class InnerLoop:
    """The unrolled updates and the outer loss; static.

    Attributes:
      agent: what the agents have in common.
      value_function: of the outer objective.
      weights: of the regularisers.
      remat: recompute each update in the backward pass, so that memory grows with N
        only by the agents' states.
    """

    agent: Agent
    value_function: ValueFunction
    weights: RegularizerConfig
    remat: bool = True

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

        They judge the policy that the update was given, before it.
        """
        new_values, (value_loss, _) = jax.vmap(
            self.value_function.update, in_axes=(0, None, 0, 0)
        )(
            values,
            group.pool(rollouts).observations,
            record.experience.transitions,
            record.experience.outputs["logits"],
        )
        regularizers = jax.vmap(self.agent.rule.regularizers)(
            record.targets, record.experience
        )
        return new_values, StepLog(regularizers, record.metrics, value_loss)

    def unroll(
        self, meta_params: Params, window: Window
    ) -> tuple[AgentState, ValueState, StepLog]:
        """Return agents and value functions after N updates, and logs ``[N, K]``."""

        def step(
            carry: tuple[AgentState, ValueState], inputs: tuple[Rollout, jax.Array]
        ) -> tuple[tuple[AgentState, ValueState], StepLog]:
            agents, values, (log, _) = self.step(meta_params, *carry, *inputs)
            return (agents, values), log

        if self.remat:
            # Inside a scan nothing can be merged across the barrier anyway.
            step = jax.checkpoint(step, prevent_cse=False)
        start = (window.agents, window.values)
        (agents, values), log = jax.lax.scan(
            step, start, (window.rollouts, window.keys)
        )
        return agents, values, log

    def loss(
        self, meta_params: Params, window: Window
    ) -> tuple[jax.Array, tuple[AgentState, ValueState, Metrics]]:
        """Return the outer loss of a group: the mean over its peers.

        Args:
          meta_params: differentiable.
          window: of one group.

        Returns:
          The loss; and the agents and value functions after the updates, with the
          group's metrics.
        """
        agents, values, log = self.unroll(meta_params, window)
        loss, metrics = self.judge(agents, values, log, window.validation)
        return loss, (agents, values, metrics)

    @jax.named_scope("outer_loss")
    def judge(
        self,
        agents: AgentState,
        values: ValueState,
        log: StepLog,
        validation: Rollout,
    ) -> tuple[jax.Array, Metrics]:
        """Return the outer loss of a group after its updates, and what to log.

        Args:
          agents: ``[K]`` after them; differentiable, as is ``log.regularizers``.
          values: ``[K]`` likewise.
          log: of the updates, ``[N, K]``.
          validation: ``[K, T', B]``.
        """
        losses, metrics = jax.vmap(
            lambda agent, value, rollout: outer_loss(
                self.agent, self.value_function, self.weights, agent, value, rollout
            )
        )(agents, values, validation)
        regularizers = jax.tree.map(lambda x: jnp.mean(x), log.regularizers)
        on_targets = sum(
            (self._weight(name) * value for name, value in regularizers.items()),
            start=jnp.zeros_like(losses[0]),
        )
        metrics = jax.tree.map(jnp.mean, metrics)
        metrics["reg_loss"] += on_targets
        loss = jnp.mean(losses) + on_targets
        inner = jax.tree.map(jnp.mean, log.metrics)
        metrics |= {
            **regularizers,
            "loss": loss,
            "value_loss": jnp.mean(log.value_loss),
        }
        metrics |= {f"inner/{name}": value for name, value in inner.items()}
        return loss, metrics

    def _weight(self, name: str) -> float:
        """Return the weight of a regulariser that a rule reports."""
        if name.startswith("squared_mean"):
            return self.weights.squared_mean
        return float(getattr(self.weights, name))
