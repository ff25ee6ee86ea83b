"""What mutual-learning rules share: a base rule, and sums over the peers who are there.

A mutual rule adds terms of its own to a base rule's targets and loss, behind
`rules.base.UpdateRule`; must not import agents, environments or files.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from metarl.config import Model
from metarl.numerics import kl_divergence
from metarl.rules.base import (
    Metrics,
    Reads,
    RuleSpec,
    RuleState,
    Targets,
    UpdateRule,
)
from metarl.types import Clock, Experience, Outputs, Params, Transitions, pytree

PRESENT = "mutual_present"
"""Key of the targets: which peers there are, ``bool[T, B, P]``."""

_KEY_TAG = 0x6D757475
"""Folded into the key for what a mutual rule draws; far from what `jax.random.split`
counts, so that a base rule that splits the same key draws something else."""


@pytree
class MutualState:
    """What a mutual rule carries over one lifetime."""

    base: RuleState
    own: RuleState


@dataclasses.dataclass(frozen=True)
class MutualRule(UpdateRule):
    """A base rule to which others add what peers teach.

    Everything is the base's where nobody is there to learn from: reductions over peers
    are masked sums over ``max(1, present.sum())``, and the trajectories of others count
    as far as a peer is present. (Those of one that is not must be invalid.)

    Rules by hand are not meant for meta-training: they stop gradients in `loss`, and
    the meta-gradient then lacks what an agent does to its peers. A base rule brings the
    meta-parameters that it was discovered with.
    """

    config: Model
    base: UpdateRule

    reads: ClassVar[Reads] = "peers"

    def spec(self, num_actions: int) -> RuleSpec:
        """Return what the base needs, with the trajectories that this rule reads."""
        return dataclasses.replace(self.base.spec(num_actions), reads=self.reads)

    def init_params(self, key: jax.Array) -> Params:
        """Return the base's meta-parameters."""
        return self.base.init_params(key)

    def init_state(self) -> MutualState:
        """Return the base's state and this rule's own."""
        return MutualState(self.base.init_state(), self.init_own_state())

    def init_own_state(self) -> RuleState:
        """Return what the rule itself carries; by default nothing."""
        return {}

    def act(
        self, outputs: Outputs, clock: Clock, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Act as the base does."""
        return self.base.act(outputs, clock, key)

    def targets(
        self,
        meta_params: Params,
        rule_state: MutualState,
        experience: Experience,
        key: jax.Array,
    ) -> tuple[Targets, MutualState, Metrics]:
        """Return the base's targets, and which peers are present."""
        targets, base_state, metrics = self.base.targets(
            meta_params, rule_state.base, experience, key
        )
        lead = experience.transitions.valid.shape
        present = jnp.broadcast_to(
            experience.peers.present, (*lead, *experience.peers.present.shape)
        )
        state = dataclasses.replace(rule_state, base=base_state)
        return {**targets, PRESENT: present}, state, metrics

    def loss(
        self,
        outputs: Outputs,
        peers: Outputs,
        targets: Targets,
        transitions: Transitions,
    ) -> tuple[jax.Array, Metrics]:
        """Return the base's loss ``[T, B]``; metrics tell how peers differ."""
        loss, metrics = self.learning_base.loss(outputs, peers, targets, transitions)
        return loss, {**metrics, **disagreement(outputs, peers, peers_there(targets))}

    @property
    def learning_base(self) -> UpdateRule:
        """The base whose loss it is; by default as it is."""
        return self.base

    def regularizers(self, targets: Targets, experience: Experience) -> Metrics:
        """Return the base's terms for the outer objective."""
        return self.base.regularizers(targets, experience)


def with_options(rule: UpdateRule, **options: float) -> UpdateRule:
    """Return a rule with other options, of those that it has."""
    config = getattr(rule, "config", None)
    known = {name: x for name, x in options.items() if hasattr(config, name)}
    if config is None or not known:
        return rule
    changed = config.model_copy(update=known)
    return dataclasses.replace(rule, config=changed)  # type: ignore[type-var]


def as_compared(rule: UpdateRule) -> UpdateRule:
    """Return a base for advantages that are returns compared with others'.

    One that normalised them within each minibatch would undo the comparison: it takes
    the mean and the deviation of one's own away again, whatever the group's were.
    """
    return with_options(rule, normalize_advantages=False)


def can_learn(transitions: Transitions) -> jax.Array:
    """Return whether any own step is learned from, ``bool[]``.

    The caller divides losses by the number of these, so what peers add must be nothing
    where there is none.
    """
    counts = transitions.own & transitions.valid & (transitions.learn > 0)
    return jnp.any(counts)


def own_key(key: jax.Array) -> jax.Array:
    """Return a key for what the mutual rule draws; the base has ``key`` itself."""
    return jax.random.fold_in(key, _KEY_TAG)


def peers_there(targets: Targets) -> jax.Array:
    """Return which peers there are, as a loss needs it: ``bool[P, T, B]``."""
    return jnp.moveaxis(targets[PRESENT], -1, 0)


def drop_absent(x: jax.Array, there: jax.Array) -> jax.Array:
    """Return peers' outputs ``[P, T, B, ...]`` with zeros for those who are not there.

    Before anything is computed of them, so that not even a gradient is.

    Args:
      x: one output of every peer.
      there: ``bool[P, T, B]``.
    """
    return jnp.where(there.reshape(there.shape + (1,) * (x.ndim - there.ndim)), x, 0)


def over_peers(
    x: jax.Array, there: jax.Array, how: Literal["mean", "sum"] = "mean"
) -> jax.Array:
    """Return the mean or sum over the peers who are there, ``[T, B]``.

    Args:
      x: ``[P, T, B]``.
      there: ``bool[P, T, B]``.
      how: the mean of no peers is 0.
    """
    total = jnp.sum(jnp.where(there, x, 0), axis=0)
    if how == "sum":
        return total
    return total / jnp.maximum(jnp.sum(there, axis=0, dtype=x.dtype), 1)


def disagreement(outputs: Outputs, peers: Outputs, there: jax.Array) -> Metrics:
    """Return means over the peers, to log; nothing without logits.

    ``peer_kl``: KL(peer || own), in nats. ``peer_agreement``: how many prefer the same
    action; 0 without peers.
    """
    if "logits" not in outputs or "logits" not in peers:
        return {}
    theirs = jax.lax.stop_gradient(drop_absent(peers["logits"], there))
    own = jnp.broadcast_to(jax.lax.stop_gradient(outputs["logits"]), theirs.shape)
    alike = jnp.argmax(theirs, axis=-1) == jnp.argmax(own, axis=-1)
    return {
        "peer_kl": over_peers(kl_divergence(theirs, own), there),
        "peer_agreement": over_peers(alike.astype(own.dtype), there),
    }


def others_steps(experience: Experience) -> jax.Array:
    """Return which transitions are peers' that one may learn from, ``bool[T, B]``.

    None where no peer is present. Expects transitions after `drop_invalid`.
    """
    transitions = experience.transitions
    anyone = jnp.any(experience.peers.present)
    return transitions.valid & ~transitions.own & anyone
