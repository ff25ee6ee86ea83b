"""How far the peers of a group agree: what each would do in the group's own states.

Beside `group.py`, and no part of an update: it reads agents and what they collected,
draws nothing that anybody else draws, and changes neither.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from metarl.agents.agent import Agent, AgentState
from metarl.agents.batch import all_finite
from metarl.agents.outputs import like
from metarl.types import Rollout, pytree

MOST_STATES = 512
"""Of a group, on which its peers are compared: an agreement has a standard error of at
most 0.02 then, if states are independent, and a forward pass of so many is cheap."""


@pytree
class Agreement:
    """How much alike the policies of K peers are; all scalars.

    Means over all pairs of peers and over states; nan where no two are present, or
    there is no state.
    """

    greedy: jax.Array  # f32[] how many states have the same action preferred by both
    # f32[] Jensen-Shannon divergence in nats, from 0 to log 2 (Lin 1991)
    divergence: jax.Array
    present: jax.Array  # i32[] peers that were compared


def agreement_of(
    agent: Agent,
    states: AgentState,
    rollouts: Rollout,
    *,
    most_states: int = MOST_STATES,
) -> Agreement:
    """Return how far the peers of one group agree on what it has collected.

    Every peer is evaluated in the same states, equally many of each one's. Policies are
    those by which agents act: of Q-learning the epsilon-greedy one.

    Peers whose parameters, outputs or observations are not finite are absent: they are
    not compared, and nobody is compared in their states. States whose transition does
    not exist do not count.

    Args:
      agent: what the agents have in common.
      states: of the agents, leading axis K.
      rollouts: that they collected, leading axis K.
      most_states: on which they are compared, or all if there are fewer.
    """
    valid, seen = rollouts.transitions.valid, rollouts.observations
    num_peers, steps, columns = valid.shape
    sound = all_finite((states.params, seen))
    chosen = _spread(steps * columns, max(1, most_states // num_peers))

    def of_peers(x: jax.Array) -> jax.Array:
        """Return ``[K n, ...]``, the chosen ones of ``[K, T, B, ...]``."""
        flat = x.reshape(num_peers, steps * columns, *x.shape[3:])[:, chosen]
        return flat.reshape(num_peers * len(chosen), *x.shape[3:])

    observations = of_peers(seen[:, :steps])
    # Nor do the others' outputs have to be finite in what counts for nothing.
    exists = like(of_peers(sound[:, None, None] & valid), observations)
    observations = jnp.where(exists, observations, 0)

    def policy(state: AgentState) -> tuple[jax.Array, jax.Array]:
        outputs = agent.network.apply(state.params, observations)
        # Nobody acts: of a draw only the policy that it is made from is kept.
        key = jax.random.key(0)
        _, logits = agent.rule.act(outputs, agent.clock(state), key)
        finite = [jnp.all(jnp.isfinite(x)) for x in outputs.values()]
        return logits, jnp.all(jnp.stack(finite))

    logits, is_finite = jax.vmap(policy)(states)
    present = sound & is_finite
    return compare(logits, present, of_peers(present[:, None, None] & valid))


def compare(logits: jax.Array, present: jax.Array, counts: jax.Array) -> Agreement:
    """Return how far policies agree, as means over pairs of peers and states.

    Args:
      logits: ``[K, S, A]`` of each peer in every state; -inf of excluded actions.
      present: ``bool[K]``; nothing of the others is read.
      counts: ``bool[S]`` states that do.
    """
    first, second = np.triu_indices(len(logits), 1)
    logits = jnp.where(present[:, None, None], logits, 0)
    log_pi = jax.nn.log_softmax(logits)
    greedy = jnp.argmax(logits, axis=-1)
    pairs = present[first] & present[second]
    mask = pairs[:, None] & counts[None]
    number = jnp.sum(mask)

    def mean(x: jax.Array) -> jax.Array:
        total = jnp.sum(jnp.where(mask, x, 0))
        return jnp.where(number > 0, total / jnp.maximum(number, 1), jnp.nan)

    return Agreement(
        greedy=mean((greedy[first] == greedy[second]).astype(log_pi.dtype)),
        divergence=mean(_jensen_shannon(log_pi[first], log_pi[second])),
        present=jnp.sum(present, dtype=jnp.int32),
    )


def _jensen_shannon(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
    """Return ``[KL(p || m) + KL(q || m)] / 2``, m the mean of p and q; last axis."""
    log_m = jnp.logaddexp(log_p, log_q) - np.log(2).astype(log_p.dtype)

    def from_mean(log_x: jax.Array) -> jax.Array:
        x = jnp.exp(log_x)
        return jnp.sum(jnp.where(x > 0, x * (log_x - log_m), 0), axis=-1)

    # Rounding makes the divergence of equals a little less than 0.
    return jnp.maximum((from_mean(log_p) + from_mean(log_q)) / 2, 0)


def _spread(total: int, most: int) -> np.ndarray:
    """Return numbers below ``total``, ``most`` or all: the same ones in every call.

    Not evenly spaced ones, which would be of the same few environments in every step.
    """
    rng = np.random.default_rng(0)
    return np.sort(rng.choice(total, min(total, most), replace=False))
