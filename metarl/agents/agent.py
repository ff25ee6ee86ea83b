"""One base agent: its state, its birth, and how it acts and takes a gradient step.

Pure functions over `AgentState`; `group.py` updates agents together. Must not import
environments or files.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from metarl.agents.peer_gradients import moves_peers
from metarl.config import OptimizerConfig
from metarl.numerics import (
    AdamState,
    adam_direction,
    adam_init,
    clip_elementwise,
    global_norm,
    learning_rate,
    scale_to_norm,
    take_action,
)
from metarl.rules.base import Metrics, RuleSpec, RuleState, UpdateRule
from metarl.types import Clock, Network, Outputs, Params, pytree


@pytree
class AgentState:
    """All that an agent is between two updates; axes ``[G, K]`` in a population."""

    params: Params
    target_params: Params  # empty where the rule has no target network
    optimizer: AdamState
    rule_state: RuleState
    env_steps: jax.Array  # i32[] environment steps of this lifetime, over the group
    agent_updates: jax.Array  # i32[] updates of this lifetime
    # i32[] environment steps of this lifetime, where agents differ; None: the Agent's.
    lifetime_env_steps: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class Agent:
    """What is the same for all agents of equal shape; static.

    Attributes:
      rule: the update rule they learn by.
      network: pure functions that return the heads of the rule's spec.
      num_actions: A.
      optimizer: settings of Adam.
      lifetime_env_steps: environment steps that schedules are stretched over, unless
        the state says otherwise.
    """

    rule: UpdateRule
    network: Network
    num_actions: int
    optimizer: OptimizerConfig
    lifetime_env_steps: int

    @property
    def spec(self) -> RuleSpec:
        """What the rule needs of the agent."""
        return self.rule.spec(self.num_actions)

    @property
    def moves_peers(self) -> bool:
        """Whether its loss has a gradient for the peers whose outputs it reads."""
        reads_them = self.spec.reads != "own"
        return reads_them and moves_peers(self.rule, self.num_actions)

    def init(self, key: jax.Array, observations: jax.Array) -> AgentState:
        """Return a new agent.

        Args:
          key: consumed.
          observations: ``[N, ...]`` of any content, for shapes.
        """
        params = self.network.init(key, observations)
        has_target = self.spec.target_network.kind != "none"
        return AgentState(
            params=params,
            # A copy, so that the two trees may be donated together.
            target_params=jax.tree.map(jnp.copy, params) if has_target else {},
            optimizer=adam_init(params),
            rule_state=self.rule.init_state(),
            env_steps=jnp.zeros((), jnp.int32),
            agent_updates=jnp.zeros((), jnp.int32),
        )

    def clock(self, state: AgentState) -> Clock:
        """Return the agent's age."""
        env_steps = state.env_steps.astype(jnp.result_type(float))
        lifetime: float | jax.Array = self.lifetime_env_steps
        if state.lifetime_env_steps is not None:
            lifetime = state.lifetime_env_steps.astype(env_steps.dtype)
        return Clock(
            env_steps=env_steps,
            agent_updates=state.agent_updates,
            lifetime_fraction=jnp.minimum(env_steps / lifetime, 1),
        )

    def evaluate(
        self, params: Params, observations: jax.Array, actions: jax.Array
    ) -> tuple[Outputs, Outputs]:
        """Return all outputs ``[N, ...]``, and what a loss reads of the first M.

        Args:
          params: of the network.
          observations: ``[N, ...]``.
          actions: ``[M]``, taken on the first M observations.

        Returns:
          The outputs; and their first M rows, where heads that are declared `taken`
          have the row of the action taken alone.
        """
        taken_heads = [head.name for head in self.spec.heads if head.taken]
        rows: Outputs = {}
        if self.network.apply_taken is None:
            outputs = self.network.apply(params, observations)
        else:
            outputs, rows = self.network.apply_taken(params, observations, actions)
        read = {name: x[: actions.shape[0]] for name, x in outputs.items()}
        for name in taken_heads:
            read[name] = (
                rows[name] if name in rows else take_action(read[name], actions)
            )
        return outputs, read

    def act(
        self, state: AgentState, observations: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Return actions ``i32[B]`` and behaviour logits ``[B, A]``; takes ``key``."""
        outputs = self.network.apply(state.params, observations)
        return self.rule.act(outputs, self.clock(state), key)

    def gradient_step(
        self, state: AgentState, grads: Params
    ) -> tuple[Params, AdamState, Metrics]:
        """Return parameters and optimiser after one step along ``-grads``."""
        config = self.optimizer
        bounded = grads
        if config.max_grad_norm is not None:
            bounded = scale_to_norm(grads, config.max_grad_norm)
        direction, optimizer = adam_direction(
            bounded, state.optimizer, b1=config.b1, b2=config.b2, eps=config.eps
        )
        direction = clip_elementwise(direction, config.max_abs_update)
        rate = learning_rate(config, self.clock(state))
        steps = jax.tree.map(
            lambda d, p: -rate * (d + config.weight_decay * p), direction, state.params
        )
        params = jax.tree.map(jnp.add, state.params, steps)
        metrics = {
            "grad_norm": global_norm(grads),
            "update_norm": global_norm(steps),
            "learning_rate": rate,
        }
        return params, optimizer, metrics

    def follow(self, state: AgentState, params: Params) -> Params:
        """Return the target parameters after the update that led to ``params``."""
        target = self.spec.target_network
        if target.kind == "none":
            return {}
        if target.kind == "ema":
            c = target.coefficient
            return jax.tree.map(
                lambda slow, fast: c * slow + (1 - c) * fast,
                state.target_params,
                state.params,
            )
        due = (state.agent_updates + 1) % target.every == 0
        return jax.tree.map(
            lambda slow, fast: jnp.where(due, fast, slow), state.target_params, params
        )
