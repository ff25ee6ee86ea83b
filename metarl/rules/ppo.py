"""PPO: a clipped surrogate, several epochs of minibatches on each batch.

Sits beside the other rules behind `base.UpdateRule`; must not import agents,
environments or files.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from metarl.config import PPOConfig
from metarl.numerics import masked_mean
from metarl.returns import vtrace
from metarl.rules.base import Head, Metrics, RuleSpec, RuleState, Targets
from metarl.rules.critic import CriticRule, Judgement
from metarl.rules.policy import importance_ratios, policy_terms
from metarl.types import Experience, Outputs, Params, Transitions, drop_invalid

DEVIATION_EPSILON = 1e-8
"""Added to the deviation of advantages (OpenAI baselines, ppo2)."""


@dataclasses.dataclass(frozen=True)
class PPO(CriticRule):
    """Proximal policy optimisation (Schulman et al. 2017, Eqs. 7, 9 and 11).

    Advantages and value targets are made once per batch, from the values of the
    network that acted. As in the authors' released code, advantages are normalised
    within each minibatch, and the moves of the values may be clipped.

    Deliberate deviations from that code: a time limit is no terminal state, but is
    bootstrapped from the final frame; the deviation of advantages is that of the
    minibatch itself (divided by n, not n - 1).
    """

    config: PPOConfig

    def spec(self, num_actions: int) -> RuleSpec:
        """Return the policy head, a plain number as value, epochs and minibatches."""
        return RuleSpec(
            heads=(Head("logits", num_actions), Head("v", 1)),
            epochs=self.config.epochs,
            minibatches=self.config.minibatches,
            minibatch_of="transitions",
        )

    def targets(
        self,
        meta_params: Params,
        rule_state: RuleState,
        experience: Experience,
        key: jax.Array,
    ) -> tuple[Targets, RuleState, Metrics]:
        """Return ``advantages``, ``value`` and ``old_value``, each ``[T, B]``."""
        del meta_params, key
        transitions = drop_invalid(experience.transitions)
        # Values are constants for the outer gradient too: they measure the agent's
        # behaviour, they are not a way to shape it.
        outputs = jax.lax.stop_gradient(experience.outputs)
        values = self.state_values(outputs)
        advantages = self.judge(transitions, outputs, values).advantages
        targets = {
            "advantages": advantages,
            "value": values[:-1] + advantages,
            "old_value": values[:-1],
        }
        metrics = {
            "value": masked_mean(values[:-1], transitions.own),
            "adv": masked_mean(advantages, transitions.own),
        }
        return targets, rule_state, metrics

    def loss(
        self,
        outputs: Outputs,
        peers: Outputs,
        targets: Targets,
        transitions: Transitions,
    ) -> tuple[jax.Array, Metrics]:
        """Return clipped surrogate, value error and entropy bonus, ``[T, B]``."""
        del peers  # Single-agent rule.
        config = self.config
        ratios = importance_ratios(outputs, transitions)
        advantages = targets["advantages"]
        if config.normalize_advantages:
            advantages = _normalize(advantages, transitions.own)
        clipped = jnp.clip(ratios, 1 - config.clip, 1 + config.clip)
        policy_loss = -jnp.minimum(ratios * advantages, clipped * advantages)
        value_loss = self._value_loss(outputs["v"][..., 0], targets)
        _, entropy_bonus = policy_terms(outputs, transitions.actions)
        loss = (
            policy_loss
            + config.value_cost * value_loss
            - config.entropy_cost * entropy_bonus
        )
        metrics = {
            "policy_loss": policy_loss,
            "value_loss": value_loss,
            "clip_fraction": (ratios != clipped).astype(loss.dtype),
        }
        return loss * transitions.own, metrics

    def state_values(self, outputs: Outputs) -> jax.Array:
        """Return the values ``[...]``, which are the head itself."""
        return outputs["v"][..., 0]

    def judge(
        self, transitions: Transitions, outputs: Outputs, values: jax.Array
    ) -> Judgement:
        """Return generalised advantages, which are the values' errors too."""
        del outputs
        # With ratios of 1, the errors of V-trace are generalised advantages
        # (Schulman et al. 2016, Eq. 16): sums of (discount * lambda)^k delta_{t+k}.
        ones = jnp.ones_like(transitions.rewards)
        advantages, _ = vtrace(
            transitions.rewards,
            self.config.discount * (1.0 - transitions.is_terminal),
            ones,
            values,
            trace_lambda=self.config.trace_lambda,
            cut=transitions.cut,
        )
        return Judgement(advantages, advantages, ones)

    def scale(
        self, rule_state: RuleState, advantages: jax.Array, own: jax.Array
    ) -> tuple[jax.Array, RuleState]:
        """Return the advantages as they are: the loss normalises each minibatch."""
        del own
        return advantages, rule_state

    def _value_loss(self, values: jax.Array, targets: Targets) -> jax.Array:
        """Return half the squared error ``[T, B]``; the larger one where clipped."""
        errors = jnp.square(values - targets["value"])
        if self.config.clip_values:
            old, bound = targets["old_value"], self.config.clip
            near = old + jnp.clip(values - old, -bound, bound)
            errors = jnp.maximum(errors, jnp.square(near - targets["value"]))
        return 0.5 * errors


def _normalize(advantages: jax.Array, own: jax.Array) -> jax.Array:
    """Return ``[T, B]`` less the mean of the agent's own ones, over their deviation."""
    centred = advantages - masked_mean(advantages, own)
    deviation = jnp.sqrt(masked_mean(jnp.square(centred), own))
    return centred / (deviation + DEVIATION_EPSILON)
