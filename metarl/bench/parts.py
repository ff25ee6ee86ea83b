"""What a case is made of: agents and rule as a run has them, and experience.

The static parts are those of `experiment.py`, so that what is measured is what
`metarl train` runs.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from metarl import experiment as experiments
from metarl.bench import synthetic
from metarl.bench.cache import preparing
from metarl.bench.measure import Compiled, Value
from metarl.config import BenchConfig, TrainConfig
from metarl.errors import UserError
from metarl.experiment import Stack
from metarl.meta import trainer
from metarl.meta.estimators import Population
from metarl.meta.inner_loop import Window
from metarl.rollout.actor import Actor
from metarl.rollout.batches import ReplayedBatches, batch_size
from metarl.run_folder import load_parent
from metarl.runtime import release_memory
from metarl.types import Params, Rollout

Tree = TypeVar("Tree")


@dataclasses.dataclass(frozen=True)
class Parts:
    """A run before its first meta-step."""

    config: BenchConfig
    experiment: Stack
    meta: trainer.MetaState
    population: Population

    @property
    def groups(self) -> int:
        """How many groups there are, G."""
        return len(self.experiment.tasks)

    def facts(self) -> dict[str, Value]:
        """Return what the figures depend on."""
        config = self.config
        return {
            "games": ",".join(self.experiment.games),
            "agents": self.groups,
            "parameters": count(self.population.agents.params) // self.groups,
            "meta_parameters": count(self.meta.params),
            "num_envs": config.environment.num_envs,
            "trajectories": trajectories(config),
            "rollout_length": config.population.rollout_length,
            "chunk": config.population.chunk,
        }


def build(config: BenchConfig, *, meta_trains: bool = False) -> Parts:
    """Return the parts that ``config`` describes, with newborn agents.

    Args:
      config: of the run.
      meta_trains: whether the rule is to be differentiated; agents act and are updated
        by hand-written rules too.

    Raises:
      UserError: they do not fit together.
    """
    if meta_trains:
        refuse_evolution(config)
    make = experiments.build if meta_trains else experiments.assemble
    experiment = make(config)
    with preparing(config):
        params = (
            experiments.initial_meta_params(experiment, config)
            if config.initial_rule is None
            else jax.device_put(load_parent(config.initial_rule, config).meta_params)
        )
        meta = experiments.initial_meta(experiment, params)
        population = experiments.first_population(experiment.only, config.seed)
        jax.block_until_ready((meta, population))
    return Parts(config, experiment.only, meta, population)


def refuse_evolution(config: BenchConfig) -> None:
    """Refuse estimators whose meta-steps are lives of unknown length.

    Raises:
      UserError: it is one of them.
    """
    if config.meta.evolves:
        raise UserError(
            f"meta.estimator={config.meta.estimator}: its meta-steps are not measured "
            "(allowed here: mixed, reverse; charts/SPS of a run says how fast it is)"
        )


def trajectories(config: TrainConfig) -> int:
    """Return how many trajectories an update learns from, replayed ones included."""
    return batch_size(config.population.replay, num_envs=config.environment.num_envs)


def compile_program(function: Any, *inputs: Any) -> tuple[Any, Compiled]:
    """Return a jitted function compiled for ``inputs``, and how long that took."""
    start = time.perf_counter()
    lowered = function.lower(*inputs)
    traced = time.perf_counter()
    program = lowered.compile()
    compiled = Compiled(traced - start, time.perf_counter() - traced)
    release_memory()
    return program, compiled


def program_memory(program: Any) -> dict[str, Value]:
    """Return what XLA plans for a program: its inputs, outputs and temporaries."""
    analysis = program.memory_analysis()
    if analysis is None:  # some backends do not tell
        return {}
    return {
        "argument_bytes": int(analysis.argument_size_in_bytes),
        "output_bytes": int(analysis.output_size_in_bytes),
        "temporary_bytes": int(analysis.temp_size_in_bytes),
    }


def update_inputs(parts: Parts) -> tuple[Rollout, jax.Array]:
    """Return what one update of every agent takes: ``[G, K, T, B]``, keys ``[G]``."""
    with preparing(parts.config):
        (rollouts,) = _batches(parts, updates=1)
        return rollouts, jax.random.split(jax.random.key(3), parts.groups)


def window(parts: Parts) -> Window:
    """Return what a meta-gradient is computed from, ``[G, ...]``."""
    config, values = parts.config, parts.population.values
    assert values is not None
    updates = config.meta.inner_updates
    with preparing(config):
        *rollouts, validation = _batches(
            parts,
            updates=updates,
            validation_rollouts=config.meta.validation_rollouts,
        )
        return Window(
            agents=parts.population.agents,
            values=values,
            rollouts=jax.tree.map(lambda *x: jnp.stack(x, axis=1), *rollouts),
            keys=jax.random.split(jax.random.key(4), (parts.groups, updates)),
            validation=validation,
        )


def unstack(tree: Tree, groups: int) -> list[Tree]:
    """Return the groups of ``tree``, without the axis G."""

    def at(index: int) -> Tree:
        return jax.tree.map(lambda x: x[index], tree)

    return [at(index) for index in range(groups)]


def count(params: Params) -> int:
    """Return how many numbers ``params`` are."""
    return sum(x.size for x in jax.tree.leaves(params))


def _batches(
    parts: Parts, *, updates: int, validation_rollouts: int = 0
) -> list[Rollout]:
    """Return what updates and validation take, as `bench.rollouts` says.

    Args:
      parts: of the run.
      updates: batches ``[G, K, T, B]`` that are learned from, B with what is replayed.
      validation_rollouts: length of the one behind them, in rollouts; 0: there is none.
    """
    config = parts.config
    length = config.population.rollout_length
    lengths = [length] * updates
    if validation_rollouts:
        lengths.append(length * validation_rollouts)
    keys = list(jax.random.split(jax.random.key(5), len(lengths)))
    if config.bench.rollouts == "environment":
        return _collect(parts, lengths, keys, updates=updates)
    num_envs, of_update = config.environment.num_envs, trajectories(config)
    return [
        synthetic.rollouts(
            key,
            parts.experiment.pool_spec,
            lead=(parts.groups, 1),
            steps=length,
            batch=of_update if i < updates else num_envs,
        )
        for i, (key, length) in enumerate(zip(keys, lengths, strict=True))
    ]


def _collect(
    parts: Parts, lengths: list[int], keys: list[jax.Array], *, updates: int
) -> list[Rollout]:
    """Let new agents act; the first ``updates`` rollouts are replayed from, too."""
    config, stack = parts.config, parts.experiment
    replay, num_envs = config.population.replay, config.environment.num_envs
    replays = ReplayedBatches(
        replay,
        stack.members,
        num_envs=num_envs,
        seed=config.seed,
        frame_stack=stack.pool_spec.frame_stack,
    )
    lives, found = np.zeros(parts.groups, np.int64), []
    actor = new_actor(parts)
    try:
        actor.start()
        for i, (key, length) in enumerate(zip(keys, lengths, strict=True)):
            acted = actor.collect_on_host(parts.population.agents, length, key)
            if i < updates and replay.share > 0:
                acted = replays.batch(acted, lives)
            found.append(jax.device_put(acted))
        return found
    finally:
        actor.close()


def new_actor(parts: Parts) -> Actor:
    """Return the actor of a run, not started yet."""
    config = parts.config
    return Actor(
        parts.experiment.agent,
        parts.experiment.tasks,
        config.environment,
        seeds=[config.seed] * parts.groups,
        chunk=config.population.chunk,
    )
