"""Mutual Q-learning: action values are pulled to what peers think of every action.

A mutual rule, see `mutual.base`; must not import agents, environments or files.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import entr

from metarl.config import MutualQConfig, PolicyAgreementConfig
from metarl.errors import UserError
from metarl.numerics import kl_divergence
from metarl.rules.base import Metrics, RuleSpec, Targets
from metarl.rules.mutual.base import (
    PRESENT,
    MutualRule,
    MutualState,
    drop_absent,
    over_peers,
    peers_there,
)
from metarl.rules.q_learning import QLearning
from metarl.types import Experience, Outputs, Params, Transitions

OPINION = "mutual_q"
"""Key of the targets: the peers' mean action values, ``[T, B, A, size]``."""
WEIGHT = "mutual_q_weight"
"""Key of the targets: how much an agent is pulled to them, ``[T, B]``."""
SHARE = "mutual_q_share"
"""Key of the targets: what each transition counts that all learn from, ``[T, B]``."""

MAX_RATIO = 100.0
"""Bound of a peer's score over one's own, which may be near 0; the source has none."""


@dataclasses.dataclass(frozen=True)
class MutualQ(MutualRule):
    """Mutual Q-learning (C. Reid and S. Mukhopadhyay, blog post of 2020, and code).

    On the replayed states of agent i, for the first part `active_fraction` of its life,

        L_i = L_TD + mean_j w_ij mean_a d(Q_i(s, a), Q_j(s, a)),
        w_ij = coefficient * score_j / score_i,

    over the peers j who are there, with all actions a, and no gradient into peers. Of
    numbers d is the loss of the base: half the squared error, so that the pull is that
    to the mean q_bar of the peers' values, weighted by w_ij, with the mean weight. With
    Huber's loss it is ``mean_j w_ij mean_a huber(Q_i - q_bar)``, which is not the sum
    over peers where they lie on either side or far away (ours; the source has one).
    Of categorical values d is ``KL(q_bar || q_i)`` for the mean of the peers'
    distributions, weighted likewise: its mean is their mean value, in transformed
    space; with w the weight over the number of actions, the action taken then has the
    target ``(q_TD + w q_bar) / (1 + w)`` and counts 1 + w, each other q_bar and w.

    The source has two learners; the mean over more, and these weightings beside the
    proportional and the constant one, are ours. ``rank``: ranks of scores in place of
    scores (from 1 for the worst, equal ones share theirs), which the proportional
    weighting falls back to where a score is not positive. ``softmax``: the softmax of
    the scores, in deviations of the group, times the number of agents. All are 1 at
    equal scores, and where a score is not known. Scores are mean returns of the newest
    episodes; the source plays episodes for them.

    With ``agreement: {kind: policy}`` the term is ``KL(softmax(q_bar / tau) ||
    softmax(Q_i / tau))`` for the weighted mean q_bar of the peers' values, as in later
    code of the first author, whose directions vary; there only where greedy actions
    differ, which is an option.

    `share_transitions`: the base learns from the peers' replayed transitions as from
    its own, and all together count as much as its own would. In the source they are put
    into one another's replay, so that its batches are smaller by the number of agents.

    Not meant for meta-training: there is no policy head.
    """

    config: MutualQConfig

    def __post_init__(self) -> None:
        """Refuse a base without action values."""
        if not isinstance(self.base, QLearning):
            name = type(self.base).__name__
            raise UserError(f"mutual_q: its base is {name} (allowed: q_learning)")

    @property
    def q_learning(self) -> QLearning:
        """The base, by what it is."""
        assert isinstance(self.base, QLearning)
        return self.base

    def spec(self, num_actions: int) -> RuleSpec:
        """Return what the base needs; shared transitions are the whole pool's."""
        spec = super().spec(num_actions)
        if not self.config.share_transitions:
            return spec
        return dataclasses.replace(spec, reads="pool")

    def targets(
        self,
        meta_params: Params,
        rule_state: MutualState,
        experience: Experience,
        key: jax.Array,
    ) -> tuple[Targets, MutualState, Metrics]:
        """Return the base's targets, and the peers' values with the pull to them."""
        targets, state, metrics = super().targets(
            meta_params, rule_state, experience, key
        )
        weights = self.weights(experience)
        theirs = experience.peers.outputs["q"][:, :-1]
        # Before anything is computed of it: nothing of a peer who does not count.
        theirs = jnp.where(_along(weights > 0, theirs), theirs, 0)
        if self.q_learning.bins is not None:
            theirs = jax.nn.softmax(theirs)
        weight = jnp.sum(weights)
        parts = weights / jnp.where(weight > 0, weight, 1)
        lead = experience.transitions.valid.shape
        agents = 1 + jnp.sum(experience.peers.present, dtype=weight.dtype)
        targets = {
            **targets,
            OPINION: jnp.sum(_along(parts, theirs) * theirs, axis=0),
            WEIGHT: jnp.broadcast_to(weight, lead),
            SHARE: jnp.broadcast_to(1 / agents, lead),
        }
        return targets, state, {**metrics, "peer_weight": weight}

    def loss(
        self,
        outputs: Outputs,
        peers: Outputs,
        targets: Targets,
        transitions: Transitions,
    ) -> tuple[jax.Array, Metrics]:
        """Return the base's loss and the distance to the peers' values, ``[T, B]``."""
        counted = transitions.own.astype(targets[SHARE].dtype)
        if self.config.share_transitions:
            anyone = jnp.any(targets[PRESENT], axis=-1)
            transitions = dataclasses.replace(transitions, own=transitions.own | anyone)
            counted = targets[SHARE]
        loss, metrics = super().loss(outputs, peers, targets, transitions)
        mutual_loss = self._distance(outputs, targets[OPINION])
        metrics = {
            **metrics,
            # Of nobody, as after the active part of a life, there is none.
            "mutual_loss": jnp.where(targets[WEIGHT] > 0, mutual_loss, 0),
            "peer_agreement": self._agreement(outputs, peers, targets),
        }
        # The base has multiplied its loss by `own`, which is 1 or this.
        return (loss + targets[WEIGHT] * mutual_loss) * counted, metrics

    def _distance(self, outputs: Outputs, opinion: jax.Array) -> jax.Array:
        """Return how far values, or the policy of them, are from peers', ``[T, B]``."""
        agreement, bins = self.config.agreement, self.q_learning.bins
        if isinstance(agreement, PolicyAgreementConfig):
            if bins is not None:
                # The smallest number in place of 0, for finite logits.
                opinion = jnp.log(jnp.maximum(opinion, np.finfo(opinion.dtype).tiny))
            own, theirs = (
                self.q_learning.action_values(x) for x in (outputs, {"q": opinion})
            )
            counts = jnp.ones((), bool)
            if agreement.only_where_greedy_differs:
                counts = jnp.argmax(own, axis=-1) != jnp.argmax(theirs, axis=-1)
            scale = agreement.temperature
            return jnp.where(counts, kl_divergence(theirs / scale, own / scale), 0)
        distance = self.q_learning.distance(outputs["q"], opinion)
        if bins is not None:
            distance -= jnp.sum(entr(opinion), axis=-1)
        return jnp.mean(distance, axis=-1)

    def weights(self, experience: Experience) -> jax.Array:
        """Return ``w_ij`` over the number of peers, ``[P]``; 0 for who is not there."""
        config, present = self.config, experience.peers.present
        fraction = experience.clock.lifetime_fraction
        count = jnp.maximum(jnp.sum(present, dtype=fraction.dtype), 1)
        ratios = jnp.ones(present.shape, fraction.dtype)
        if experience.scores is not None and config.weighting != "constant":
            ratios = self._ratios(experience.scores.astype(fraction.dtype), present)
        is_active = present & (fraction < config.active_fraction)
        return jnp.where(is_active, config.coefficient * ratios / count, 0)

    def _ratios(self, scores: jax.Array, present: jax.Array) -> jax.Array:
        """Return how much more than itself an agent trusts each peer, ``[P]``.

        Args:
          scores: ``[1 + P]``, its own first; nan where none is known.
          present: ``bool[P]``.
        """
        counted = jnp.isfinite(scores) & jnp.concatenate([jnp.array([True]), present])
        scores = jnp.where(counted, scores, 0)
        if self.config.weighting == "softmax":
            ratios = _softmax(scores, counted)[1:]
        else:
            rank = _ranks(scores, counted)
            ratios = rank[1:] / rank[0]
        if self.config.weighting == "proportional":
            is_positive = jnp.all((scores > 0) | ~counted)
            own = jnp.where(is_positive & counted[0], scores[0], 1)
            ratios = jnp.where(is_positive, scores[1:] / own, ratios)
        known = counted[0] & counted[1:]
        return jnp.where(known, jnp.minimum(ratios, MAX_RATIO), 1)

    def _agreement(
        self, outputs: Outputs, peers: Outputs, targets: Targets
    ) -> jax.Array:
        """Return how many of the peers prefer the same action, ``[T, B]``."""
        there = peers_there(targets)
        theirs = self.q_learning.action_values({"q": drop_absent(peers["q"], there)})
        own = self.q_learning.action_values(outputs)
        greedy = jnp.argmax(own, axis=-1)
        alike = jnp.argmax(theirs, axis=-1) == jnp.broadcast_to(
            greedy, theirs.shape[:-1]
        )
        return over_peers(alike.astype(own.dtype), there)


def _along(x: jax.Array, like: jax.Array) -> jax.Array:
    """Return ``x [P]`` with as many axes as ``like [P, ...]``."""
    return x.reshape(x.shape + (1,) * (like.ndim - 1))


def _ranks(scores: jax.Array, counted: jax.Array) -> jax.Array:
    """Return ranks from 1 for the lowest; equal scores have the mean of theirs."""
    below = (scores[None] < scores[:, None]) & counted[None]
    equal = (scores[None] == scores[:, None]) & counted[None]
    return jnp.sum(below, axis=1) + (jnp.sum(equal, axis=1) + 1) / 2


def _softmax(scores: jax.Array, counted: jax.Array) -> jax.Array:
    """Return the softmax of standardised scores times their number."""
    count = jnp.maximum(jnp.sum(counted, dtype=scores.dtype), 1)
    centred = jnp.where(counted, scores - jnp.sum(scores) / count, 0)
    deviation = jnp.sqrt(jnp.sum(jnp.square(centred)) / count)
    standard = centred / jnp.where(deviation > 0, deviation, 1)
    return count * jax.nn.softmax(jnp.where(counted, standard, -jnp.inf))
