"""The agents of one stack in their environments: they act, learn, die and are born.

Host code under `stack_training.py`, which differentiates through their updates, and
`tried_rules.py`, whose agents each have a rule of their own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import numpy.typing as npt

from metarl import experiment as experiments
from metarl.agents import population as agents_population
from metarl.agents.agent import Agent, AgentState
from metarl.checkpoint import AS_STORED
from metarl.config import TrainConfig
from metarl.envs.pool import Episodes
from metarl.experiment import Stack
from metarl.lifetimes import Lives
from metarl.meta.estimators import Population
from metarl.meta_step_arrays import split_keys, steps_per_group
from metarl.rollout.actor import POOL_KEYS, Actor
from metarl.rollout.ahead import RolloutQueue
from metarl.rollout.batches import ReplayedBatches
from metarl.rollout.replay import REPLAY_KEYS
from metarl.types import Params, Rollout

Measure = Callable[[str], contextlib.AbstractContextManager[None]]
"""Times a block as a part of the stage that it names."""


def unmeasured(_: str) -> contextlib.AbstractContextManager[None]:
    """Time nothing: the `Measure` of agents that nobody logs."""
    return contextlib.nullcontext()


class StackAgents:
    """A stack's agents, their environments and their clocks."""

    def __init__(
        self,
        stack: Stack,
        config: TrainConfig,
        *,
        seed: int | None = None,
        measure: Measure = unmeasured,
    ) -> None:
        """Build the first agents and describe their pools; then `start` or `restore`.

        Args:
          stack: its static parts.
          config: of the run.
          seed: of agents, pools and acting; None: the run's.
          measure: times what the host waits for.
        """
        self.stack = stack
        self._config, self._measure = config, measure
        self._seed = config.seed if seed is None else seed
        self._lives = Lives(
            stack.population.lifetime_env_steps,
            stack.members,
            of=stack.num_groups,
            seed=self._seed,
        )
        self.population = self._newborn(None)
        self.actor = Actor(
            stack.agent,
            stack.tasks,
            stack.environment,
            seeds=[self._seed] * len(stack.tasks),
            seed_indices=stack.members,
            chunk=stack.population.chunk,
        )
        self._replays = _replays(stack, self._seed)
        self.rollouts = RolloutQueue(
            self.actor,
            config.meta,
            rollout_length=stack.population.rollout_length,
            in_thread=_overlaps(config.population.overlap),
            on_host=self._replays is not None,
        )
        self._env_steps = 0
        self._transfer_time = 0.0

    def close(self) -> None:
        """Free the environments."""
        self.rollouts.close()
        self.actor.close()

    def start(self) -> None:
        """Begin anew: reset the environments."""
        self.actor.start()
        # Compiled here, and not when the first life ends.
        self._bear(np.zeros(len(self.lives), np.bool_), self.population)

    @property
    def lives(self) -> npt.NDArray[np.int64]:
        """How many lives of every group are over, ``[G]``."""
        return self._lives.count

    # --- Checkpoints --------------------------------------------------------------

    @property
    def keeps_batches(self) -> bool:
        """Whether trajectories are kept from one meta-step to the next."""
        return self._replays is not None

    def tree(self, *, replays: bool = True) -> dict[str, Any]:
        """Return all arrays that `restore` needs to go on from here.

        Args:
          replays: with the agents' replays, without which they begin empty.
        """
        kept = [] if self._replays is None or not replays else self._replays.state()
        return self._tree(self.rollouts.pool_states(), kept)

    def like(self, *, replays: bool = True) -> dict[str, Any]:
        """Return what `tree` looks like, whatever has happened."""
        pools = [dict.fromkeys(POOL_KEYS, AS_STORED)] * self.actor.num_pools
        count = 0 if self._replays is None or not replays else len(self._replays)
        return self._tree(pools, [dict.fromkeys(REPLAY_KEYS, AS_STORED)] * count)

    def _tree(self, pools: Any, replays: Any) -> dict[str, Any]:
        return {
            "population": self.population,
            "lives": self.lives,
            "pools": pools,
            "replays": replays,
        }

    def restore(
        self,
        tree: Mapping[str, Any],
        *,
        report: Callable[[int, int], None] | None = None,
        replay_pools: bool = True,
    ) -> None:
        """Go on from ``tree``.

        Args:
          tree: what `tree` returned.
          report: called with the environment steps done and to do.
          replay_pools: False where nobody is going to act any more.
        """
        self.population = tree["population"]
        self._lives.begin(tree["lives"])
        if self._replays is not None and tree["replays"]:
            self._replays.restore(tree["replays"])
        if replay_pools:
            self.actor.restore(tree["pools"], report=report)

    # --- Living -------------------------------------------------------------------

    def _live(
        self,
        meta_params: Params,
        agents: AgentState,
        keys: tuple[list[jax.Array], list[jax.Array]],
        note: Callable[[AgentState, Rollout], None] | None = None,
    ) -> tuple[AgentState, Rollout]:
        """Act and update N times; return the agents and what they act then.

        Args:
          meta_params: the rule.
          agents: before it.
          keys: to act with, and of the updates; see `_split`. Consumed.
          note: called with the agents before each update, and its batch.
        """
        act_keys, update_keys = keys
        acted = self.rollouts.begin(agents, act_keys)
        for per_group in update_keys:
            rollout = self._batch(self._count(acted.take()))
            if note is not None:
                note(agents, rollout)
            with self._measure("learn"):
                agents = jax.block_until_ready(
                    self._update(meta_params, agents, rollout, per_group)
                )
            acted.updated(agents)
        validation = self._on_device(self._count(acted.take()))
        # What acting cost belongs to the agents; validation steps are lived too.
        agents = dataclasses.replace(
            agents, env_steps=agents.env_steps + steps_per_group(validation)
        )
        return agents, validation

    def _update(
        self,
        meta_params: Params,
        agents: AgentState,
        rollout: Rollout,
        keys: jax.Array,
    ) -> AgentState:
        """Return the agents after one update."""
        inputs = (meta_params, agents, rollout, keys)
        return _update(self.stack.agent, self.stack.population.chunk, inputs)

    def end_lifetimes(self, meta_step: int) -> npt.NDArray[np.bool_]:
        """Give birth to new agents in the groups whose budget is used.

        Their value functions go with them, which judged another policy.

        Args:
          meta_step: meta-steps done.

        Returns:
          Which groups they are, ``[G]``.
        """
        ended = self._lives.ended(self._ages())
        if ended.any():
            self._lives.begin(self.lives + ended)
            self._bear(ended, self._newborn(meta_step))
            for group in np.flatnonzero(ended):
                self.actor.begin_epoch(int(group))
                if self._replays is not None:
                    self._replays.forget(int(group))
        return ended

    def _ages(self) -> npt.NDArray[np.int32]:
        """Return the environment steps that every group has lived, ``[G]``."""
        ages: npt.NDArray[np.int32]
        ages = jax.device_get(self.population.agents.env_steps)[:, 0]
        return ages

    def _newborn(self, meta_step: int | None) -> Population:
        """Return new agents for all groups.

        Args:
          meta_step: meta-steps done; None: the run's first agents.
        """
        if meta_step is None:
            newborn = experiments.first_population(self.stack, self._seed)
        else:
            newborn = experiments.newborn(self.stack, self._seed, meta_step)
        return self._with_budgets(newborn)

    def _bear(self, ended: npt.NDArray[np.bool_], newborn: Population) -> None:
        """Put new agents in the place of those whose life ``ended``."""
        self.population = experiments.reborn(
            self.population, newborn, jax.device_put(ended)
        )

    def _batch(self, new: Rollout) -> Rollout:
        """Return what an update learns from, on the device, given what was acted."""
        if self._replays is None:
            return new
        start = time.perf_counter()
        batch = self._replays.batch(new, self.lives)
        self._transfer_time += time.perf_counter() - start
        return self._on_device(batch)

    def _on_device(self, rollout: Rollout) -> Rollout:
        if self._replays is None:
            return rollout  # the actor has put it there
        start = time.perf_counter()
        on_device: Rollout = jax.block_until_ready(jax.device_put(rollout))
        self._transfer_time += time.perf_counter() - start
        return on_device

    def _with_budgets(self, population: Population) -> Population:
        """Return agents that know how long they live, where lives differ."""
        if isinstance(self.stack.population.lifetime_env_steps, int):
            return population
        budgets = self._lives.budgets.astype(np.int32)[:, None]
        agents = dataclasses.replace(
            population.agents, lifetime_env_steps=jax.device_put(budgets)
        )
        return dataclasses.replace(population, agents=agents)

    def _split(self, key: jax.Array) -> tuple[list[jax.Array], list[jax.Array]]:
        """Return a meta-step's keys to act with, and each update's, ``[G]``."""
        updates = self._config.meta.acted_updates
        return split_keys(key, updates=updates, groups=len(self.stack.tasks))

    # --- What is counted ----------------------------------------------------------

    def _count(self, rollout: Rollout) -> Rollout:
        self._env_steps += int(jax.device_get(rollout.env_steps).sum())
        return rollout

    def take_env_steps(self) -> int:
        """Return the environment steps acted since the last call."""
        taken, self._env_steps = self._env_steps, 0
        return taken

    def drain_episodes(self) -> list[list[Episodes]]:
        """Return the episodes that meta-steps finished since the last call."""
        return self.rollouts.drain_episodes()

    def take_times(self) -> dict[str, float]:
        """Return the seconds that acting spent on each stage since the last call.

        Replaying is a part of moving arrays.
        """
        times = self.actor.take_times()
        times["transfer"] += self._transfer_time
        self._transfer_time = 0.0
        return times


@functools.partial(jax.jit, static_argnums=(0, 1))
def _update(
    agent: Agent, chunk: int, inputs: tuple[Params, AgentState, Rollout, jax.Array]
) -> AgentState:
    return agents_population.update(agent, *inputs, chunk=chunk)[0]


def _replays(stack: Stack, seed: int) -> ReplayedBatches | None:
    """Return the replays of a stack's agents, if they have any."""
    config = stack.population.replay
    if config.share == 0:
        return None
    return ReplayedBatches(
        config,
        stack.members,
        num_envs=stack.environment.num_envs,
        seed=seed,
        frame_stack=stack.pool_spec.frame_stack,
    )


def _overlaps(option: str) -> bool:
    """Return whether agents act while the device learns."""
    if option == "auto":
        return jax.default_backend() != "cpu"
    return option == "always"
