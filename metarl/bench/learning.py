"""Prepare updates and meta-gradients, on experience that is given."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from metarl.agents import group, population
from metarl.agents.agent import AgentState
from metarl.bench import parts as bench_parts
from metarl.bench.cache import preparing
from metarl.bench.measure import Compiled, Prepare, Subject
from metarl.bench.parts import Parts, compile_program
from metarl.config import BenchConfig
from metarl.meta import trainer
from metarl.meta.inner_loop import Window
from metarl.rules.base import Metrics
from metarl.types import Params, Rollout

# --- Agent updates ----------------------------------------------------------------


@contextlib.contextmanager
def agent_update(config: BenchConfig) -> Iterator[Subject]:
    """One update of all agents, in one program."""
    parts = bench_parts.build(config)
    agent = parts.experiment.agent

    @partial(jax.jit, donate_argnums=1)
    def update(
        meta_params: Params, agents: AgentState, rollouts: Rollout, keys: jax.Array
    ) -> tuple[AgentState, Metrics]:
        return population.update(
            agent, meta_params, agents, rollouts, keys, chunk=config.population.chunk
        )

    rollouts, keys = bench_parts.update_inputs(parts)
    agents, meta_params = parts.population.agents, parts.meta.params
    program, compiled = compile_program(update, meta_params, agents, rollouts, keys)

    def call() -> AgentState:
        nonlocal agents
        agents, _ = jax.block_until_ready(program(meta_params, agents, rollouts, keys))
        return agents

    yield _update_subject(parts, call, compiled, program)


@contextlib.contextmanager
def agent_update_loop(config: BenchConfig) -> Iterator[Subject]:
    """The same agents in a Python loop: one program of one group, called G times."""
    parts = bench_parts.build(config)
    agent = parts.experiment.agent

    @partial(jax.jit, donate_argnums=1)
    def update(
        meta_params: Params, agents: AgentState, rollouts: Rollout, key: jax.Array
    ) -> tuple[AgentState, Metrics]:
        agents, record = group.update(agent, meta_params, agents, rollouts, key)
        return agents, record.metrics

    meta_params = parts.meta.params
    inputs = bench_parts.update_inputs(parts)
    with preparing(config):
        states = bench_parts.unstack(parts.population.agents, parts.groups)
        each = bench_parts.unstack(inputs, parts.groups)
    program, compiled = compile_program(update, meta_params, states[0], *each[0])

    def call() -> list[AgentState]:
        for i, (rollout, key) in enumerate(each):
            states[i], _ = program(meta_params, states[i], rollout, key)
        return jax.block_until_ready(states)

    yield _update_subject(parts, call, compiled, program)


# --- Meta-steps -------------------------------------------------------------------


@contextlib.contextmanager
def meta_step(config: BenchConfig) -> Iterator[Subject]:
    """The meta-gradient of the population and the meta-update, without acting."""
    parts = bench_parts.build(config, meta_trains=True)
    yield _meta_subject(parts, [bench_parts.window(parts)])


@contextlib.contextmanager
def meta_step_plain(config: BenchConfig) -> Iterator[Subject]:
    """Reverse mode that keeps all it computes for its backward pass."""
    meta = config.meta.model_copy(update={"estimator": "reverse", "remat": False})
    with meta_step(config.model_copy(update={"meta": meta})) as subject:
        yield subject


@contextlib.contextmanager
def meta_step_loop(config: BenchConfig) -> Iterator[Subject]:
    """The agents in a Python loop: the gradient of one group, G times."""
    parts = bench_parts.build(config, meta_trains=True)
    together = bench_parts.window(parts)
    with preparing(config):
        windows = [
            jax.tree.map(lambda x: x[None], window)
            for window in bench_parts.unstack(together, parts.groups)
        ]
    del together  # its arrays are in the windows
    yield _meta_subject(parts, windows)


def _meta_subject(parts: Parts, windows: list[Window]) -> Subject:
    """Return a meta-step: a gradient per window, and the meta-update.

    Args:
      parts: of the run.
      windows: ``[G', ...]`` of equal shapes, of all groups together.
    """
    meta, optimizer = parts.meta, parts.config.meta.optimizer
    gradient, compiled = compile_program(
        jax.jit(parts.experiment.estimator.gradient), meta.params, windows[0]
    )

    @partial(jax.jit, donate_argnums=0)  # as in training
    def update(
        state: trainer.MetaState, grads: list[Params]
    ) -> tuple[trainer.MetaState, Metrics]:
        joined = jax.tree.map(lambda *x: jnp.concatenate(x), *grads)
        return trainer.update(optimizer, state, joined)

    update_program, small = compile_program(
        update, meta, [gradient.out_info[0]] * len(windows)
    )

    def call() -> trainer.MetaState:
        nonlocal meta
        results = [gradient(meta.params, window) for window in windows]
        meta, _ = update_program(meta, [grads for grads, *_ in results])
        jax.block_until_ready((meta, results))
        return meta

    config = parts.config
    length = config.population.rollout_length
    # Of those that a window shares with others, no step is new.
    rollouts = config.meta.acted_updates + config.meta.validation_rollouts
    return Subject(
        call,
        env_steps=parts.groups * config.environment.num_envs * length * rollouts,
        compiled=Compiled(
            compiled.trace_s + small.trace_s, compiled.xla_s + small.xla_s
        ),
        facts={
            **parts.facts(),
            "inner_updates": config.meta.inner_updates,
            "validation_rollouts": config.meta.validation_rollouts,
            "estimator": config.meta.estimator,
            "remat": config.meta.remat,
            "rollouts": config.bench.rollouts,
            **bench_parts.program_memory(gradient),
        },
    )


def _update_subject(
    parts: Parts, call: Callable[[], object], compiled: Compiled, program: Any
) -> Subject:
    config = parts.config
    length, num_envs = config.population.rollout_length, config.environment.num_envs
    return Subject(
        call,
        env_steps=parts.groups * num_envs * length,
        compiled=compiled,
        facts={
            **parts.facts(),
            "rollouts": config.bench.rollouts,
            **bench_parts.program_memory(program),
        },
    )


CASES: dict[str, Prepare] = {
    "agent-update": agent_update,
    "agent-update-loop": agent_update_loop,
    "meta-step": meta_step,
    "meta-step-plain": meta_step_plain,
    "meta-step-loop": meta_step_loop,
}
