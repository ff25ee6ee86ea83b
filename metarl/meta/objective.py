"""The outer objective: how good the updated agents are on fresh experience.

Advantage actor-critic with a meta-value function of its own, and regularisers: Oh
et al., Nature 648 (2025), Methods, in the form of the released discovery notebook.
Pure; must not import rollout or envs.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from metarl.agents.agent import Agent, AgentState
from metarl.config import RegularizerConfig, ValueFunctionConfig
from metarl.numerics import (
    AdamState,
    Moments,
    adam_direction,
    adam_init,
    clip_elementwise,
    entropy,
    masked_mean,
    signed_parabolic,
    take_action,
)
from metarl.returns import vtrace
from metarl.rules.base import Metrics
from metarl.types import Network, Params, Rollout, Transitions, drop_invalid, pytree


@pytree
class ValueState:
    """One agent's meta-value function; axes ``[G, K]`` in a population."""

    params: Params
    optimizer: AdamState
    adv_moments: Moments
    td_moments: Moments


@pytree
class Advantages:
    """What the meta-value function says about a rollout; constants."""

    values: jax.Array  # [T+1, B]
    errors: jax.Array  # [T, B] V-trace errors
    normalized_errors: jax.Array  # [T, B]
    advantages: jax.Array  # [T, B]
    normalized: jax.Array  # [T, B] advantages, the mean subtracted
    rhos: jax.Array  # [T, B] importance ratios before clipping


@dataclasses.dataclass(frozen=True)
class ValueFunction:
    """The meta-value function; static. Its network returns ``{"value": [N]}``."""

    network: Network
    config: ValueFunctionConfig

    def init(self, key: jax.Array, observations: jax.Array) -> ValueState:
        """Return a new value function; ``observations [N, ...]``, for shapes."""
        params = self.network.init(key, observations)
        return ValueState(
            params, adam_init(params), Moments.initial(), Moments.initial()
        )

    def advantages(
        self,
        state: ValueState,
        observations: jax.Array,
        transitions: Transitions,
        logits: jax.Array,
    ) -> tuple[Advantages, ValueState]:
        """Return advantages of the policy ``logits [T+1, B, A]``, and new moments.

        Nothing here lets a gradient through: the agent is judged by the value
        function, and may not move it.
        """
        config = self.config
        logits = jax.lax.stop_gradient(logits)
        values = signed_parabolic(
            jax.lax.stop_gradient(self._raw(state.params, observations))
        )
        log_pi = jax.nn.log_softmax(logits[:-1])
        log_mu = jax.nn.log_softmax(transitions.behaviour_logits)
        rhos = jnp.exp(take_action(log_pi - log_mu, transitions.actions))
        errors, advantages = vtrace(
            transitions.rewards,
            config.discount * (1.0 - transitions.is_terminal),
            jnp.minimum(rhos, 1),
            values,
            trace_lambda=config.trace_lambda,
            cut=transitions.cut,
        )
        own, decay = transitions.own, config.moments_decay
        adv_moments = state.adv_moments.update(advantages, own, decay)
        td_moments = state.td_moments.update(errors, own, decay)
        result = Advantages(
            values=values,
            errors=errors,
            normalized_errors=td_moments.normalize(errors, subtract_mean=False),
            advantages=advantages,
            normalized=adv_moments.normalize(advantages, subtract_mean=True),
            rhos=rhos,
        )
        state = dataclasses.replace(
            state, adv_moments=adv_moments, td_moments=td_moments
        )
        return result, state

    def update(
        self,
        state: ValueState,
        observations: jax.Array,
        transitions: Transitions,
        logits: jax.Array,
    ) -> tuple[ValueState, tuple[jax.Array, Advantages]]:
        """Return the value function after one step, its loss and the advantages.

        The raw output u moves towards ``u + error / deviation``, as in the notebook.
        """
        advantages, state = self.advantages(state, observations, transitions, logits)

        def loss_fn(params: Params) -> jax.Array:
            raw = self._raw(params, observations)[:-1]
            # The target is a constant: a semi-gradient, as for any value function.
            target = jax.lax.stop_gradient(raw + advantages.normalized_errors)
            return masked_mean(0.5 * jnp.square(raw - target), transitions.own)

        loss, grads = jax.value_and_grad(loss_fn)(state.params)
        # b1, b2 and eps are Adam's own defaults, as in the notebook.
        direction, optimizer = adam_direction(
            grads, state.optimizer, b1=0.9, b2=0.999, eps=1e-8
        )
        direction = clip_elementwise(direction, self.config.max_abs_update)
        params = jax.tree.map(
            lambda p, d: p - self.config.learning_rate * d, state.params, direction
        )
        state = dataclasses.replace(state, params=params, optimizer=optimizer)
        return state, (loss, advantages)

    def _raw(self, params: Params, observations: jax.Array) -> jax.Array:
        flat = observations.reshape(-1, *observations.shape[2:])
        return self.network.apply(params, flat)["value"].reshape(observations.shape[:2])


def outer_loss(
    agent: Agent,
    value_function: ValueFunction,
    weights: RegularizerConfig,
    state: AgentState,
    value_state: ValueState,
    rollout: Rollout,
) -> tuple[jax.Array, Metrics]:
    """Return the loss of one updated agent on its own validation rollout.

    Policy gradient ``-log pi(a) * normalised advantage``, and entropies of the
    policy, of y and of z(a). The regularisers on the rule's targets are added by
    the inner loop.

    Args:
      agent: static description.
      value_function: static description.
      weights: of the regularisers.
      state: the agent after its inner updates; the gradient goes through it.
      value_state: its value function, after as many.
      rollout: ``[T, B]``, acted with the updated agent.

    Returns:
      A scalar, and what to log.
    """
    transitions = drop_invalid(rollout.transitions)
    steps, batch = transitions.actions.shape
    flat = rollout.observations.reshape(-1, *rollout.observations.shape[2:])
    # Of z the row of the action taken; everything else is of all T + 1 observations.
    outputs, read = agent.evaluate(state.params, flat, transitions.actions.reshape(-1))
    outputs = {
        name: x.reshape(steps + 1, batch, *x.shape[1:]) for name, x in outputs.items()
    }
    advantages, _ = value_function.advantages(
        value_state, rollout.observations, transitions, outputs["logits"]
    )
    own = transitions.own
    log_pi = take_action(
        jax.nn.log_softmax(outputs["logits"][:-1]), transitions.actions
    )
    pg_loss = masked_mean(-log_pi * advantages.normalized, own)
    policy_entropy = masked_mean(entropy(outputs["logits"][:-1]), own)
    metrics = {
        "pg_loss": pg_loss,
        "entropy": policy_entropy,
        "adv": masked_mean(advantages.advantages, own),
        "normalized_adv": masked_mean(advantages.normalized, own),
        "value": jnp.mean(advantages.values),
        "val_importance_weight": masked_mean(jnp.minimum(advantages.rhos, 1), own),
    }
    regularizer = -weights.policy_entropy * policy_entropy
    if "y" in outputs:
        # The last observation has no transition, but is as real as the others.
        seen = jnp.concatenate([own, jnp.ones_like(own[:1])])
        metrics["y_entropy_loss"] = -masked_mean(entropy(outputs["y"]), seen)
        regularizer += weights.y_entropy * metrics["y_entropy_loss"]
    if "z" in outputs:
        z = read["z"].reshape(steps, batch, *read["z"].shape[1:])
        if z.ndim > transitions.actions.ndim + 1:
            z = take_action(z, transitions.actions)
        metrics["z_entropy_loss"] = -masked_mean(entropy(z), own)
        regularizer += weights.z_entropy * metrics["z_entropy_loss"]
    return pg_loss + regularizer, {**metrics, "reg_loss": regularizer}
