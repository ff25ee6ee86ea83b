"""Agents of one game that learn together: the update of a group of K peers.

Every peer is evaluated on what `RuleSpec.reads` asks for, and on nothing else. A single
agent is a group of one, by the same code.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

from metarl.agents.agent import Agent, AgentState
from metarl.agents.batch import Batch, Rows, minibatch, show
from metarl.agents.lesson import Lesson, loss_gradient, step, teach
from metarl.agents.outputs import Seen, evaluate, evaluate_target
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
    batch = show(agent.spec.reads, states.params, rollouts)
    if takes_one_step(agent.spec):

        def study(
            outputs: Seen, target_outputs: Outputs, read: Seen
        ) -> tuple[Seen, Lesson, Metrics, None]:
            both = (outputs, target_outputs)
            lesson = teach(agent, meta_params, states, both, batch, key)
            gradient, metrics = loss_gradient(agent, read, *lesson.judged)
            return gradient, lesson, metrics, None

        after, record, _ = take_one_step(agent, states, batch, study)
        return after, record
    outputs, _ = evaluate(agent, states.params, batch.rows)
    target_outputs = evaluate_target(agent, states.target_params, batch.rows)
    lesson = teach(agent, meta_params, states, (outputs, target_outputs), batch, key)
    stepped, metrics = _minibatch_steps(agent, states, batch.rows, lesson, key)
    metrics = {**lesson.metrics, **metrics}
    record = UpdateRecord(lesson.experience, lesson.targets, {}, metrics)
    return _grown(agent, states, stepped, lesson, batch), record


def take_one_step(
    agent: Agent,
    states: AgentState,
    batch: Batch,
    study: Callable[[Seen, Outputs, Seen], tuple[Seen, Lesson, Metrics, Notes]],
) -> tuple[AgentState, UpdateRecord, Notes]:
    """Update a group by one gradient step on the whole batch.

    Args:
      agent: what the agents have in common.
      states: of the agents, leading axis K.
      batch: that they are shown.
      study: of outputs, target outputs and what the loss reads: the loss's gradient
        for the latter, the lesson, the loss's metrics, and any notes of its own.

    Returns:
      The agents after the update, what it computed, and the notes.
    """

    def forward(params: Params) -> tuple[Seen, Seen]:
        outputs, read = evaluate(agent, params, batch.rows, constant=states.params)
        return read, outputs

    # One forward pass of the online networks: the targets read these outputs, and
    # the loss is differentiated with respect to what it reads of them.
    read, backward, outputs = jax.vjp(forward, states.params, has_aux=True)
    target_outputs = evaluate_target(agent, states.target_params, batch.rows)
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


def num_owners(spec: RuleSpec, num_agents: int) -> int:
    """Return how many agents' trajectories the columns are that an agent is shown."""
    return num_agents if spec.reads == "pool" else 1


def _grown(
    agent: Agent,
    before: AgentState,
    stepped: AgentState,
    lesson: Lesson,
    batch: Batch,
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
    agent: Agent, states: AgentState, rows: Rows, lesson: Lesson, key: jax.Array
) -> tuple[AgentState, Metrics]:
    """Take `epochs * minibatches` steps on fresh outputs; metrics are means.

    Each minibatch is of the same trajectories, or transitions, of every peer, so that
    what an agent learns from its own does not depend on its peers.
    """
    spec, (num_agents, steps, batch) = agent.spec, rows.actions.shape
    # The T + 1st observation has no transition.
    rows = jax.tree.map(lambda x: x[:, :steps], rows)
    targets, transitions, present = lesson.judged
    owners = num_owners(spec, num_agents)
    count = batch * (steps if spec.minibatch_of == "transitions" else 1)
    size, remainder = divmod(count, spec.minibatches)
    if remainder:
        raise UserError(
            f"minibatches={spec.minibatches} must divide the batch's "
            f"{count} {spec.minibatch_of}; change rollout_length or "
            "environment.num_envs"
        )

    def one(states: AgentState, index: jax.Array) -> tuple[AgentState, Metrics]:
        part = functools.partial(minibatch, index=index, of=spec.minibatch_of)
        some, taught = part(rows), part((targets, transitions), owners=owners)

        def forward(params: Params) -> Seen:
            return evaluate(agent, params, some, constant=states.params)[1]

        read, backward = jax.vjp(forward, states.params)
        gradient, loss_metrics = loss_gradient(agent, read, *taught, present)
        (grads,) = backward(gradient)
        params, optimizer, step_metrics = step(agent, states, grads)
        states = dataclasses.replace(states, params=params, optimizer=optimizer)
        return states, {**loss_metrics, **step_metrics}

    _, minibatch_key = jax.random.split(key)
    keys = jax.random.split(minibatch_key, spec.epochs)
    orders = jax.vmap(lambda k: jax.random.permutation(k, count))(keys)
    states, metrics = jax.lax.scan(
        one, states, orders.reshape(spec.epochs * spec.minibatches, size)
    )
    return states, jax.tree.map(lambda x: jnp.mean(x, axis=0), metrics)
