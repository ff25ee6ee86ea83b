"""Deep mutual learning: every policy is pulled to what its peers would do.

A mutual rule, see `mutual.base`; must not import agents, environments or files.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from metarl.config import DeepMutualLearningConfig
from metarl.errors import UserError
from metarl.numerics import kl_divergence
from metarl.rules.base import Metrics, RuleSpec, Targets
from metarl.rules.mutual.base import MutualRule, drop_absent, over_peers, peers_there
from metarl.types import Outputs, Transitions


@dataclasses.dataclass(frozen=True)
class DeepMutualLearning(MutualRule):
    """Deep mutual learning (DML), for agents mutual distillation (MDPO).

    On the own states of agent i, with peers j and temperature tau, at every gradient
    step on the peers' newest outputs,

        L_i = L_base + c tau^2 mean_j KL(softmax(l_j / tau) || softmax(l_i / tau)).

    Zhang et al. (CVPR 2018, Eqs. 1 to 4; K peers: Eq. 10): the peers are constants.
    Their text takes the mean over peers, their code the sum. In MDPO (arXiv 2501.02481,
    released code) two agents' losses are differentiated jointly and nothing is detached
    (`peer_gradient`): the divergence on i's states, over the number of i's transitions,
    then moves j too, by

        d/dl_j = (c tau / (K - 1)) pi_j (log(pi_j / pi_i) - KL(pi_j || pi_i)).

    Deliberate deviations: no factor 1/2 on the joint loss, which Adam ignores; tempered
    policies and the reverse divergence are in neither source.
    """

    config: DeepMutualLearningConfig

    def spec(self, num_actions: int) -> RuleSpec:
        """Return what the base needs, which must have the head ``logits``."""
        spec = super().spec(num_actions)
        if all(head.name != "logits" for head in spec.heads):
            raise UserError(
                "deep_mutual_learning: its base must have the head 'logits', and "
                f"{type(self.base).__name__} has {_names(spec)}"
            )
        return spec

    def loss(
        self,
        outputs: Outputs,
        peers: Outputs,
        targets: Targets,
        transitions: Transitions,
    ) -> tuple[jax.Array, Metrics]:
        """Return the base's loss and the divergence from the peers, ``[T, B]``."""
        if "logits" not in outputs:
            raise UserError(
                "deep_mutual_learning: needs the network's 'logits' of all actions; "
                "'log_pi_a' tells nothing of the actions that were not taken"
            )
        loss, metrics = super().loss(outputs, peers, targets, transitions)
        config, there = self.config, peers_there(targets)
        theirs = drop_absent(peers["logits"], there)
        if not config.peer_gradient:
            # The agent's gradient: in this form a peer is a teacher, not a pupil.
            theirs = jax.lax.stop_gradient(theirs)
        theirs /= config.temperature
        own = jnp.broadcast_to(outputs["logits"] / config.temperature, theirs.shape)
        pair = (theirs, own) if config.direction == "forward" else (own, theirs)
        pull = over_peers(kl_divergence(*pair), there, config.over_peers)
        pull *= config.temperature**2
        loss += config.coefficient * pull * transitions.own
        return loss, {**metrics, "mutual_loss": pull}


def _names(spec: RuleSpec) -> str:
    return ", ".join(head.name for head in spec.heads)
