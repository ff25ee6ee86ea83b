"""A population of agents and the rule that it moves: one meta-step after another.

In reading order: act, learn, differentiate, move the rule. Host code, which owns the
agents, their environments and the clocks; `train.py` decides how long it goes on, and
what is kept of it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from metarl import experiment as experiments
from metarl import meta_log
from metarl.agents import population as agents_population
from metarl.agents.agent import Agent, AgentState
from metarl.checkpoint import AS_STORED
from metarl.config import MetaOptimizerConfig, TrainConfig
from metarl.meta import trainer
from metarl.meta.estimators import Population
from metarl.meta.inner_loop import Window
from metarl.meta.objective import ValueState
from metarl.numerics import global_norm
from metarl.rollout.actor import POOL_KEYS, Actor
from metarl.rollout.ahead import RolloutQueue
from metarl.rules.base import Metrics
from metarl.types import Params, Rollout


class MetaTraining:
    """What a run is made of, and where it stands."""

    def __init__(
        self, config: TrainConfig, *, initial_params: Params | None = None
    ) -> None:
        """Build the parts and the first state; call `start` or `restore` next.

        Args:
          config: of the run.
          initial_params: the rule to start from; None: the random one of the seed.
        """
        self.config = config
        self.experiment = experiments.build(config)
        self.initial_params: Params = (
            experiments.initial_meta_params(self.experiment, config)
            if initial_params is None
            else jax.device_put(initial_params)
        )
        self.meta, self.population = experiments.initial_state(
            self.experiment, config, jax.tree.map(jnp.copy, self.initial_params)
        )
        self.meta_steps = self.env_steps = 0
        self.lives = np.zeros(len(self.experiment.tasks), np.int64)
        self.failure: str | None = None
        self.actor = Actor(
            self.experiment.agent,
            self.experiment.tasks,
            config.environment,
            seeds=[config.seed] * len(self.experiment.tasks),
            chunk=config.population.chunk,
        )
        self.rollouts = RolloutQueue(
            self.actor,
            config.meta,
            rollout_length=config.population.rollout_length,
            in_thread=_overlaps(config.population.overlap),
        )
        self.log = meta_log.MetaLog(self.experiment, self.actor)

    def __enter__(self) -> MetaTraining:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Free the environments."""
        self.close()

    def close(self) -> None:
        """Free the environments."""
        self.rollouts.close()
        self.actor.close()

    def start(self) -> None:
        """Begin anew: reset the environments."""
        self.actor.start()
        # Compiled here, and not when the first life ends.
        self.population = experiments.reborn(
            self.population,
            self.population,
            jax.device_put(np.zeros(len(self.lives), bool)),
        )

    def tree(self) -> dict[str, Any]:
        """Return all arrays that `restore` needs to go on from here."""
        return self._tree(self.rollouts.pool_states())

    def like(self) -> dict[str, Any]:
        """Return what `tree` looks like, whatever the pools have gone through."""
        pool = dict.fromkeys(POOL_KEYS, AS_STORED)
        return self._tree([pool] * self.actor.num_pools)

    def _tree(self, pools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return {
            "meta": self.meta,
            "population": self.population,
            "lives": self.lives,
            "pools": pools,
        }

    def restore(
        self, tree: Mapping[str, Any], *, meta_steps: int, env_steps: int
    ) -> None:
        """Go on from ``tree``, with the meta-steps and environment steps done so far.

        The environments of a run that is over are not replayed.
        """
        self.meta, self.population = tree["meta"], tree["population"]
        self.meta_steps, self.env_steps = meta_steps, env_steps
        self.lives = np.array(tree["lives"])
        if meta_steps < self.config.meta_steps:
            self.actor.restore(tree["pools"], report=meta_log.report_replay())

    @property
    def distance(self) -> jax.Array:
        """How far the meta-parameters moved, relative to their norm at the start."""
        return _relative_distance(self.meta.params, self.initial_params)

    def meta_step(self) -> Metrics:
        """Let the population act and learn, and move the meta-parameters once.

        Returns:
          The metrics of the estimator, each ``[G]``, and of the meta-update.
        """
        key, next_key = (
            experiments.meta_step_key(self.config, self.meta_steps + i) for i in (0, 1)
        )
        self.population, grads, metrics = self.experiment.estimator(
            self.play, self.meta.params, self.population, key
        )
        self.meta_steps += 1
        # The meta-gradient is still being computed, and what follows needs it not.
        self._end_lifetimes()
        if self.meta_steps < self.config.meta_steps:
            act_keys, _ = self._split(next_key)
            agents = self.population.agents
            self.rollouts.begin_ahead(agents, act_keys, drain=self.is_logged)
        with self.log.measure("meta"):
            self.meta, update_metrics = _meta_update(
                self.config.meta.optimizer, self.meta, grads
            )
            jax.block_until_ready(self.meta)
        skipped = int(jax.device_get(self.meta.skipped_in_a_row))
        if skipped >= self.config.meta.max_skipped:
            self.failure = (
                f"meta-gradients were not finite in {skipped} meta-steps in a row, "
                f"in {trainer.offending_leaf(grads)} first (meta.max_skipped)"
            )
        return {**metrics, **update_metrics}

    def play(
        self, meta_params: Params, population: Population, key: jax.Array
    ) -> tuple[Population, jax.Array, Window]:
        """Act and update N times, then act for validation; see `estimators.Play`."""
        start = agents = population.agents
        act_keys, update_keys = self._split(key)
        acted = self.rollouts.begin(start, act_keys)
        rollouts = []
        for per_group in update_keys:
            rollouts.append(self._count(acted.take()))
            with self.log.measure("learn"):
                agents = jax.block_until_ready(
                    _update(
                        self.experiment.agent,
                        self.config.population.chunk,
                        (meta_params, agents, rollouts[-1], per_group),
                    )
                )
            acted.updated(agents)
        validation = self._count(acted.take())
        # What acting cost belongs to the agents; validation steps are lived too.
        agents = dataclasses.replace(
            agents, env_steps=agents.env_steps + _steps_per_group(validation)
        )
        window = _window(start, population.values, rollouts, update_keys, validation)
        objective = jnp.mean(validation.returns, axis=(1, 2))
        return dataclasses.replace(population, agents=agents), objective, window

    def _end_lifetimes(self) -> None:
        """Give birth to new agents in the groups whose budget is used.

        Their value functions go with them, which judged another policy; the
        meta-optimisers go on, for they are the rule's.
        """
        lived = jax.device_get(self.population.agents.env_steps)[:, 0]
        ended = lived >= self._budgets()
        if not ended.any():
            return
        newborn = experiments.newborn(self.experiment, self.config, self.meta_steps)
        self.population = experiments.reborn(
            self.population, newborn, jax.device_put(ended)
        )
        self.lives += ended
        for group in np.flatnonzero(ended):
            self.actor.begin_epoch(int(group))

    def _budgets(self) -> npt.NDArray[np.float64]:
        """Return the environment steps of every group's present life, ``[G]``.

        The first lives are of evenly spaced lengths, so that from then on the rule
        sees agents of all ages.
        """
        groups = len(self.lives)
        first = (1 + np.arange(groups)) / groups
        share = np.where(self.lives == 0, first, 1.0)
        return share * self.config.population.lifetime_env_steps

    def _split(self, key: jax.Array) -> tuple[list[jax.Array], list[jax.Array]]:
        """Return a meta-step's keys to act with, and each update's, ``[G]``."""
        updates = self.config.meta.inner_updates
        return _split(key, updates=updates, groups=len(self.experiment.tasks))

    def _count(self, rollout: Rollout) -> Rollout:
        self.env_steps += int(jax.device_get(rollout.env_steps).sum())
        return rollout

    @property
    def is_logged(self) -> bool:
        """Whether a row of metrics is due after this meta-step."""
        return self.meta_steps % self.config.tracking.log_every == 0


@functools.partial(jax.jit, static_argnums=(0, 1))
def _update(
    agent: Agent, chunk: int, inputs: tuple[Params, AgentState, Rollout, jax.Array]
) -> AgentState:
    return agents_population.update(agent, *inputs, chunk=chunk)[0]


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _meta_update(
    config: MetaOptimizerConfig, state: trainer.MetaState, grads: Params
) -> tuple[trainer.MetaState, Metrics]:
    return trainer.update(config, state, grads)


def _overlaps(option: str) -> bool:
    """Return whether agents act while the device learns."""
    if option == "auto":
        return jax.default_backend() != "cpu"
    return option == "always"


@functools.partial(jax.jit, static_argnames=("updates", "groups"))
def _split(
    key: jax.Array, *, updates: int, groups: int
) -> tuple[list[jax.Array], list[jax.Array]]:
    *keys, validation_key = jax.random.split(key, updates + 1)
    pairs = [jax.random.split(key) for key in keys]
    act_keys = [act_key for act_key, _ in pairs]
    update_keys = [jax.random.split(update_key, groups) for _, update_key in pairs]
    return [*act_keys, validation_key], update_keys


@jax.jit
def _steps_per_group(rollout: Rollout) -> jax.Array:
    """Return the environment steps of a rollout, over each group: ``i32[G, K]``."""
    steps = jnp.sum(rollout.env_steps, axis=1, keepdims=True)
    return jnp.broadcast_to(steps, rollout.env_steps.shape)


@jax.jit
def _window(
    agents: AgentState,
    values: ValueState,
    rollouts: list[Rollout],
    keys: list[jax.Array],
    validation: Rollout,
) -> Window:
    """Stack what one meta-step recorded behind the axis G."""
    stacked = jax.tree.map(lambda *x: jnp.stack(x, axis=1), *rollouts)
    return Window(agents, values, stacked, jnp.stack(keys, axis=1), validation)


@jax.jit
def _relative_distance(params: Params, origin: Params) -> jax.Array:
    difference = jax.tree.map(jnp.subtract, params, origin)
    return global_norm(difference) / jnp.maximum(global_norm(origin), 1e-12)
