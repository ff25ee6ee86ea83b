"""The discovered rule of Oh et al. (2025): a meta-network that outputs targets.

Nature 648:312-319, Methods; Disco103 is this rule with the published weights.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from metarl.config import DiscoConfig
from metarl.numerics import (
    Moments,
    ValueBins,
    cross_entropy,
    entropy,
    kl_divergence,
    masked_mean,
    take_action,
)
from metarl.returns import retrace
from metarl.rules import metanet
from metarl.rules.base import (
    Head,
    Metrics,
    RuleSpec,
    TargetNetwork,
    Targets,
    UpdateRule,
)
from metarl.types import Experience, Outputs, Params, Transitions, drop_invalid, pytree


@pytree
class DiscoState:
    """What the rule carries over one lifetime."""

    lifetime: metanet.LifetimeState
    adv_moments: Moments  # of advantages
    td_moments: Moments  # of TD errors


@dataclasses.dataclass(frozen=True)
class Disco(UpdateRule):
    """The DiscoRL rule; its meta-network is in `metanet`."""

    config: DiscoConfig

    @property
    def bins(self) -> ValueBins:
        """The bins of the action-value head."""
        return ValueBins(self.config.num_bins, self.config.max_abs_value)

    def spec(self, num_actions: int) -> RuleSpec:
        """Return the heads pi, y, z, q and aux_pi, with a slowly moving target."""
        size = self.config.prediction_size
        return RuleSpec(
            heads=(
                Head("logits", num_actions),
                Head("y", size),
                Head("z", size, per_action=True, taken=True),
                Head("aux_pi", num_actions, per_action=True, taken=True),
                Head("q", self.config.num_bins, per_action=True, taken=True),
            ),
            target_network=TargetNetwork("ema", self.config.target_coefficient),
        )

    def init_params(self, key: jax.Array) -> Params:
        """Return new meta-parameters."""
        return metanet.init(key, self.config)

    def init_state(self) -> DiscoState:
        """Return the state at the start of a lifetime."""
        return DiscoState(
            lifetime=metanet.initial_lifetime_state(self.config),
            adv_moments=Moments.initial(),
            td_moments=Moments.initial(),
        )

    def targets(
        self,
        meta_params: Params,
        rule_state: DiscoState,
        experience: Experience,
        key: jax.Array,
    ) -> tuple[Targets, DiscoState, Metrics]:
        """Return targets for pi, y and z, and the constants of the other losses."""
        del key
        transitions = drop_invalid(experience.transitions)
        experience = dataclasses.replace(experience, transitions=transitions)
        values, moments = self.value_estimates(rule_state, experience)
        outputs, lifetime = metanet.apply(
            meta_params, rule_state.lifetime, experience, values
        )
        q_taken = take_action(values.q_value[:-1], transitions.actions)
        targets = {
            "pi": outputs.pi,
            "y": outputs.y,
            "z": outputs.z,
            # Not a learned target: the agent's own next policy, a constant for the
            # outer gradient too, as in the released code.
            "next_logits": jax.lax.stop_gradient(experience.outputs["logits"][1:]),
            "q": self.bins.to_probs(q_taken + values.q_td),
        }
        own = transitions.own
        metrics = {
            "q_target": masked_mean(values.q_target, own),
            "td": masked_mean(values.q_td, own),
            "adv": masked_mean(values.adv, own),
            "rho": masked_mean(values.rho, own),
            "rule_entropy_y": masked_mean(entropy(outputs.y), own),
            "rule_entropy_z": masked_mean(entropy(outputs.z), own),
        }
        return targets, dataclasses.replace(moments, lifetime=lifetime), metrics

    def loss(
        self,
        outputs: Outputs,
        peers: Outputs,
        targets: Targets,
        transitions: Transitions,
    ) -> tuple[jax.Array, Metrics]:
        """Return the weighted divergences from the targets, ``[T, B]``.

        Oh et al. 2025, Methods: KL to the targets for pi, y and z(a), KL of the
        auxiliary policy to the next policy, cross-entropy of q(a) to Retrace.
        """
        del peers  # Single-agent rule.
        config, actions = self.config, transitions.actions

        def of_action(head: str) -> jax.Array:
            output = outputs[head]
            whole = output.ndim > actions.ndim + 1
            return take_action(output, actions) if whole else output

        continues = 1.0 - transitions.is_terminal
        parts = {
            "pi": kl_divergence(targets["pi"], outputs["logits"]),
            "y": kl_divergence(targets["y"], outputs["y"]),
            "z": kl_divergence(targets["z"], of_action("z")),
            "aux_policy": continues
            * kl_divergence(targets["next_logits"], of_action("aux_pi")),
            "value": cross_entropy(targets["q"], of_action("q")),
        }
        costs = {
            "pi": config.pi_cost,
            "y": config.y_cost,
            "z": config.z_cost,
            "aux_policy": config.aux_policy_cost,
            "value": config.value_cost,
        }
        loss = sum(costs[name] * part for name, part in parts.items())
        return loss * transitions.own, {f"{k}_loss": v for k, v in parts.items()}

    def regularizers(self, targets: Targets, experience: Experience) -> Metrics:
        """Return the outer objective's terms on the targets of one inner update."""
        own = drop_invalid(experience.transitions).own
        # The target network anchors the policy target; it is not to be moved by it.
        anchor = jax.lax.stop_gradient(experience.target_outputs["logits"][:-1])
        return {
            "squared_mean_pi": jnp.square(masked_mean(targets["pi"], own)),
            "squared_mean_y": jnp.square(masked_mean(targets["y"], own)),
            "squared_mean_z": jnp.square(masked_mean(targets["z"], own)),
            "target_kl": masked_mean(kl_divergence(anchor, targets["pi"]), own),
        }

    def value_estimates(
        self, rule_state: DiscoState, experience: Experience
    ) -> tuple[metanet.ValueEstimates, DiscoState]:
        """Return the batch's value quantities and the state with new moments.

        All are constants for every gradient: the value head learns from Retrace and
        is an input of the meta-network, not a path for the meta-gradient
        (Oh et al. 2025, released code).
        """
        transitions, config = experience.transitions, self.config
        own = jax.lax.stop_gradient(experience.outputs)
        target = jax.lax.stop_gradient(experience.target_outputs)
        actions, log_pi = transitions.actions, jax.nn.log_softmax(own["logits"])
        log_mu = jax.nn.log_softmax(jax.lax.stop_gradient(transitions.behaviour_logits))
        rho = jnp.exp(take_action(log_pi[:-1], actions) - take_action(log_mu, actions))
        q, target_q = self.bins.to_scalar(own["q"]), self.bins.to_scalar(target["q"])
        value = jnp.sum(jnp.exp(log_pi) * q, axis=-1)
        target_value = jnp.sum(jnp.exp(log_pi) * target_q, axis=-1)
        q_target = retrace(
            transitions.rewards,
            config.discount * (1.0 - transitions.is_terminal),
            config.trace_lambda * jnp.minimum(rho, 1),
            target_value,
            take_action(target_q[:-1], actions),
            cut=transitions.cut,
        )
        adv = q_target - target_value[:-1]
        qv_adv = target_q - target_value[..., None]
        q_td = q_target - take_action(q[:-1], actions)
        moments = dataclasses.replace(
            rule_state,
            adv_moments=rule_state.adv_moments.update(
                adv, transitions.own, config.moments_decay
            ),
            td_moments=rule_state.td_moments.update(
                q_td, transitions.own, config.moments_decay
            ),
        )
        estimates = metanet.ValueEstimates(
            value=value,
            target_value=target_value,
            q_value=q,
            target_q_value=target_q,
            rho=rho,
            q_target=q_target,
            adv=adv,
            normalized_adv=moments.adv_moments.normalize(adv, subtract_mean=True),
            qv_adv=qv_adv,
            normalized_qv_adv=moments.adv_moments.normalize(qv_adv, subtract_mean=True),
            q_td=q_td,
            normalized_q_td=moments.td_moments.normalize(q_td, subtract_mean=False),
        )
        return estimates, moments
