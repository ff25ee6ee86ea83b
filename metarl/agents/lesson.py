"""The parts of a group's update: outputs, the rule's lesson, the loss's gradient.

`group.py` joins them to an update; the meta-gradient takes them one by one. All arrays
of several agents have a leading axis K.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from metarl.agents.agent import Agent, AgentState
from metarl.numerics import AdamState, masked_mean, take_action
from metarl.rules.base import Metrics, RuleState, Targets
from metarl.types import (
    Experience,
    Outputs,
    Params,
    Peers,
    Rollout,
    Transitions,
    drop_invalid,
    pytree,
)

NORMALIZER_EPSILON = 1e-8
"""Added to the number of learning transitions, as in DiscoRL's released code."""


@pytree
class Lesson:
    """What a rule makes of one batch for every agent; every leaf has axis K."""

    experience: Experience
    targets: Targets
    rule_state: RuleState
    metrics: Metrics


@jax.named_scope("network")
def evaluate(agent: Agent, params: Params, batch: Rollout) -> tuple[Outputs, Outputs]:
    """Return all agents' outputs on a pooled batch, and what the loss reads of them.

    ``[K, T+1, B, ...]`` and ``[K, T, B, ...]``; see `Agent.evaluate`.
    """
    # Whatever action a transition has that does not exist: one that there is.
    actions = drop_invalid(batch.transitions).actions
    return evaluate_rows(agent, params, batch.observations, actions)


@jax.named_scope("target_network")
def evaluate_target(agent: Agent, params: Params, batch: Rollout) -> Outputs:
    """Return the target networks' outputs ``[K, T+1, B, ...]``; {} without one."""
    if agent.spec.target_network.kind == "none":
        return {}
    return _outputs(agent, params, batch.observations)


@jax.named_scope("rule")
def teach(
    agent: Agent,
    meta_params: Params,
    states: AgentState,
    outputs: tuple[Outputs, Outputs],
    batch: Rollout,
    key: jax.Array,
) -> Lesson:
    """Return the targets of a batch for every agent.

    Args:
      agent: what the agents have in common.
      meta_params: the rule's parameters; differentiable.
      states: of the agents, for their rule states and ages alone.
      outputs: of the online and of the target networks, ``[K, T+1, B, ...]``;
        differentiable.
      batch: pooled.
      key: of the update.
    """
    experience = _experience(agent, states, batch, *outputs)
    target_key, _ = jax.random.split(key)
    keys = jax.random.split(target_key, states.env_steps.shape[0])
    targets, rule_state, metrics = jax.vmap(
        agent.rule.targets, in_axes=(None, 0, 0, 0)
    )(meta_params, states.rule_state, experience, keys)
    return Lesson(experience, targets, rule_state, metrics)


@jax.named_scope("loss")
def loss_gradient(
    agent: Agent, read: Outputs, lesson: Lesson
) -> tuple[Outputs, Metrics]:
    """Return the gradient of the group's loss for what it reads, and metrics ``[K]``.

    Args:
      agent: what the agents have in common.
      read: second result of `evaluate`.
      lesson: of the same batch; differentiable.
    """
    return jax.grad(
        lambda read: group_loss(
            agent, read, lesson.targets, lesson.experience.transitions
        ),
        has_aux=True,
    )(read)


@jax.named_scope("optimizer")
def step(
    agent: Agent, states: AgentState, grads: Params
) -> tuple[Params, AdamState, Metrics]:
    """Return all agents' parameters and optimisers after one gradient step."""
    return jax.vmap(agent.gradient_step)(states, grads)


def others(num_peers: int) -> jax.Array:
    """Return the indices of each agent's K - 1 peers: ``i32[K, K-1]``."""
    index = jnp.arange(num_peers)[:, None] + 1 + jnp.arange(num_peers - 1)[None]
    return (index % num_peers).astype(jnp.int32)


def _outputs(agent: Agent, params: Params, observations: jax.Array) -> Outputs:
    """Return all agents' outputs ``[K, T, B, ...]`` on observations ``[T, B, ...]``."""
    lead = observations.shape[:2]
    # The network is feed-forward, so time is more batch to it.
    flat = observations.reshape(-1, *observations.shape[2:])
    outputs = jax.vmap(agent.network.apply, in_axes=(0, None))(params, flat)
    return _unflatten(outputs, lead)


def evaluate_rows(
    agent: Agent, params: Params, observations: jax.Array, actions: jax.Array
) -> tuple[Outputs, Outputs]:
    """Return `_outputs`, and what the loss reads on the first rows, of ``actions``."""
    flat = observations.reshape(-1, *observations.shape[2:])
    outputs, read = jax.vmap(agent.evaluate, in_axes=(0, None, None))(
        params, flat, actions.reshape(-1)
    )
    lead = observations.shape[:2]
    return _unflatten(outputs, lead), _unflatten(read, actions.shape)


def _unflatten(outputs: Outputs, lead: tuple[int, ...]) -> Outputs:
    return {k: x.reshape(x.shape[0], *lead, *x.shape[2:]) for k, x in outputs.items()}


def _experience(
    agent: Agent,
    states: AgentState,
    batch: Rollout,
    outputs: Outputs,
    target_outputs: Outputs,
) -> Experience:
    """Return what each of the K agents is told about the pooled batch."""
    num_peers = states.env_steps.shape[0]
    owner = jnp.arange(batch.returns.shape[0]) // (batch.returns.shape[0] // num_peers)

    def transitions_of(index: jax.Array) -> Transitions:
        own = jnp.broadcast_to(owner == index, batch.transitions.valid.shape)
        return drop_invalid(dataclasses.replace(batch.transitions, own=own))

    index = others(num_peers)

    def repeat(x: jax.Array) -> jax.Array:
        return jnp.broadcast_to(x, (num_peers, *x.shape))

    return Experience(
        transitions=jax.vmap(transitions_of)(jnp.arange(num_peers)),
        outputs=outputs,
        target_outputs=target_outputs,
        peers=Peers(
            outputs=_gather(outputs, index),
            present=jnp.ones(index.shape, bool),
            returns=repeat(batch.returns),
            success=repeat(batch.success),
        ),
        clock=jax.vmap(agent.clock)(states),
        scores=_scores(batch.score, index),
    )


def _scores(scores: jax.Array | None, index: jax.Array) -> jax.Array | None:
    """Return each agent's score before its peers', ``[K, K]``, of scores ``[K]``."""
    if scores is None:
        return None
    own = jnp.arange(index.shape[0], dtype=index.dtype)[:, None]
    return scores[jnp.concatenate([own, index], axis=1)]


def _gather(outputs: Outputs, index: jax.Array) -> Outputs:
    """Return the peers' outputs ``[K, K-1, T, B, ...]``."""
    return {name: x[index] for name, x in outputs.items()}


def group_loss(
    agent: Agent, outputs: Outputs, targets: Targets, transitions: Transitions
) -> tuple[jax.Array, Metrics]:
    """Return the sum of the K agents' losses, differentiated jointly.

    Each is normalised by its agent's own learning transitions, so that adding peers
    never dilutes the agent's own signal.

    Args:
      agent: what the agents have in common.
      outputs: what a loss reads, fresh, ``[K, T, B, ...]``.
      targets: ``[K, T, B, ...]``.
      transitions: ``[K, T, B]``.

    Returns:
      A scalar, and metrics ``[K]``.
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

    peers = _gather(outputs, others(transitions.valid.shape[0]))
    losses, metrics = jax.vmap(loss_of)(outputs, peers, targets, transitions)
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
