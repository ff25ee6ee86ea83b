"""Success-gated transfer: imitate a peer's success where one's own attempts all failed.

A mutual rule, see `mutual.base`; must not import agents, environments or files.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from metarl.config import SuccessGatedTransferConfig
from metarl.numerics import masked_mean
from metarl.returns import discounted_returns
from metarl.rules.base import Metrics, Reads, RuleState, Targets
from metarl.rules.mutual.base import MutualRule, MutualState, can_learn, own_key
from metarl.rules.mutual.comparison import Trajectories, trajectories
from metarl.rules.policy import policy_terms
from metarl.types import (
    Experience,
    Outputs,
    Params,
    Transitions,
    drop_invalid,
    pytree,
)

WEIGHT = "mutual_weight"
"""Key of the targets: what a rescued step counts, ``[T, B]``; 0 on all others."""


@pytree
class Threshold:
    """Running mean of a quantile of returns; both scalars."""

    total: jax.Array
    decay_product: jax.Array  # decay ** updates: debiases the mean

    @classmethod
    def initial(cls) -> Threshold:
        """Return the mean before any data."""
        return cls(jnp.zeros(()), jnp.ones(()))

    def update(
        self, returns: jax.Array, mask: jax.Array, quantile: float, decay: float
    ) -> Threshold:
        """Return the mean after ``returns [B]`` that ``mask`` keeps."""
        seen = jnp.any(mask)
        kept = jnp.where(mask, returns, jnp.nan)
        now = jnp.where(seen, jnp.nanquantile(kept, quantile), 0)
        total = decay * self.total + (1 - decay) * now
        return Threshold(
            jnp.where(seen, total, self.total),
            jnp.where(seen, decay * self.decay_product, self.decay_product),
        )

    def value(self) -> jax.Array:
        """Return the mean; 0 before any data."""
        weight = 1 - self.decay_product
        return self.total / jnp.where(weight > 0, weight, 1)


@dataclasses.dataclass(frozen=True)
class SuccessGatedTransfer(MutualRule):
    """Success-gated transfer (SGT, arXiv 2605.07244; reconstructed).

    Where none of the agent's own trajectories in the batch succeeded and some of its
    peers' did, with R up to `max_successes` of those,

        L_i = L_base + c mean_{b in R} mean_t -log pi_i(a_t | s_t)

    without importance ratios; elsewhere ``L_i = L_base``. The trajectories of a batch
    are one group of attempts at the same task.

    The gate is what makes a step towards a success one uphill: in a tabular softmax it
    is where the success probability J is at most 1 / (1 + number of failing actions),
    and is not towards many a success where J is high (tests/rules/mutual).
    ``gated=false`` imitates peers' successes at all times, for comparison.

    Success is the trajectory's flag or, with ``success=quantile``, a return above the
    running mean of a quantile of the group's returns, which then is what own ones are
    to have missed. `max_step_weight` bounds the weight where few steps are rescued.
    """

    config: SuccessGatedTransferConfig

    reads: ClassVar[Reads] = "pool"

    def init_own_state(self) -> RuleState:
        """Return the running threshold, where there is one."""
        return Threshold.initial() if self.config.success == "quantile" else {}

    def targets(
        self,
        meta_params: Params,
        rule_state: MutualState,
        experience: Experience,
        key: jax.Array,
    ) -> tuple[Targets, MutualState, Metrics]:
        """Return the base's targets, and the weights of rescued steps."""
        transitions = drop_invalid(experience.transitions)
        experience = dataclasses.replace(experience, transitions=transitions)
        targets, state, metrics = super().targets(
            meta_params, rule_state, experience, key
        )
        masks = own, peers = trajectories(experience)
        success, state = self._success(experience, state, masks)
        fires = jnp.any(success & peers) & jnp.any(own)
        if self.config.gated:
            fires &= ~jnp.any(success & own)
        used = self._steps(transitions)
        chosen = self._choose(success & peers & fires, used, key)
        weight = self._weight(used & chosen[None], transitions)
        own_steps = jnp.sum(transitions.own, dtype=weight.dtype)
        succeeded = success.astype(weight.dtype)
        metrics = {
            **metrics,
            "rescue_rate": fires.astype(weight.dtype),
            "rescue_share": jnp.sum(weight) / jnp.maximum(own_steps, 1),
            "own_success": masked_mean(succeeded, own),
            "peer_success": masked_mean(succeeded, peers),
        }
        if self.config.success == "quantile":
            metrics["success_threshold"] = state.own.value()
        return {**targets, WEIGHT: weight}, state, metrics

    def loss(
        self,
        outputs: Outputs,
        peers: Outputs,
        targets: Targets,
        transitions: Transitions,
    ) -> tuple[jax.Array, Metrics]:
        """Return the base's loss, and ``-log pi(a)`` of rescued steps, ``[T, B]``."""
        loss, metrics = super().loss(outputs, peers, targets, transitions)
        log_pi_a, _ = policy_terms(outputs, transitions.actions)
        # The steps of a minibatch may all be peers'.
        weight = jnp.where(can_learn(transitions), targets[WEIGHT], 0)
        return loss - weight * log_pi_a, metrics

    def _success(
        self, experience: Experience, state: MutualState, masks: Trajectories
    ) -> tuple[jax.Array, MutualState]:
        """Return which trajectories succeeded, ``bool[B]``, and the new state."""
        config, peers = self.config, experience.peers
        if config.success == "flag":
            return peers.success, state
        threshold = state.own.update(
            peers.returns,
            masks.own | masks.peers,
            config.quantile,
            config.threshold_decay,
        )
        state = dataclasses.replace(state, own=threshold)
        return peers.returns > threshold.value(), state

    def _steps(self, transitions: Transitions) -> jax.Array:
        """Return the steps that may be imitated, ``bool[T, B]``."""
        if self.config.steps == "all":
            return transitions.valid
        rewarded = (transitions.rewards > 0).astype(transitions.rewards.dtype)
        to_come = discounted_returns(
            rewarded, 1.0 - transitions.is_terminal, cut=transitions.cut
        )
        return transitions.valid & (to_come > 0)

    def _choose(
        self, candidates: jax.Array, used: jax.Array, key: jax.Array
    ) -> jax.Array:
        """Return up to `max_successes` of ``candidates [B]`` with steps to imitate."""
        lengths = jnp.sum(used, axis=0)
        order = jax.random.uniform(own_key(key), lengths.shape)
        if self.config.choose == "shortest":
            order += lengths.astype(order.dtype)  # the draw decides between equals
        order = jnp.where(candidates & (lengths > 0), order, jnp.inf)
        rank = jnp.argsort(jnp.argsort(order))
        return (rank < self.config.max_successes) & jnp.isfinite(order)

    def _weight(self, rescued: jax.Array, transitions: Transitions) -> jax.Array:
        """Return what each step counts, ``[T, B]``.

        The caller divides by the number of own steps, so that the sum of weights is
        the coefficient times it; of every trajectory the same.
        """
        dtype = transitions.rewards.dtype
        lengths = jnp.sum(rescued, axis=0, dtype=dtype)
        count = jnp.sum(lengths > 0, dtype=dtype)
        own_steps = jnp.sum(transitions.own, dtype=dtype)
        each = self.config.coefficient * own_steps / jnp.maximum(count * lengths, 1)
        each = jnp.minimum(each, self.config.max_step_weight)
        return jnp.where(rescued, each[None], 0)
