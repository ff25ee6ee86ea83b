"""Agents of one game that learn together: the update of a group of K peers.

Every peer evaluates the pooled batch of the group; the other agents' outputs are a
gather along the agent axis. A single agent is a group of one, by the same code.
"""

from __future__ import annotations

import dataclasses
from typing import TypeVar

import jax
import jax.numpy as jnp

from metarl.agents.agent import Agent, AgentState
from metarl.numerics import masked_mean, take_action
from metarl.rules.base import Metrics, Targets
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

Tree = TypeVar("Tree")

NORMALIZER_EPSILON = 1e-8
"""Added to the number of learning transitions, as in DiscoRL's released code."""


@pytree
class UpdateRecord:
    """What one update of a group computed on its way; every leaf has axis K."""

    experience: Experience
    targets: Targets
    metrics: Metrics


def pool(rollouts: Rollout) -> Rollout:
    """Join the peers' rollouts ``[K, T, B, ...]`` to one batch ``[T, K B, ...]``.

    Trajectory ``k B + b`` is the b-th of peer k.
    """

    def join(x: jax.Array) -> jax.Array:
        x = jnp.moveaxis(x, 0, 1)
        return x.reshape(x.shape[0], x.shape[1] * x.shape[2], *x.shape[3:])

    return Rollout(
        observations=join(rollouts.observations),
        transitions=jax.tree.map(join, rollouts.transitions),
        returns=rollouts.returns.reshape(-1),
        success=rollouts.success.reshape(-1),
        env_steps=jnp.sum(rollouts.env_steps, dtype=rollouts.env_steps.dtype),
    )


def others(num_peers: int) -> jax.Array:
    """Return the indices of each agent's K - 1 peers: ``i32[K, K-1]``."""
    index = jnp.arange(num_peers)[:, None] + 1 + jnp.arange(num_peers - 1)[None]
    return (index % num_peers).astype(jnp.int32)


def update(
    agent: Agent,
    meta_params: Params,
    states: AgentState,
    rollouts: Rollout,
    key: jax.Array,
) -> tuple[AgentState, UpdateRecord]:
    """Update the K agents of a group on the rollouts that they collected.

    Args:
      agent: what they have in common.
      meta_params: the rule's parameters; differentiable.
      states: of the agents, leading axis K.
      rollouts: leading axis K; a trajectory is learned from by its owner, and by
        the others as far as the rule says.
      key: consumed.

    Returns:
      The agents after the update, and what it computed.
    """
    num_peers = states.env_steps.shape[0]
    batch = pool(rollouts)
    target_key, minibatch_key = jax.random.split(key)

    def forward(params: Params) -> Outputs:
        return _outputs(agent, params, batch.observations)

    # One forward pass of the online networks: the targets read these outputs, and
    # the loss is differentiated with respect to them.
    outputs, backward = jax.vjp(forward, states.params)
    experience = _experience(agent, states, batch, outputs)
    targets, rule_state, metrics = jax.vmap(
        agent.rule.targets, in_axes=(None, 0, 0, 0)
    )(
        meta_params,
        states.rule_state,
        experience,
        jax.random.split(target_key, num_peers),
    )
    spec = agent.spec
    if spec.epochs * spec.minibatches == 1:
        grad_outputs, loss_metrics = jax.grad(
            lambda heads: _group_loss(
                agent, _first_rows(heads), targets, experience.transitions
            ),
            has_aux=True,
        )(outputs)
        (grads,) = backward(grad_outputs)
        stepped, step_metrics = _step(agent, states, grads)
    else:
        stepped, loss_metrics, step_metrics = _minibatch_steps(
            agent, states, batch.observations, (targets, experience), minibatch_key
        )
    new_states = dataclasses.replace(
        stepped,
        target_params=jax.vmap(agent.follow)(states, stepped.params),
        rule_state=rule_state,
        env_steps=states.env_steps + batch.env_steps,
        agent_updates=states.agent_updates + 1,
    )
    metrics = {**metrics, **loss_metrics, **step_metrics}
    return new_states, UpdateRecord(experience, targets, metrics)


def _outputs(agent: Agent, params: Params, observations: jax.Array) -> Outputs:
    """Return all agents' outputs ``[K, T, B, ...]`` on observations ``[T, B, ...]``."""
    lead = observations.shape[:2]
    # The network is feed-forward, so time is more batch to it.
    flat = observations.reshape(-1, *observations.shape[2:])
    outputs = jax.vmap(agent.network.apply, in_axes=(0, None))(params, flat)
    return {k: x.reshape(x.shape[0], *lead, *x.shape[2:]) for k, x in outputs.items()}


def _first_rows(tree: Tree) -> Tree:
    """Drop the last of T + 1 rows, behind the axis K: what a loss may read."""
    return jax.tree.map(lambda x: x[:, :-1], tree)


def _experience(
    agent: Agent, states: AgentState, batch: Rollout, outputs: Outputs
) -> Experience:
    """Return what each of the K agents is told about the pooled batch."""
    num_peers = states.env_steps.shape[0]
    if agent.spec.target_network.kind == "none":
        target_outputs: Outputs = {}
    else:
        target_outputs = _outputs(agent, states.target_params, batch.observations)
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
    )


def _gather(outputs: Outputs, index: jax.Array) -> Outputs:
    """Return the peers' outputs ``[K, K-1, T, B, ...]``."""
    return {name: x[index] for name, x in outputs.items()}


def _group_loss(
    agent: Agent, outputs: Outputs, targets: Targets, transitions: Transitions
) -> tuple[jax.Array, Metrics]:
    """Return the sum of the K agents' losses, differentiated jointly.

    Each is normalised by its agent's own learning transitions, so that adding peers
    never dilutes the agent's own signal.

    Args:
      agent: what the agents have in common.
      outputs: fresh ones, ``[K, T, B, ...]``.
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


def _step(
    agent: Agent, states: AgentState, grads: Params
) -> tuple[AgentState, Metrics]:
    """Take one gradient step with every agent."""
    params, optimizer, metrics = jax.vmap(agent.gradient_step)(states, grads)
    return dataclasses.replace(states, params=params, optimizer=optimizer), metrics


def _minibatch_steps(
    agent: Agent,
    states: AgentState,
    observations: jax.Array,
    fixed: tuple[Targets, Experience],
    key: jax.Array,
) -> tuple[AgentState, Metrics, Metrics]:
    """Take `epochs * minibatches` steps on fresh outputs; metrics are means."""
    spec, (targets, experience) = agent.spec, fixed
    # The T + 1st observation has no transition; behind it, every array is [T, B].
    columns = (observations[:-1], targets, experience.transitions)
    axes = (1, 2, 2)
    if spec.minibatch_of == "transitions":
        columns = tuple(
            jax.tree.map(lambda x, a=axis: _flatten_time(x, a), column)
            for column, axis in zip(columns, axes, strict=True)
        )
    size, remainder = divmod(columns[0].shape[1], spec.minibatches)
    if remainder:
        raise ValueError(
            f"minibatches={spec.minibatches} must divide the batch's "
            f"{columns[0].shape[1]} {spec.minibatch_of}"
        )

    def step(states: AgentState, index: jax.Array) -> tuple[AgentState, Metrics]:
        obs, target, transitions = (
            jax.tree.map(lambda x, a=axis: jnp.take(x, index, axis=a), column)
            for column, axis in zip(columns, axes, strict=True)
        )

        def loss(params: Params) -> tuple[jax.Array, Metrics]:
            outputs = _outputs(agent, params, obs)
            return _group_loss(agent, outputs, target, transitions)

        grads, loss_metrics = jax.grad(loss, has_aux=True)(states.params)
        states, step_metrics = _step(agent, states, grads)
        return states, {**loss_metrics, **step_metrics}

    keys = jax.random.split(key, spec.epochs)
    orders = jax.vmap(lambda k: jax.random.permutation(k, columns[0].shape[1]))(keys)
    states, metrics = jax.lax.scan(
        step, states, orders.reshape(spec.epochs * spec.minibatches, size)
    )
    return states, jax.tree.map(lambda x: jnp.mean(x, axis=0), metrics), {}


def _flatten_time(x: jax.Array, batch_axis: int) -> jax.Array:
    """Return ``[..., T, B, ...]`` as ``[..., 1, T B, ...]``."""
    lead, rest = x.shape[: batch_axis - 1], x.shape[batch_axis + 1 :]
    return x.reshape(*lead, 1, -1, *rest)
