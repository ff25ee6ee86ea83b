"""The agents of rules that are tried: groups of a stack, each with a rule of its own.

Host code over `stack_agents.py`, under `evolution_training.py`. Rules come in pairs
that must meet the same chance: their agents are born equal, act with the same keys in
environments of the same seeds, and draw the same trajectories from their replays.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from metarl import experiment as experiments
from metarl.agents import population as agents_population
from metarl.agents.agent import Agent, AgentState
from metarl.config import TrainConfig
from metarl.experiment import Stack
from metarl.meta.estimators import Population
from metarl.meta_step_arrays import split_keys
from metarl.rules.base import Metrics
from metarl.stack_agents import Measure, StackAgents
from metarl.types import Params, Rollout


class TriedRules(StackAgents):
    """Agents of pairs of rules in a stack's games, and their environments.

    Groups are in the order ``[R, 2, G]``; those of all agents of a pair share a number,
    which decides all that is random for them.
    """

    def __init__(
        self,
        stack: Stack,
        config: TrainConfig,
        pairs: range,
        *,
        born: int = 0,
        measure: Measure,
    ) -> None:
        """Build the agents; then `start` or `restore`.

        Args:
          stack: of the run.
          config: of the run.
          pairs: numbers of the pairs among all.
          born: meta-steps done; of the pools' seeds too.
          measure: times what the host waits for.
        """
        self._shape = (len(pairs), 2, len(stack.tasks))
        self._born, self._total = born, config.meta.evolution.pairs
        members = _numbers(pairs, stack.members, config)
        self._draws = jax.device_put(members.astype(np.int32))
        twofold = dataclasses.replace(
            stack,
            members=tuple(members.tolist()),
            tasks=stack.tasks * (2 * len(pairs)),
        )
        super().__init__(twofold, config, measure=measure)
        # Evenly spaced over all pairs, and equal within each.
        order = np.arange(len(pairs))[:, None, None] + pairs.start
        order = order * self._shape[2] + np.arange(self._shape[2])
        first = (1 + order) / (self._total * self._shape[2])
        self._lives.first = np.broadcast_to(first, self._shape).reshape(-1)

    def start(self) -> None:
        """Begin anew: reset the environments."""
        self.actor.start(epoch=self._born)
        # Compiled here, and not when the first life ends.
        self._bear(np.zeros(len(self.lives), np.bool_), self.population)

    def unroll(self, rules: Params, key: jax.Array) -> npt.NDArray[np.float32]:
        """Let the agents act and update N times; return the fitness ``[R, 2, G]``.

        Args:
          rules: one of each group, ``[2 R G, ...]``.
          key: consumed.
        """
        agents, validation = self._live(rules, self.population.agents, self._split(key))
        self.population = Population(agents, None)
        fitness: npt.NDArray[np.float32]
        fitness = jax.device_get(_fitness(validation)).reshape(self._shape)
        return fitness

    def live(
        self, rules: Params, key: jax.Array, *, only_last: bool
    ) -> npt.NDArray[np.float32]:
        """Let the agents live to their end; return the fitness ``[R, 2, G]``.

        Those whose budget is used go on until the last of the others', and count no
        more.

        Args:
          rules: one of each group, ``[2 R G, ...]``.
          key: consumed.
          only_last: whether the last validation rollouts count alone, and not the mean
            of all.
        """
        total = np.zeros(self._shape, np.float32)
        count = np.zeros(self._shape, np.float32)
        alive, unrolls = np.ones(self._shape, np.bool_), 0
        while alive.any():
            fitness = self.unroll(rules, unroll_key(key, unrolls))
            total = np.where(alive, fitness + (0 if only_last else total), total)
            count = np.where(alive, 1 if only_last else count + 1, count)
            alive &= (self._ages() < self._lives.budgets).reshape(self._shape)
            unrolls += 1
        return total / count

    @property
    def shape(self) -> tuple[int, int, int]:
        """Pairs R, 2 and groups G of the run's stack."""
        return self._shape

    # --- What pairs share ---------------------------------------------------------

    def _ages(self) -> npt.NDArray[np.int32]:
        """Return the ages of the older agents of each pair, for both."""
        ages = super()._ages().reshape(self._shape)
        oldest = ages.max(axis=1, keepdims=True)
        return np.broadcast_to(oldest, self._shape).reshape(-1)

    def _newborn(self, meta_step: int | None) -> Population:
        if meta_step is None:
            self._lives.begin(np.full(len(self.lives), self._born))
        agents = experiments.newborn_by_draw(
            self.stack,
            self._seed,
            self._born if meta_step is None else meta_step,
            self._draws,
        )
        return self._with_budgets(Population(agents, None))

    def _split(self, key: jax.Array) -> tuple[list[jax.Array], list[jax.Array]]:
        updates = self._config.meta.acted_updates
        return _split_by_draw(key, self._draws, updates=updates)

    def _update(
        self,
        meta_params: Params,
        agents: AgentState,
        rollout: Rollout,
        keys: jax.Array,
    ) -> AgentState:
        inputs = (meta_params, agents, rollout, keys)
        return _update_each(self.stack.agent, self.stack.population.chunk, inputs)


def unroll_key(key: jax.Array, index: int) -> jax.Array:
    """Return the key of a life's unroll."""
    return _fold_in(key, jax.device_put(np.uint32(index)))


def _numbers(
    pairs: range, members: tuple[int, ...], config: TrainConfig
) -> npt.NDArray[np.int64]:
    """Return a number of each group, ``[2 R G]``, that the rules of a pair share."""
    stride = experiments.MAX_MEMBERS // config.meta.evolution.pairs
    numbers = np.array(pairs)[:, None, None] * stride + np.array(members)
    return np.broadcast_to(numbers, (len(pairs), 2, len(members))).reshape(-1)


@jax.jit
def _fold_in(key: jax.Array, data: jax.Array) -> jax.Array:
    return jax.random.fold_in(key, data)


@functools.partial(jax.jit, static_argnames="updates")
def _split_by_draw(
    key: jax.Array, draws: jax.Array, *, updates: int
) -> tuple[list[jax.Array], list[jax.Array]]:
    """Return keys to act with, ``[M, 1]``, and of each update, ``[M]``.

    Equal ones where the draws ``[M]`` are.
    """

    def each(key: jax.Array) -> jax.Array:
        return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, draws)

    act_keys, update_keys = split_keys(key, updates=updates, groups=1)
    return [each(k)[:, None] for k in act_keys], [each(k[0]) for k in update_keys]


@jax.jit
def _fitness(validation: Rollout) -> jax.Array:
    """Return the mean raw return of a rollout's trajectories, ``[M]``."""
    return jnp.mean(validation.returns, axis=(1, 2))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _update_each(
    agent: Agent, chunk: int, inputs: tuple[Params, AgentState, Rollout, jax.Array]
) -> AgentState:
    updated: tuple[AgentState, Metrics]
    updated = agents_population.update_each(agent, *inputs, chunk=chunk)
    return updated[0]
