"""V-trace actor-critic with categorical values, a strong hand-written baseline.

Sits beside the other rules behind `base.UpdateRule`; must not import agents,
environments or files.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from metarl.config import ActorCriticConfig
from metarl.numerics import Moments, ValueBins, masked_mean
from metarl.returns import vtrace
from metarl.rules.base import Head, Metrics, RuleSpec, Targets
from metarl.rules.critic import CriticRule, Judgement
from metarl.rules.policy import importance_ratios, policy_terms
from metarl.types import Experience, Outputs, Params, Transitions, drop_invalid

MAX_RHO = 1.0
"""Bound of the importance ratios (Espeholt et al. 2018, section 5.2: both are 1)."""


@dataclasses.dataclass(frozen=True)
class ActorCritic(CriticRule):
    """V-trace actor-critic (Espeholt et al. 2018, section 4.2).

    Deliberate deviations: values are two-hot categoricals in signed-hyperbolic space,
    as in the other rules here; traces decay with lambda; advantages may be divided by
    their running deviation, so that one entropy cost serves games of any scale.
    """

    config: ActorCriticConfig

    @property
    def bins(self) -> ValueBins:
        """The bins of the value head."""
        return ValueBins(self.config.num_bins, self.config.max_abs_value)

    def spec(self, num_actions: int) -> RuleSpec:
        """Return the policy head and the value head."""
        return RuleSpec(
            heads=(Head("logits", num_actions), Head("v", self.config.num_bins))
        )

    def init_state(self) -> Moments:
        """Return the moments of advantages before any data."""
        return Moments.initial()

    def targets(
        self,
        meta_params: Params,
        rule_state: Moments,
        experience: Experience,
        key: jax.Array,
    ) -> tuple[Targets, Moments, Metrics]:
        """Return ``advantages [T, B]`` and ``value [T, B, bins]``, the value target."""
        del meta_params, key
        transitions = drop_invalid(experience.transitions)
        # Targets are constants for the outer gradient too: values and ratios measure
        # the agent's behaviour, they are not a way to shape it.
        outputs = jax.lax.stop_gradient(experience.outputs)
        values = self.state_values(outputs)
        judged = self.judge(transitions, outputs, values)
        own = transitions.own
        metrics = {
            "value": masked_mean(values[:-1], own),
            "td": masked_mean(judged.errors, own),
            "adv": masked_mean(judged.advantages, own),
            "rho": masked_mean(_ratios(outputs, transitions), own),
        }
        advantages, rule_state = self.scale(rule_state, judged.advantages, own)
        targets = {
            "advantages": advantages,
            "value": self.bins.to_probs(values[:-1] + judged.errors),
        }
        return targets, rule_state, metrics

    def loss(
        self,
        outputs: Outputs,
        peers: Outputs,
        targets: Targets,
        transitions: Transitions,
    ) -> tuple[jax.Array, Metrics]:
        """Return policy gradient, value cross-entropy and entropy bonus, ``[T, B]``."""
        del peers  # Single-agent rule.
        log_pi_a, entropy_bonus = policy_terms(outputs, transitions.actions)
        policy_loss = -targets["advantages"] * log_pi_a
        log_v = jax.nn.log_softmax(outputs["v"])
        value_loss = -jnp.sum(targets["value"] * log_v, axis=-1)
        loss = (
            policy_loss
            + self.config.value_cost * value_loss
            - self.config.entropy_cost * entropy_bonus
        )
        metrics = {"policy_loss": policy_loss, "value_loss": value_loss}
        return loss * transitions.own, metrics

    def state_values(self, outputs: Outputs) -> jax.Array:
        """Return the values ``[...]`` of the categorical head."""
        return self.bins.to_scalar(outputs["v"])

    def judge(
        self, transitions: Transitions, outputs: Outputs, values: jax.Array
    ) -> Judgement:
        """Return V-trace errors and advantages; weights are ratios of 1 at most."""
        weights = jnp.minimum(_ratios(outputs, transitions), MAX_RHO)
        errors, advantages = vtrace(
            transitions.rewards,
            self.config.discount * (1.0 - transitions.is_terminal),
            weights,
            values,
            trace_lambda=self.config.trace_lambda,
            cut=transitions.cut,
        )
        return Judgement(errors, advantages, weights)

    def scale(
        self, rule_state: Moments, advantages: jax.Array, own: jax.Array
    ) -> tuple[jax.Array, Moments]:
        """Return advantages over their running deviation, if so configured."""
        if not self.config.normalize_advantages:
            return advantages, rule_state
        rule_state = rule_state.update(advantages, own, self.config.moments_decay)
        return rule_state.normalize(advantages, subtract_mean=False), rule_state


def _ratios(outputs: Outputs, transitions: Transitions) -> jax.Array:
    """Return the importance ratios ``[T, B]``, of outputs ``[T+1, B, ...]``."""
    steps = len(transitions.actions)
    first_rows = {name: x[:steps] for name, x in outputs.items()}
    return importance_ratios(first_rows, transitions)
