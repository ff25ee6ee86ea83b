"""How well agents of a group do, compared: returns within a pool, success rates.

Shared by the mutual rules; must not import agents, environments or files.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from metarl.numerics import masked_mean
from metarl.types import Experience, pytree

DEVIATION_EPSILON = 1e-6
"""Added to the deviation of returns; far below the 1 / sqrt(B) of one success in B."""


class Trajectories(NamedTuple):
    """Whose trajectories there are, each ``bool[B]``; invalid ones are nobody's."""

    own: jax.Array
    peers: jax.Array  # none where no peer is present


def trajectories(experience: Experience) -> Trajectories:
    """Return whose the trajectories of a batch are, after `drop_invalid`."""
    transitions = experience.transitions
    own = jnp.any(transitions.own, axis=0)
    theirs = jnp.any(transitions.valid & ~transitions.own, axis=0)
    return Trajectories(own, theirs & jnp.any(experience.peers.present))


def compared_returns(
    returns: jax.Array, own: jax.Array, pool: jax.Array, share: float
) -> jax.Array:
    """Return how far each return is from the mean, in deviations: ``[B]``.

    ``(G - m) / (s + e)`` with ``m = (1 - share) mean_own + share mean_pool``, and s
    likewise: the advantage of GRPO (Shao et al. 2024, section 4.1) for share 0, over
    the returns of a whole group for 1. 0 where all returns that count are the same, as
    a single one is, and for trajectories outside the pool. Deviations divide by n.

    Args:
      returns: ``[B]``.
      own: ``bool[B]``.
      pool: ``bool[B]``, own ones among them.
      share: from 0 to 1.
    """
    moments = []
    for mask in (own, pool):
        mean = masked_mean(returns, mask)
        variance = masked_mean(jnp.square(returns - mean), mask)
        # Of equal returns the mean is rounded, and the variance is what that left.
        highest = jnp.max(jnp.where(mask, returns, -jnp.inf))
        lowest = jnp.min(jnp.where(mask, returns, jnp.inf))
        deviation = jnp.where(highest > lowest, jnp.sqrt(variance), 0)
        moments.append((mean, deviation))
    mean, deviation = (
        (1 - share) * x + share * y for x, y in zip(*moments, strict=True)
    )
    compared = (returns - mean) / (deviation + DEVIATION_EPSILON)
    return jnp.where(pool & (deviation > 0), compared, 0)


@pytree
class SuccessRates:
    """Counts of attempts and successes, which decay; all scalars."""

    own_attempts: jax.Array
    own_successes: jax.Array
    peers_attempts: jax.Array
    peers_successes: jax.Array

    @classmethod
    def initial(cls) -> SuccessRates:
        """Return the counts before any attempt."""
        return cls(*(jnp.zeros(()) for _ in range(4)))

    def update(
        self, success: jax.Array, masks: Trajectories, decay: float
    ) -> SuccessRates:
        """Return the counts after a batch; one without attempts changes nothing."""

        def count(before: jax.Array, now: jax.Array, mask: jax.Array) -> jax.Array:
            after = decay * before + jnp.sum(now, dtype=before.dtype)
            return jnp.where(jnp.any(mask), after, before)

        own, peers = masks
        return SuccessRates(
            count(self.own_attempts, own, own),
            count(self.own_successes, own & success, own),
            count(self.peers_attempts, peers, peers),
            count(self.peers_successes, peers & success, peers),
        )

    def peers_over_own(self) -> jax.Array:
        """Return the peers' success rate over the agent's, ``[]``; 1 at the start.

        Rates are ``(successes + 1) / (attempts + 2)`` (Laplace), and never 0. The peers
        are taken together.
        """
        peers = (self.peers_successes + 1) / (self.peers_attempts + 2)
        return peers / ((self.own_successes + 1) / (self.own_attempts + 2))
