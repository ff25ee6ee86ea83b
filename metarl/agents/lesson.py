"""The parts of a group's update: outputs, the rule's lesson, the loss's gradient.

`group.py` joins them to an update; the meta-gradient takes them one by one. All arrays
of several agents have a leading axis K; columns C are those of `batch.py`.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from metarl.agents.agent import Agent, AgentState
from metarl.agents.batch import Batch, others, without_absent
from metarl.agents.outputs import Seen, fill, finite_rows, like, peers_of
from metarl.numerics import AdamState, masked_mean, take_action
from metarl.rules.base import Metrics, RuleState, Targets
from metarl.types import Experience, Outputs, Params, Peers, Transitions, pytree

NORMALIZER_EPSILON = 1e-8
"""Added to the number of learning transitions, as in DiscoRL's released code."""

PRESENT = "peers_present"
"""Name of the metric that counts the peers that an agent learned beside."""


@pytree
class Lesson:
    """What a rule makes of one batch for every agent; every leaf has axis K."""

    experience: Experience
    targets: Targets
    rule_state: RuleState
    metrics: Metrics

    @property
    def judged(self) -> tuple[Targets, Transitions, jax.Array]:
        """What a loss is given beside outputs: the last is who is present."""
        experience = self.experience
        return self.targets, experience.transitions, experience.peers.present


@jax.named_scope("rule")
def teach(
    agent: Agent,
    meta_params: Params,
    states: AgentState,
    outputs: tuple[Seen, Outputs],
    batch: Batch,
    key: jax.Array,
) -> Lesson:
    """Return the targets of a batch for every agent.

    Args:
      agent: what the agents have in common.
      meta_params: the rule's parameters; differentiable.
      states: of the agents, for their rule states and ages alone.
      outputs: of the online and of the target networks, ``[K, T+1, C, ...]``;
        differentiable.
      batch: that they are shown.
      key: of the update.
    """
    experience = _experience(agent, states, batch, *outputs)
    target_key, _ = jax.random.split(key)
    keys = jax.random.split(target_key, states.env_steps.shape[0])
    targets, rule_state, metrics = jax.vmap(
        agent.rule.targets, in_axes=(None, 0, 0, 0)
    )(meta_params, states.rule_state, experience, keys)
    if agent.spec.reads != "own":
        present = experience.peers.present.astype(jnp.result_type(float))
        metrics = {**metrics, PRESENT: jnp.sum(present, axis=1)}
    return Lesson(experience, targets, rule_state, metrics)


@jax.named_scope("loss")
def loss_gradient(
    agent: Agent,
    read: Seen,
    targets: Targets,
    transitions: Transitions,
    present: jax.Array,
) -> tuple[Seen, Metrics]:
    """Return the gradient of the group's loss for what it reads, and metrics ``[K]``.

    The agents' losses are summed and differentiated jointly. Where one has a gradient
    for a peer's outputs that is not finite, the peer gets none of it.

    Args:
      agent: what the agents have in common.
      read: second result of `outputs.evaluate`.
      targets: ``[K, T, C, ...]``; differentiable.
      transitions: ``[K, T, C]``.
      present: bool[K, K-1] the peers that each agent was told of.
    """
    peers, back = jax.vjp(functools.partial(peers_of, agent), read)

    def loss(own: Outputs, peers: Outputs) -> tuple[jax.Array, Metrics]:
        filled, _ = fill(peers, own, present)
        return _group_loss(agent, own, filled, targets, transitions)

    if not agent.moves_peers:
        gradient, metrics = jax.grad(loss, has_aux=True)(read.own, peers)
        return Seen(gradient, jax.tree.map(jnp.zeros_like, read.across)), metrics
    (gradient, of_peers), metrics = jax.grad(loss, argnums=(0, 1), has_aux=True)(
        read.own, peers
    )
    sound = finite_rows(of_peers)
    (through,) = back({k: jnp.where(like(sound, x), x, 0) for k, x in of_peers.items()})
    return Seen(jax.tree.map(jnp.add, gradient, through.own), through.across), metrics


@jax.named_scope("optimizer")
def step(
    agent: Agent, states: AgentState, grads: Params
) -> tuple[Params, AdamState, Metrics]:
    """Return all agents' parameters and optimisers after one gradient step."""
    return jax.vmap(agent.gradient_step)(states, grads)


def _experience(
    agent: Agent,
    states: AgentState,
    batch: Batch,
    outputs: Seen,
    target_outputs: Outputs,
) -> Experience:
    """Return what each of the K agents is told about the batch."""
    peers, present = fill(peers_of(agent, outputs), outputs.own, batch.present)
    of_batch = batch.transitions, batch.returns, batch.success
    if agent.spec.reads == "pool":
        of_batch = jax.vmap(without_absent)(*of_batch, _owners_there(present))
    transitions, returns, success = of_batch
    return Experience(
        transitions=transitions,
        outputs=outputs.own,
        target_outputs=target_outputs,
        peers=Peers(
            outputs=peers,
            present=present,
            returns=returns,
            success=success,
        ),
        clock=jax.vmap(agent.clock)(states),
        scores=_scores(batch.score, present),
    )


def _owners_there(present: jax.Array) -> jax.Array:
    """Return whose trajectories each agent is shown, ``bool[K, K]``, its own always.

    Args:
      present: bool[K, K-1], as `others` lists the peers.
    """
    count = len(present)
    agents = jnp.arange(count)[:, None]
    return jnp.eye(count, dtype=bool).at[agents, others(count)].set(present)


def _scores(scores: jax.Array | None, present: jax.Array) -> jax.Array | None:
    """Return each agent's score before its peers', ``[K, 1 + P]``; nan of absent ones.

    Args:
      scores: ``[K]``; None: nobody keeps them.
      present: bool[K, P].
    """
    if scores is None:
        return None
    peers = scores[others(len(scores))[:, : present.shape[1]]]
    return jnp.concatenate([scores[:, None], jnp.where(present, peers, jnp.nan)], 1)


def _group_loss(
    agent: Agent,
    own: Outputs,
    peers: Outputs,
    targets: Targets,
    transitions: Transitions,
) -> tuple[jax.Array, Metrics]:
    """Return the sum of the K agents' losses, and metrics ``[K]``.

    Each is normalised by its agent's own learning transitions, so that adding peers
    never dilutes the agent's own signal.
    """

    def loss_of(
        own: Outputs, peers: Outputs, targets: Targets, transitions: Transitions
    ) -> tuple[jax.Array, Metrics]:
        loss, parts = agent.rule.loss(own, peers, targets, transitions)
        weight = transitions.valid * transitions.learn
        normalizer = jnp.sum(weight * transitions.own) + NORMALIZER_EPSILON
        total = jnp.sum(jnp.where(transitions.valid, loss, 0) * weight) / normalizer
        metrics = {k: masked_mean(v, transitions.own) for k, v in parts.items()}
        return total, {**metrics, **_policy_metrics(own, transitions), "loss": total}

    losses, metrics = jax.vmap(loss_of)(own, peers, targets, transitions)
    return jnp.sum(losses), metrics


def _policy_metrics(outputs: Outputs, transitions: Transitions) -> Metrics:
    """Return the entropy of the policy and its divergence from the one that acted."""
    if "logits" not in outputs:
        return {}
    log_pi = jax.nn.log_softmax(outputs["logits"])
    log_mu = jax.nn.log_softmax(transitions.behaviour_logits)
    taken = take_action(log_mu - log_pi, transitions.actions)
    return {
        "entropy": masked_mean(
            -jnp.sum(jnp.exp(log_pi) * log_pi, axis=-1), transitions.own
        ),
        "approx_kl": masked_mean(taken, transitions.own),
    }
