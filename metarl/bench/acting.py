"""Prepare what acting is made of: stepping, the forward pass, and both together.

Host code. Imports JAX inside functions: stepping alone is measured without it.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import envpool
import numpy as np

from metarl.bench.cache import preparing
from metarl.bench.measure import Compiled, Prepare, Subject, Value
from metarl.config import BenchConfig
from metarl.envs.pool import Pool
from metarl.envs.pools import make_pools, pool_seed
from metarl.envs.tasks import Task, envpool_options, resolve_environment

KEYS = 64
"""PRNG keys that acting takes in turn, made beforehand."""


def env(config: BenchConfig) -> contextlib.AbstractContextManager[Subject]:
    """EnvPool alone: all pools step at the same time, with constant actions."""
    pools = [
        envpool.make(
            pool.task.game.task_id,
            env_type="gymnasium",
            num_envs=pool.num_envs,
            batch_size=pool.num_envs,
            num_threads=min(pool.num_threads, pool.num_envs),
            seed=pool.seed,
            **envpool_options(pool.task, config.environment),
        )
        for pool in _pools(config)
    ]
    return _stepping(config, pools)


def env_pool(config: BenchConfig) -> contextlib.AbstractContextManager[Subject]:
    """The same through the adapter, which makes transitions of it."""
    return _stepping(config, _pools(config))


@contextlib.contextmanager
def act(config: BenchConfig) -> Iterator[Subject]:
    """A population acts: rollouts on the device, by the actor of `metarl train`."""
    import jax

    from metarl.bench import parts as bench_parts

    parts = bench_parts.build(config)
    length = config.population.rollout_length
    actor = bench_parts.new_actor(parts)
    with preparing(config):
        keys = itertools.cycle(list(jax.random.split(jax.random.key(0), KEYS)))

    def collect() -> None:
        actor.collect(parts.population.agents, length, next(keys))
        actor.drain_episodes()

    try:
        actor.start()
        yield _acting(config, collect, facts=parts.facts())
    finally:
        actor.close()


@contextlib.contextmanager
def forward(config: BenchConfig) -> Iterator[Subject]:
    """The forward pass and sampling of all agents, in chunks like the actor's."""
    import jax

    from metarl.agents.agent import AgentState
    from metarl.bench import parts as bench_parts
    from metarl.bench import synthetic
    from metarl.bench.parts import compile_program
    from metarl.rollout.actor import split_groups

    parts = bench_parts.build(config)
    agent, groups = parts.experiment.agent, parts.groups
    length, size = config.population.rollout_length, config.population.chunk
    sizes = (size,) * (groups // size) + (groups % size,) * (groups % size > 0)
    with preparing(config):
        seen = synthetic.rollouts(
            jax.random.key(1),
            parts.experiment.pool_spec,
            lead=(groups, 1),
            steps=length - 1,
            batch=config.environment.num_envs,
        ).observations
        all_keys = jax.random.split(jax.random.key(2), (groups, 1))
        chunks = split_groups((parts.population.agents, all_keys), sizes)
        frames = [split_groups(seen[:, :, t], sizes) for t in range(length)]

    @jax.jit
    def sample(
        agents: AgentState, observations: jax.Array, keys: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        return jax.vmap(jax.vmap(agent.act))(agents, observations, keys)

    programs: dict[int, Any] = {}
    times: list[Compiled] = []
    for size, chunk, observations in zip(sizes, chunks, frames[0], strict=True):
        if size not in programs:  # the last chunk may be smaller
            states, keys = chunk
            programs[size], took = compile_program(sample, states, observations, keys)
            times.append(took)

    def steps() -> None:
        for seen in frames:
            jax.block_until_ready(
                [
                    programs[size](states, observations, keys)
                    for size, (states, keys), observations in zip(
                        sizes, chunks, seen, strict=True
                    )
                ]
            )

    compiled = Compiled(sum(x.trace_s for x in times), sum(x.xla_s for x in times))
    yield _acting(config, steps, compiled=compiled, facts=parts.facts())


CASES: dict[str, Prepare] = {
    "env": env,
    "env-pool": env_pool,
    "act": act,
    "forward": forward,
}


def _tasks(config: BenchConfig) -> tuple[Task, ...]:
    """Return a task per agent, as a run has them."""
    games = resolve_environment(config.environment)
    count = config.population.num_agents or len(games)
    return tuple(games[i % len(games)] for i in range(count))


def _pools(config: BenchConfig) -> tuple[Pool, ...]:
    """Return the pools of a run, not built yet: for their threads and seeds too."""
    tasks = _tasks(config)
    seeds = [pool_seed(config.seed, i, 0, 0) for i in range(len(tasks))]
    return make_pools(tasks, config.environment, seeds=seeds)


@contextlib.contextmanager
def _stepping(config: BenchConfig, pools: Sequence[Any]) -> Iterator[Subject]:
    """Step ``pools``, EnvPool's or ours, which have the same methods."""
    tasks, actions = _tasks(config), np.zeros(config.environment.num_envs, np.int32)
    for pool in pools:
        pool.reset()

    def steps() -> None:
        for _ in range(config.population.rollout_length):
            for pool in pools:
                pool.send(actions)
            for pool in pools:
                pool.recv()

    facts: dict[str, Value] = {
        "games": ",".join(dict.fromkeys(task.game.task_id for task in tasks)),
        "agents": len(tasks),
        "num_envs": config.environment.num_envs,
    }
    try:
        yield _acting(config, steps, compiles=False, facts=facts)
    finally:
        for pool in pools:
            pool.close()


def _acting(
    config: BenchConfig,
    call: Callable[[], object],
    *,
    facts: dict[str, Value],
    compiled: Compiled | None = None,
    compiles: bool = True,
) -> Subject:
    return Subject(
        call,
        env_steps=len(_tasks(config)) * config.environment.num_envs,
        steps=config.population.rollout_length,
        compiled=compiled,
        compiles=compiles,
        facts={**facts, "num_threads": config.environment.num_threads},
    )
