"""Learned Policy Gradient that also sees what a value function says.

Sits beside the other rules behind `base.UpdateRule`; must not import agents,
environments or files.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp

from metarl.config import LPGCriticConfig
from metarl.numerics import (
    Moments,
    ValueBins,
    cross_entropy,
    entropy,
    masked_mean,
    signed_log,
    take_action,
)
from metarl.returns import vtrace
from metarl.rules.base import Head, Metrics, RuleSpec, Targets
from metarl.rules.layers import embed
from metarl.rules.lpg import LPG
from metarl.rules.policy import importance_ratios
from metarl.types import Experience, Outputs, Params, Transitions, drop_invalid, pytree

MAX_RHO = 1.0
"""Bound of the importance ratios in V-trace (Espeholt et al. 2018, section 5.2)."""
MAX_RHO_SEEN = 3.0
"""Bound of those that the LSTM sees."""
MIN_DEVIATION = 1e-2
"""Added to the running deviation of advantages. Where rewards are rare, what remains is
the error of the values, and would be as loud as success."""


@pytree
class _Judgement:
    """What the critic says of a batch; constants for every gradient."""

    values: jax.Array  # [T+1, B]
    rhos: jax.Array  # [T, B] pi(a) / mu(a)
    errors: jax.Array  # [T, B] of the values
    advantages: jax.Array  # [T, B]
    normalized: jax.Array  # [T, B] over their running deviation and MIN_DEVIATION


@dataclasses.dataclass(frozen=True)
class LPGCritic(LPG):
    """LPG (Oh et al. 2020) with a critic, such as DiscoRL's rule has (Oh et al. 2025).

    Beside policy and prediction the agent has a value head, which learns from V-trace
    (Espeholt et al. 2018) as that of `actor_critic` does. Values and advantages are
    inputs of the LSTM and constants for the meta-gradient; so is the policy, as in
    DiscoRL and unlike in LPG. An action is reinforced by ``shift + gain A``: A is its
    advantage over the running deviation of all, shift and gain are for the LSTM to say,
    and zero in a new rule. The LSTM alone is bounded: to it, a success that is one in a
    thousand is but another good step. What all actions of a batch are reinforced by
    alike is left out.

    All inputs but those of the prediction and of ends are zero, or nearly, where a
    uniform policy sees no reward, and rewards, values and advantages come in on a
    logarithmic scale: the first steps of meta-training then are about rewards, and
    games differ less.
    """

    config: LPGCriticConfig

    num_features: ClassVar[int] = 11
    num_pi_outputs: ClassVar[int] = 2

    @property
    def bins(self) -> ValueBins:
        """The bins of the value head."""
        return ValueBins(self.config.num_bins, self.config.max_abs_value)

    def spec(self, num_actions: int) -> RuleSpec:
        """Return the heads of the policy, of the prediction and of the value.

        Values begin at zero: until there are rewards, there are no advantages either.
        """
        value = Head("v", self.config.num_bins, zero_init=True)
        return RuleSpec(heads=(*super().spec(num_actions).heads, value))

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
        """Return LPG's targets, and ``value [T, B, bins]``, the value target."""
        del key
        transitions = drop_invalid(experience.transitions)
        judged, rule_state = self._judge(rule_state, transitions, experience.outputs)
        features = self._seen(meta_params, transitions, experience.outputs, judged)
        learned = self.outputs(meta_params, features, transitions)
        shift, gain = jnp.moveaxis(learned["pi"], -1, 0)
        learned["pi"] = shift + gain * judged.normalized
        value = self.bins.to_probs(judged.values[:-1] + judged.errors)
        own = transitions.own
        metrics = {
            "pi_hat": masked_mean(learned["pi"], own),
            "gain": masked_mean(gain, own),
            "rule_entropy_y": masked_mean(entropy(learned["y"]), own),
            "value": masked_mean(judged.values[:-1], own),
            "td": masked_mean(judged.errors, own),
            "adv": masked_mean(judged.advantages, own),
            "rho": masked_mean(judged.rhos, own),
        }
        return {**learned, "value": value}, rule_state, metrics

    def loss(
        self,
        outputs: Outputs,
        peers: Outputs,
        targets: Targets,
        transitions: Transitions,
    ) -> tuple[jax.Array, Metrics]:
        """Return LPG's loss and the value's cross-entropy, ``[T, B]``."""
        # Reinforcing whatever is done only makes a policy deterministic.
        offset = masked_mean(targets["pi"], transitions.own)
        centered = {**targets, "pi": targets["pi"] - offset}
        loss, metrics = super().loss(outputs, peers, centered, transitions)
        value_loss = cross_entropy(targets["value"], outputs["v"])
        loss += self.config.value_cost * value_loss * transitions.own
        return loss, {**metrics, "value_loss": value_loss}

    def _judge(
        self, moments: Moments, transitions: Transitions, outputs: Outputs
    ) -> tuple[_Judgement, Moments]:
        """Return the critic's view of a batch, and the moments after it."""
        config = self.config
        outputs = jax.lax.stop_gradient(outputs)
        first_rows = {name: x[:-1] for name, x in outputs.items()}
        rhos = importance_ratios(first_rows, transitions)
        values = self.bins.to_scalar(outputs["v"])
        errors, advantages = vtrace(
            transitions.rewards,
            config.discount * (1.0 - transitions.is_terminal),
            jnp.minimum(rhos, MAX_RHO),
            values,
            trace_lambda=config.trace_lambda,
            cut=transitions.cut,
        )
        moments = moments.update(advantages, transitions.own, config.moments_decay)
        normalized = moments.normalize(
            advantages, subtract_mean=False, floor=MIN_DEVIATION
        )
        return _Judgement(values, rhos, errors, advantages, normalized), moments

    def _seen(
        self,
        meta_params: Params,
        transitions: Transitions,
        outputs: Outputs,
        judged: _Judgement,
    ) -> jax.Array:
        """Return the LSTM's inputs, ``[T, B, 11]``."""
        (y,) = embed([meta_params["y_embedding"]], outputs["y"])
        ended = transitions.is_terminal
        logits = jax.lax.stop_gradient(outputs["logits"][:-1])
        pi = take_action(jax.nn.softmax(logits), transitions.actions)
        num_actions = logits.shape[-1]
        columns = [
            signed_log(transitions.rewards),
            ended.astype(y.dtype),
            pi - 1 / num_actions,
            jnp.minimum(judged.rhos, MAX_RHO_SEEN) - 1,
            1 - entropy(logits) / math.log(max(num_actions, 2)),
            signed_log(judged.values[:-1]),
            jnp.where(ended, 0, signed_log(judged.values[1:])),
            signed_log(judged.advantages),
            judged.normalized,
            y[:-1],
            jnp.where(ended, 0, y[1:]),
        ]
        return jnp.stack(columns, axis=-1)
