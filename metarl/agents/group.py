"""Agents of one game that learn together: the update of a group of K peers.

Every peer evaluates the pooled batch of the group; the other agents' outputs are a
gather along the agent axis. A single agent is a group of one, by the same code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

from metarl.agents.agent import Agent, AgentState
from metarl.agents.lesson import (
    Lesson,
    evaluate,
    evaluate_rows,
    evaluate_target,
    group_loss,
    loss_gradient,
    step,
    teach,
)
from metarl.errors import UserError
from metarl.rules.base import Metrics, RuleSpec, Targets
from metarl.types import Experience, Outputs, Params, Rollout, pytree

Tree = TypeVar("Tree")
Notes = TypeVar("Notes")


@pytree
class UpdateRecord:
    """What one update of a group computed on its way; every leaf has axis K."""

    experience: Experience
    targets: Targets
    grads: Params  # of the loss; empty after several gradient steps
    metrics: Metrics


def pool(rollouts: Rollout) -> Rollout:
    """Join the peers' rollouts ``[K, T, B, ...]`` to one batch ``[T, K B, ...]``.

    Trajectory ``k B + b`` is the b-th of peer k. Scores stay one per peer.
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
        score=rollouts.score,
    )


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
    batch = pool(rollouts)
    if takes_one_step(agent.spec):

        def study(
            outputs: Outputs, target_outputs: Outputs, read: Outputs
        ) -> tuple[Outputs, Lesson, Metrics, None]:
            both = (outputs, target_outputs)
            lesson = teach(agent, meta_params, states, both, batch, key)
            gradient, metrics = loss_gradient(agent, read, lesson)
            return gradient, lesson, metrics, None

        after, record, _ = take_one_step(agent, states, batch, study)
        return after, record
    outputs, _ = evaluate(agent, states.params, batch)
    target_outputs = evaluate_target(agent, states.target_params, batch)
    lesson = teach(agent, meta_params, states, (outputs, target_outputs), batch, key)
    stepped, metrics = _minibatch_steps(agent, states, batch.observations, lesson, key)
    metrics = {**lesson.metrics, **metrics}
    record = UpdateRecord(lesson.experience, lesson.targets, {}, metrics)
    return _grown(agent, states, stepped, lesson, batch), record


def take_one_step(
    agent: Agent,
    states: AgentState,
    batch: Rollout,
    study: Callable[
        [Outputs, Outputs, Outputs], tuple[Outputs, Lesson, Metrics, Notes]
    ],
) -> tuple[AgentState, UpdateRecord, Notes]:
    """Update a group by one gradient step on the whole batch.

    Args:
      agent: what the agents have in common.
      states: of the agents, leading axis K.
      batch: pooled.
      study: of outputs, target outputs and what the loss reads: the loss's gradient
        for the latter, the lesson, the loss's metrics, and any notes of its own.

    Returns:
      The agents after the update, what it computed, and the notes.
    """

    def forward(params: Params) -> tuple[Outputs, Outputs]:
        outputs, read = evaluate(agent, params, batch)
        return read, outputs

    # One forward pass of the online networks: the targets read these outputs, and
    # the loss is differentiated with respect to what it reads of them.
    read, backward, outputs = jax.vjp(forward, states.params, has_aux=True)
    target_outputs = evaluate_target(agent, states.target_params, batch)
    gradient, lesson, loss_metrics, notes = study(outputs, target_outputs, read)
    (grads,) = backward(gradient)
    params, optimizer, step_metrics = step(agent, states, grads)
    stepped = dataclasses.replace(states, params=params, optimizer=optimizer)
    metrics = {**lesson.metrics, **loss_metrics, **step_metrics}
    record = UpdateRecord(lesson.experience, lesson.targets, grads, metrics)
    return _grown(agent, states, stepped, lesson, batch), record, notes


def takes_one_step(spec: RuleSpec) -> bool:
    """Return whether an update is one gradient step on the whole batch."""
    return spec.epochs * spec.minibatches == 1


def _grown(
    agent: Agent,
    before: AgentState,
    stepped: AgentState,
    lesson: Lesson,
    batch: Rollout,
) -> AgentState:
    """Return the agents after an update, of those that took its gradient steps."""
    return dataclasses.replace(
        stepped,
        target_params=jax.vmap(agent.follow)(before, stepped.params),
        rule_state=lesson.rule_state,
        env_steps=before.env_steps + batch.env_steps,
        agent_updates=before.agent_updates + 1,
    )


def _minibatch_steps(
    agent: Agent,
    states: AgentState,
    observations: jax.Array,
    lesson: Lesson,
    key: jax.Array,
) -> tuple[AgentState, Metrics]:
    """Take `epochs * minibatches` steps on fresh outputs; metrics are means."""
    spec = agent.spec
    # The T + 1st observation has no transition; behind it, every array is [T, B].
    columns = (observations[:-1], lesson.targets, lesson.experience.transitions)
    axes = (1, 2, 2)
    if spec.minibatch_of == "transitions":
        columns = tuple(
            jax.tree.map(lambda x, a=axis: _flatten_time(x, a), column)
            for column, axis in zip(columns, axes, strict=True)
        )
    size, remainder = divmod(columns[0].shape[1], spec.minibatches)
    if remainder:
        raise UserError(
            f"minibatches={spec.minibatches} must divide the batch's "
            f"{columns[0].shape[1]} {spec.minibatch_of}; change rollout_length or "
            "environment.num_envs"
        )

    def one(states: AgentState, index: jax.Array) -> tuple[AgentState, Metrics]:
        obs, target, transitions = (
            jax.tree.map(lambda x, a=axis: jnp.take(x, index, axis=a), column)
            for column, axis in zip(columns, axes, strict=True)
        )

        def loss(params: Params) -> tuple[jax.Array, Metrics]:
            # The actions are the same for every agent.
            _, read = evaluate_rows(agent, params, obs, transitions.actions[0])
            return group_loss(agent, read, target, transitions)

        grads, loss_metrics = jax.grad(loss, has_aux=True)(states.params)
        params, optimizer, step_metrics = step(agent, states, grads)
        states = dataclasses.replace(states, params=params, optimizer=optimizer)
        return states, {**loss_metrics, **step_metrics}

    _, minibatch_key = jax.random.split(key)
    keys = jax.random.split(minibatch_key, spec.epochs)
    orders = jax.vmap(lambda k: jax.random.permutation(k, columns[0].shape[1]))(keys)
    states, metrics = jax.lax.scan(
        one, states, orders.reshape(spec.epochs * spec.minibatches, size)
    )
    return states, jax.tree.map(lambda x: jnp.mean(x, axis=0), metrics)


def _flatten_time(x: jax.Array, batch_axis: int) -> jax.Array:
    """Return ``[..., T, B, ...]`` as ``[..., 1, T B, ...]``."""
    lead, rest = x.shape[: batch_axis - 1], x.shape[batch_axis + 1 :]
    return x.reshape(*lead, 1, -1, *rest)
