"""The meta-gradient in mixed mode: forward over reverse, not reverse over reverse.

Kemaev et al., "Scalable Meta-Learning via Mixed-Mode Differentiation" (ICML 2025). The
gradient of an agent's loss, g(θ, δ) = J(θ)ᵀ δ with J the network's Jacobian and δ the
loss's gradient for the outputs, is itself the derivative of a scalar. So what its
backward pass has to return for a cotangent v is a forward-mode derivative along v:

    for δ:  J(θ) v                 for θ:  d/dε J(θ + ε v)ᵀ δ

Right only because the Hessian is symmetric. All else in an update, the rule and Adam,
is differentiated in reverse, once. Pure; must not import rollout or envs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp

from metarl.agents import group
from metarl.agents import lesson as lessons
from metarl.agents.agent import AgentState
from metarl.agents.batch import Batch, show
from metarl.agents.outputs import Seen, evaluate, evaluate_target
from metarl.meta.estimators import ExactEstimator
from metarl.meta.inner_loop import StepLog, Unrolled, Window, choose
from metarl.meta.linear_maps import Linear, floats, open_heads, vjp_of, with_floats
from metarl.meta.objective import ValueState
from metarl.rules.base import Metrics
from metarl.types import Outputs, Params, Rollout, pytree

Tree = TypeVar("Tree")


@pytree
class _Saved:
    """What the forward pass leaves of one update for the backward pass."""

    agents: AgentState  # [K] before it
    grads: Params  # [K] of its gradient step
    lesson: tuple[Seen, Linear] | None  # see `_update`; None: to be computed again


@pytree
class _Tape:
    """One update of a group, ready to be gone back through.

    Each field is linear, and remembers what it needs of the update.
    """

    along: Linear  # parameters -> what the loss reads
    mixed: Linear  # parameters, gradient for what the loss reads -> parameters
    outputs_back: Linear  # open outputs -> parameters
    target_back: Linear  # open target outputs -> target parameters
    lesson_back: Linear  # gradient, rule state, regularisers -> what the lesson reads
    step_back: Linear  # agents after -> agents before, gradient


@pytree
class _Cotangents:
    """The outer loss's gradient for the agents between two updates, all ``[K]``."""

    params: Params
    target_params: Params
    momentum: Params  # Adam's first moment; none goes through the second
    rule_state: list[jax.Array]  # its leaves of floating point


@dataclasses.dataclass(frozen=True)
class MixedMode(ExactEstimator):
    """Mixed-mode differentiation of the unrolled updates.

    Equal to `ReverseMode` but for rounding, and for rules that take one gradient step
    per batch only. With the inner loop's `remat` the backward pass computes each update
    anew, and memory grows with N only by the agents' states and gradients; without,
    what the rule computed in each update is kept as well.
    """

    def of_group(
        self, meta_params: Params, window: Window
    ) -> tuple[Params, ValueState, Metrics]:
        """Return the gradient of one group, its value functions and metrics."""
        loop = self.inner_loop

        def forward(
            before: Unrolled, inputs: tuple[Any, Any, Any]
        ) -> tuple[Unrolled, tuple[StepLog, _Saved]]:
            given, valid, index = inputs
            agents, record, lesson = self._update(meta_params, before.agents, *given)
            values, log = loop.log(before.values, given[0], record)
            saved = _Saved(before.agents, record.grads, None if loop.remat else lesson)
            return loop.advance(before, (agents, values), valid, index), (log, saved)

        steps = loop.steps_of(window)
        end, (log, saved) = jax.lax.scan(forward, loop.begin(window), steps)

        def judge(params: Params, regularizers: Metrics) -> tuple[jax.Array, Metrics]:
            agents = dataclasses.replace(end.agents, params=params)
            return loop.judge(
                dataclasses.replace(end, agents=agents),
                dataclasses.replace(log, regularizers=regularizers),
                window.validation,
                window.valid,
            )

        loss, judge_back, metrics = jax.vjp(
            judge, end.agents.params, log.regularizers, has_aux=True
        )
        cot_params, cot_regularizers = judge_back(jnp.ones_like(loss))
        agents = end.agents
        rest = (agents.target_params, agents.optimizer.mu, floats(agents.rule_state))
        after = _Cotangents(cot_params, *jax.tree.map(jnp.zeros_like, rest))

        def back(
            carry: tuple[_Cotangents, Params],
            inputs: tuple[_Saved, Any, Metrics, jax.Array],
        ) -> tuple[tuple[_Cotangents, Params], None]:
            after, total = carry
            saved, (given, valid, _), cot_regularizers, index = inputs
            tape = self._tape(meta_params, saved, *given)
            before, grads = self._back(tape, after, cot_regularizers, index)
            more = jax.tree.map(jnp.add, total, grads)
            # What was passed over is so on the way back too.
            return choose(valid, (before, more), (after, total)), None

        index = jnp.arange(window.keys.shape[0], dtype=jnp.int32)
        zeros = jax.tree.map(jnp.zeros_like, meta_params)
        (_, grads), _ = jax.lax.scan(
            back, (after, zeros), (saved, steps, cot_regularizers, index), reverse=True
        )
        return grads, loop.values_of(end), metrics

    def _update(
        self, meta_params: Params, agents: AgentState, rollouts: Rollout, key: jax.Array
    ) -> tuple[AgentState, group.UpdateRecord, tuple[Seen, Linear]]:
        """Do what `group.update` does.

        Returns:
          The agents after it; its record; and of the lesson in it the gradient for
          what the loss reads, with the way back through the lesson.
        """
        batch = self._shown(agents, rollouts)

        def study(
            outputs: Seen, target_outputs: Outputs, read: Seen
        ) -> tuple[Seen, lessons.Lesson, Metrics, tuple[Seen, Linear]]:
            (gradient, *_), back, (lesson, metrics) = jax.vjp(
                self._lesson_of(agents, batch, key),
                meta_params,
                floats(agents.rule_state),
                outputs,
                target_outputs,
                read,
                has_aux=True,
            )
            return gradient, lesson, metrics, (gradient, back)

        return group.take_one_step(self.inner_loop.agent, agents, batch, study)

    def _tape(
        self, meta_params: Params, saved: _Saved, rollouts: Rollout, key: jax.Array
    ) -> _Tape:
        """Compute an update again, as far as going back through it needs that."""
        agent, agents = self.inner_loop.agent, saved.agents
        batch = self._shown(agents, rollouts)

        def outputs_of(params: Params) -> Seen:
            return evaluate(agent, params, batch.rows)[0]

        def read_of(params: Params) -> Seen:
            return evaluate(agent, params, batch.rows, constant=agents.params)[1]

        def target_outputs_of(params: Params) -> Outputs:
            return evaluate_target(agent, params, batch.rows)

        def inner_gradient(params: Params, gradient: Seen) -> Params:
            (grads,) = jax.vjp(read_of, params)[1](gradient)
            return cast(Params, grads)

        lesson = self._lesson_of(agents, batch, key)
        read, along = jax.linearize(read_of, agents.params)
        arguments = (
            meta_params,
            floats(agents.rule_state),
            outputs_of(agents.params),
            target_outputs_of(agents.target_params),
            read,
        )
        own_open, target_open = open_heads(lesson, arguments)
        if saved.lesson is None:
            (gradient, *_), lesson_back, _ = jax.vjp(lesson, *arguments, has_aux=True)
        else:
            gradient, lesson_back = saved.lesson
        _, mixed = jax.linearize(inner_gradient, agents.params, gradient)
        return _Tape(
            along=along,
            mixed=mixed,
            outputs_back=vjp_of(outputs_of, own_open, agents.params),
            target_back=vjp_of(target_outputs_of, target_open, agents.target_params),
            lesson_back=lesson_back,
            step_back=self._step_back(agents, saved.grads),
        )

    def _shown(self, agents: AgentState, rollouts: Rollout) -> Batch:
        """Return the batch that rollouts make for the agents of a group."""
        return show(self.inner_loop.agent.spec.reads, agents.params, rollouts)

    def _lesson_of(
        self, agents: AgentState, batch: Batch, key: jax.Array
    ) -> Callable[..., Any]:
        """Return the part of an update between the network's outputs and its gradient.

        A function of the meta-parameters, the rule state's floats, outputs, target
        outputs, and what the loss reads; of it the gradient for the latter, the new
        rule state's floats and the regularisers, and beside them lesson and metrics.
        """
        agent = self.inner_loop.agent

        def lesson_of(
            meta_params: Params,
            rule_state: list[jax.Array],
            outputs: Seen,
            target_outputs: Outputs,
            read: Seen,
        ) -> tuple[
            tuple[Seen, list[jax.Array], Metrics], tuple[lessons.Lesson, Metrics]
        ]:
            states = dataclasses.replace(
                agents, rule_state=with_floats(agents.rule_state, rule_state)
            )
            lesson = lessons.teach(
                agent, meta_params, states, (outputs, target_outputs), batch, key
            )
            gradient, metrics = lessons.loss_gradient(agent, read, *lesson.judged)
            regularizers = jax.vmap(agent.rule.regularizers)(
                lesson.targets, lesson.experience
            )
            result = (gradient, floats(lesson.rule_state), regularizers)
            return result, (lesson, metrics)

        # What is cheap to compute again is not saved, nor read back.
        return jax.checkpoint(
            lesson_of, policy=jax.checkpoint_policies.dots_saveable, prevent_cse=False
        )

    def _step_back(self, agents: AgentState, grads: Params) -> Linear:
        """Return the way back through the step and the target network's following."""
        agent = self.inner_loop.agent

        def step(
            params: Params, target_params: Params, momentum: Params, grads: Params
        ) -> tuple[Params, Params, Params]:
            states = dataclasses.replace(
                agents,
                params=params,
                target_params=target_params,
                optimizer=dataclasses.replace(agents.optimizer, mu=momentum),
            )
            params, optimizer, _ = lessons.step(agent, states, grads)
            target_params = jax.vmap(agent.follow)(states, params)
            return params, target_params, optimizer.mu

        before = (agents.params, agents.target_params, agents.optimizer.mu, grads)
        _, back = jax.vjp(step, *before)
        return back

    def _back(
        self,
        tape: _Tape,
        after: _Cotangents,
        cot_regularizers: Metrics,
        index: jax.Array,
    ) -> tuple[_Cotangents, Params]:
        """Return the gradients for the agents before an update, and for the rule.

        Args:
          tape: of the update.
          after: gradients for the agents after it.
          cot_regularizers: gradient for the update's regularisers.
          index: i32[] of the update, 0 the first.
        """
        params, target_params, momentum, direction = tape.step_back(
            (after.params, after.target_params, after.momentum)
        )
        grads, rule_state, outputs, target_outputs, read = tape.lesson_back(
            (tape.along(direction), after.rule_state, cot_regularizers)
        )

        def through_network() -> Params:
            mixed = tape.mixed(direction, read)
            return jax.tree.map(jnp.add, mixed, tape.outputs_back(outputs))

        # Agents before the first update do not depend on the rule, and by how a
        # target network follows it lags one update behind.
        kind = self.inner_loop.agent.spec.target_network.kind
        params = _add_if(index >= 1, params, through_network)
        target_params = _add_if(
            index >= (2 if kind == "ema" else 1),
            target_params,
            lambda: tape.target_back(target_outputs),
        )
        return _Cotangents(params, target_params, momentum, rule_state), grads


def _add_if(condition: jax.Array, tree: Tree, more: Callable[[], Tree]) -> Tree:
    """Return ``tree + more()``, of which the latter is only computed where due."""
    return jax.lax.cond(
        condition, lambda: jax.tree.map(jnp.add, tree, more()), lambda: tree
    )
