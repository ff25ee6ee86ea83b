"""Cross-agent advantage sharing: peers say what was to be expected, and nothing else.

A mutual rule, see `mutual.base`; must not import agents, environments or files.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from metarl.config import AdvantageSharingConfig
from metarl.numerics import masked_mean
from metarl.rules.base import (
    Metrics,
    Reads,
    RuleSpec,
    RuleState,
    Targets,
    UpdateRule,
)
from metarl.rules.critic import CriticRule, truncated_ratios
from metarl.rules.mutual.base import (
    MutualRule,
    MutualState,
    as_compared,
    drop_absent,
)
from metarl.rules.mutual.comparison import (
    SuccessRates,
    compared_returns,
    trajectories,
)
from metarl.types import Experience, Params, Peers, drop_invalid


@dataclasses.dataclass(frozen=True)
class AdvantageSharing(MutualRule):
    """Cross-agent advantage sharing (XGRPO, arXiv 2605.07244; reconstructed).

    An agent learns from its own transitions alone; with lambda the coefficient, its
    advantages are

        value:  A_t = rho_t (G_t - V_bar(s_t)),
                V_bar = (1 - lambda) V_i + lambda (V_i + sum_j V_j) / (1 + peers),
        group:  A_b = (G_b - m) / (s + e),
                m = (1 - lambda) mean_own G + lambda mean_group G, and s likewise.

    `value` (ours, for long episodes): G_t is the base's lambda-return, bootstrapped
    from V_i or from V_bar (`bootstrap`); for V_i, peers' values of own states change
    the baseline alone, and the expected gradient of an on-policy agent not at all.
    rho is in the advantages of `actor_critic`, and 1 for `ppo`. The value head learns
    the base's own target.

    `group`: G_b is the raw return of trajectory b, the same for all its steps, and the
    trajectories of all peers are one group: so they are to begin in the same state.
    Where one's own all failed and a peer's did not, all own advantages are negative.
    0 where all returns are the same. At lambda = 0 it is GRPO (Shao et al. 2024). The
    base does not normalise these advantages once more.
    With `capability` peers' returns are multiplied by P_i / P_peers, smoothed rates of
    success, as in HACPO (arXiv 2603.02604).
    """

    config: AdvantageSharingConfig

    def spec(self, num_actions: int) -> RuleSpec:
        """Return what the base needs; returns are compared in the whole pool."""
        reads: Reads = "pool" if self.config.form == "group" else "peers"
        return dataclasses.replace(super().spec(num_actions), reads=reads)

    @property
    def learning_base(self) -> UpdateRule:
        """The base; it takes compared returns as they are."""
        return as_compared(self.base) if self.config.form == "group" else self.base

    def init_own_state(self) -> RuleState:
        """Return the counts of successes, where `capability` needs them."""
        return SuccessRates.initial() if self.config.capability else {}

    def targets(
        self,
        meta_params: Params,
        rule_state: MutualState,
        experience: Experience,
        key: jax.Array,
    ) -> tuple[Targets, MutualState, Metrics]:
        """Return the base's targets with shared ``advantages [T, B]``."""
        transitions = drop_invalid(experience.transitions)
        experience = dataclasses.replace(experience, transitions=transitions)
        targets, state, metrics = super().targets(
            meta_params, rule_state, experience, key
        )
        if self.config.form == "group":
            return self._from_returns(targets, state, experience, metrics)
        assert isinstance(self.base, CriticRule)  # as the configuration requires
        # Constants for the outer gradient too, as in the base.
        outputs = jax.lax.stop_gradient(experience.outputs)
        values = self.base.state_values(outputs)
        baseline = self._mixed(values, experience.peers)
        bootstrap = values if self.config.bootstrap == "own" else baseline
        judged = self.base.judge(transitions, outputs, bootstrap)
        shift = (bootstrap - baseline)[:-1]
        advantages, base_state = self.base.scale(
            rule_state.base,
            judged.advantages + judged.weights * shift,
            transitions.own,
        )
        state = dataclasses.replace(state, base=base_state)
        metrics = {
            **metrics,
            "shared_baseline_shift": masked_mean(
                jnp.abs(baseline - values)[:-1], transitions.own
            ),
        }
        return {**targets, "advantages": advantages}, state, metrics

    def _mixed(self, values: jax.Array, peers: Peers) -> jax.Array:
        """Return the baseline ``[T+1, B]``; own values where no peer is there."""
        assert isinstance(self.base, CriticRule)
        shape = (*peers.present.shape, *values.shape)
        there = jnp.broadcast_to(peers.present[:, None, None], shape)
        theirs = jax.lax.stop_gradient(drop_absent(peers.outputs["v"], there))
        theirs = jnp.where(there, self.base.state_values({"v": theirs}), 0)
        count = 1 + jnp.sum(peers.present, dtype=values.dtype)
        mean = (values + jnp.sum(theirs, axis=0)) / count
        share = self.config.coefficient
        return (1 - share) * values + share * mean

    def _from_returns(
        self,
        targets: Targets,
        state: MutualState,
        experience: Experience,
        metrics: Metrics,
    ) -> tuple[Targets, MutualState, Metrics]:
        """Return the targets of the group form."""
        config, transitions = self.config, experience.transitions
        own, peers = masks = trajectories(experience)
        returns = experience.peers.returns
        if config.capability:
            rates = state.own.update(
                experience.peers.success, masks, config.capability_decay
            )
            state = dataclasses.replace(state, own=rates)
            returns = jnp.where(peers, returns / rates.peers_over_own(), returns)
        compared = compared_returns(returns, own, own | peers, config.coefficient)
        outputs = jax.lax.stop_gradient(experience.outputs)
        ratios = truncated_ratios(self.base, transitions, outputs)
        alone = compared_returns(returns, own, own, 0.0)
        metrics = {
            **metrics,
            "shared_baseline_shift": masked_mean(jnp.abs(compared - alone), own),
        }
        return {**targets, "advantages": ratios * compared[None]}, state, metrics
