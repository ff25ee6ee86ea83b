"""Peer rollout pooling: peers' trajectories are learned from as if they were own ones.

A mutual rule, see `mutual.base`; must not import agents, environments or files.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp

from metarl.config import PeerRolloutPoolingConfig
from metarl.numerics import masked_mean
from metarl.rules.base import Metrics, Reads, RuleState, Targets, UpdateRule
from metarl.rules.critic import truncated_ratios
from metarl.rules.mutual.base import (
    MutualRule,
    MutualState,
    as_compared,
    can_learn,
    others_steps,
    own_key,
    with_options,
)
from metarl.rules.mutual.comparison import (
    SuccessRates,
    compared_returns,
    trajectories,
)
from metarl.rules.policy import log_importance_ratios, policy_terms
from metarl.types import Experience, Outputs, Params, Transitions, drop_invalid

WEIGHT = "mutual_weight"
"""Key of the targets: what a peer's step counts, ``[T, B]``; 0 on own steps."""
LOG_MU_A = "mutual_log_mu_a"
"""Key of the targets: log-probability of the action under the policy that the base
takes the data to be of, ``[T, B]``."""


@dataclasses.dataclass(frozen=True)
class PeerRolloutPooling(MutualRule):
    """Peer rollout pooling (PRP, arXiv 2605.07244; that text was not at hand).

    With the peers' transitions S that are shared, in the base's loss l per transition,

        L_i = L_base + (c / peers) sum_{t in S} w_t l_base(t),  w_t = min(c_bar, rho_t),

    where ``rho = pi_i(a) / mu(a)``, mu is the policy of the agent whose trajectory it
    is, and the base is shown those data as if agent i had collected them now (so that
    its own ratios start at 1). Of the base's loss the entropy bonus is left out.

    - Shared experience actor-critic (SEAC; Christianos et al., NeurIPS 2020, Eqs. 3
      and 5) is the case ``max_weight=null``, ``over_peers=sum``, on `actor_critic` or
      one epoch of `ppo` without normalised advantages.
    - ``correction=base``: w = 1 and the base corrects, as `actor_critic` does by
      V-trace (rho at most 1), `ppo` by its clipped ratio, `disco` and `lpg_critic` by
      what their meta-networks see. ``none``: w = 1 and nobody corrects, which is biased
      and of low variance.
    - ``form=group``: the base's advantages are replaced by returns compared within the
      agent's own and the shared trajectories (`comparison.compared_returns`), which are
      to start alike; for c = 0 within its own. The base does not normalise them again.
    - Stabilisers: ``ratio=sequence`` is ``exp(mean_t log rho_t)``, `ratio_power` alpha
      makes it ``rho^(1 + alpha)`` as s sg(s)^alpha does, `clip` and `capability` are
      HACPO's (arXiv 2603.02604), `drop_kl` is F-TIS's (arXiv 2605.22537), with the
      estimate ``log mu(a) - log pi_i(a)`` of the divergence at each step.

    Ratios are those of the batch's first gradient step.
    """

    config: PeerRolloutPoolingConfig

    reads: ClassVar[Reads] = "pool"

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
        """Return the base's targets, and the weights of peers' steps."""
        config, transitions = self.config, drop_invalid(experience.transitions)
        # Weights are constants for the outer gradient too.
        rows = jax.lax.stop_gradient({k: x[:-1] for k, x in experience.outputs.items()})
        log_pi_a, _ = policy_terms(rows, transitions.actions)
        log_rho = log_importance_ratios(rows, transitions)
        seen = transitions
        if config.correction != "base":
            seen = _as_own(transitions, rows, log_pi_a)
        experience = dataclasses.replace(experience, transitions=seen)
        targets, state, metrics = super().targets(
            meta_params, rule_state, experience, key
        )
        shared = self._shared(experience, key)
        if config.form == "group":
            targets = {**targets, "advantages": self._compared(experience, shared)}
        weight = self._weight(log_rho, targets, shared)
        if config.capability:
            rates = state.own.update(
                experience.peers.success,
                trajectories(experience),
                config.capability_decay,
            )
            state = dataclasses.replace(state, own=rates)
            weight *= rates.peers_over_own()
            metrics = {**metrics, "peer_capability": rates.peers_over_own()}
        metrics = {
            **metrics,
            "peer_weight": masked_mean(weight, shared),
            "peer_rho": masked_mean(jnp.exp(log_rho), shared),
            "peer_steps": jnp.sum(shared, dtype=weight.dtype),
        }
        if config.over_peers == "mean":
            count = jnp.sum(experience.peers.present, dtype=weight.dtype)
            weight /= jnp.maximum(count, 1)
        targets = {**targets, WEIGHT: weight}
        if config.correction != "base":
            targets[LOG_MU_A] = log_pi_a - jnp.where(transitions.own, log_rho, 0)
        return targets, state, metrics

    def loss(
        self,
        outputs: Outputs,
        peers: Outputs,
        targets: Targets,
        transitions: Transitions,
    ) -> tuple[jax.Array, Metrics]:
        """Return the base's loss on own steps, and on peers' steps by their weights."""
        loss, metrics = super().loss(outputs, peers, targets, transitions)
        # The steps of a minibatch may all be peers'.
        weight = jnp.where(can_learn(transitions), targets[WEIGHT], 0)
        pooled = dataclasses.replace(
            transitions,
            # Own steps too: a base may normalise by what it learns from.
            own=transitions.own | (weight > 0),
            behaviour_log_pi_a=targets.get(LOG_MU_A, transitions.behaviour_log_pi_a),
        )
        theirs, _ = self._pool_base.loss(outputs, peers, targets, pooled)
        return loss + self.config.coefficient * weight * theirs, metrics

    @property
    def learning_base(self) -> UpdateRule:
        """The base; it takes compared returns as they are."""
        return as_compared(self.base) if self.config.form == "group" else self.base

    @property
    def _pool_base(self) -> UpdateRule:
        """The base without an entropy bonus, as in SEAC's code on peers' data."""
        return with_options(self.learning_base, entropy_cost=0.0)

    def _shared(self, experience: Experience, key: jax.Array) -> jax.Array:
        """Return the peers' transitions to learn from, ``bool[T, B]``."""
        theirs = others_steps(experience)
        drawn = jax.random.uniform(own_key(key), theirs.shape[1:]) < self.config.share
        return theirs & drawn[None]

    def _compared(self, experience: Experience, shared: jax.Array) -> jax.Array:
        """Return the advantages of the group form, ``[T, B]``."""
        own = jnp.any(experience.transitions.own, axis=0)
        pool = own
        if self.config.coefficient > 0:  # else nothing of peers counts, nor is compared
            pool |= jnp.any(shared, axis=0)
        compared = compared_returns(experience.peers.returns, own, pool, share=1.0)
        outputs = jax.lax.stop_gradient(experience.outputs)
        ratios = truncated_ratios(self.base, experience.transitions, outputs)
        return ratios * compared[None]

    def _weight(
        self, log_rho: jax.Array, targets: Targets, shared: jax.Array
    ) -> jax.Array:
        """Return what each shared transition counts, ``[T, B]``; 0 on the others."""
        config = self.config
        log_rho = jnp.where(shared, log_rho, 0)
        if config.ratio == "sequence":
            lengths = jnp.sum(shared, axis=0, dtype=log_rho.dtype)
            mean = jnp.sum(log_rho, axis=0) / jnp.maximum(lengths, 1)
            log_rho = jnp.broadcast_to(mean[None], log_rho.shape)
        keep = shared
        if config.drop_kl is not None:
            keep &= ~((targets["advantages"] < 0) & (-log_rho > config.drop_kl))
        if config.clip is not None:
            keep &= _in_range(log_rho, targets["advantages"], config.clip)
        if config.correction != "weight":
            return keep.astype(log_rho.dtype)
        log_weight = (1 + config.ratio_power) * log_rho
        if config.max_weight is not None:
            log_weight = jnp.minimum(log_weight, math.log(config.max_weight))
        return jnp.where(keep, jnp.exp(log_weight), 0)


def _as_own(
    transitions: Transitions, rows: Outputs, log_pi_a: jax.Array
) -> Transitions:
    """Return transitions in which peers acted by the agent's own policy."""
    own = transitions.own
    logits, log_mu_a = transitions.behaviour_logits, transitions.behaviour_log_pi_a
    if "logits" in rows:
        logits = jnp.where(own[..., None], logits, rows["logits"])
    if log_mu_a is not None:
        log_mu_a = jnp.where(own, log_mu_a, log_pi_a)
    return dataclasses.replace(
        transitions, behaviour_logits=logits, behaviour_log_pi_a=log_mu_a
    )


def _in_range(log_rho: jax.Array, advantages: jax.Array, clip: float) -> jax.Array:
    """Return where a surrogate clipped to ``[1 - clip, 1]`` has a gradient."""
    too_high = (log_rho > 0) & (advantages > 0)
    too_low = (jnp.exp(log_rho) < 1 - clip) & (advantages < 0)
    return ~(too_high | too_low)
