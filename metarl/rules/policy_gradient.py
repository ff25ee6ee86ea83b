"""REINFORCE: the simplest rule.

Sits beside the other rules behind `base.UpdateRule`; must not import agents,
environments or files.
"""

from __future__ import annotations

import dataclasses

import jax

from metarl.config import PolicyGradientConfig
from metarl.numerics import Moments, masked_mean
from metarl.returns import discounted_returns
from metarl.rules.base import Head, Metrics, RuleSpec, Targets, UpdateRule
from metarl.rules.policy import policy_terms
from metarl.types import Experience, Outputs, Params, Transitions, drop_invalid


@dataclasses.dataclass(frozen=True)
class PolicyGradient(UpdateRule):
    """REINFORCE (Williams 1992) on returns with a running baseline; on-policy.

    The baseline is the running mean of returns (Williams calls it reinforcement
    comparison), and the difference is divided by their running deviation. The mean
    of the batch itself would let what happens after the end of an episode reach that
    episode's targets; without any baseline, a game in which every reward is positive
    would reinforce every action. Returns end with the batch: there is no value
    function to bootstrap from, and no correction for data from another policy.
    """

    config: PolicyGradientConfig

    def spec(self, num_actions: int) -> RuleSpec:
        """Return the policy head."""
        return RuleSpec(heads=(Head("logits", num_actions),))

    def init_state(self) -> Moments:
        """Return the moments of returns before any data."""
        return Moments.initial()

    def targets(
        self,
        meta_params: Params,
        rule_state: Moments,
        experience: Experience,
        key: jax.Array,
    ) -> tuple[Targets, Moments, Metrics]:
        """Return ``advantages [T, B]``: normalised discounted returns."""
        del meta_params, key
        transitions = drop_invalid(experience.transitions)
        returns = discounted_returns(
            transitions.rewards,
            self.config.discount * (1.0 - transitions.is_terminal),
            cut=transitions.cut,
        )
        own = transitions.own
        state = rule_state.update(returns, own, self.config.moments_decay)
        advantages = state.normalize(returns, subtract_mean=True)
        metrics = {
            "return": masked_mean(returns, own),
            "adv": masked_mean(advantages, own),
        }
        return {"advantages": advantages}, state, metrics

    def loss(
        self,
        outputs: Outputs,
        peers: Outputs,
        targets: Targets,
        transitions: Transitions,
    ) -> tuple[jax.Array, Metrics]:
        """Return ``-advantage log pi(a) - entropy_cost entropy``, ``[T, B]``."""
        del peers  # Single-agent rule.
        log_pi_a, entropy_bonus = policy_terms(outputs, transitions.actions)
        policy_loss = -targets["advantages"] * log_pi_a
        loss = policy_loss - self.config.entropy_cost * entropy_bonus
        return loss * transitions.own, {"policy_loss": policy_loss}
