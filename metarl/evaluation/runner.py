"""Trains the cells of one batch side by side: act, keep, draw, update.

Host code: environments, clocks and replay. Everything random in a cell follows from
its own seed, and cells never meet in one computation (on CPU; elsewhere they are
mapped together, with equal results but for rounding), so what a cell becomes does not
depend on the cells beside it.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from metarl.agents import population
from metarl.agents.agent import Agent, AgentState
from metarl.agents.build import build_agent
from metarl.console import Progress, Value
from metarl.evaluation.agreement import UpdatedPeers
from metarl.evaluation.cell_run import CellRun
from metarl.evaluation.cells import Cell
from metarl.evaluation.recent_scores import RecentScores
from metarl.rollout.actor import Actor, split_groups
from metarl.rollout.replay import Replay
from metarl.rules.base import Metrics
from metarl.runtime import release_memory
from metarl.types import Params, Rollout

PeerMetrics = dict[str, npt.NDArray[np.floating]]
"""By name, of each peer of a group: ``f32[K]``."""

OnRow = Callable[[CellRun, PeerMetrics], None]
OnFinished = Callable[[CellRun], None]
ToldToStop = Callable[[], bool]


_PEER_KEYS = np.uint32(2**31)
"""What a cell's key is folded with for its peers begins here, above all iterations."""


def never() -> bool:
    """Return False: nobody asks for a stop."""
    return False


@partial(jax.jit, static_argnums=0)
def _init(agent: Agent, keys: jax.Array, observations: jax.Array) -> AgentState:
    return population.init_each(agent, keys, observations)


@partial(jax.jit, static_argnums=0, static_argnames="chunk", donate_argnums=2)
def _update(
    agent: Agent,
    meta_params: Params,
    states: AgentState,
    rollouts: Rollout,
    keys: jax.Array,
    *,
    chunk: int,
) -> tuple[AgentState, Metrics]:
    return population.update(agent, meta_params, states, rollouts, keys, chunk=chunk)


@partial(jax.jit, static_argnames="peers")
def _keys(
    cell_keys: jax.Array, iteration: jax.Array, *, peers: int
) -> tuple[jax.Array, jax.Array]:
    """Return the keys to act with ``[G, K]`` and to update with ``[G]``.

    The first peer's do not depend on how many there are.
    """
    keys = jax.vmap(lambda k: jax.random.split(jax.random.fold_in(k, iteration)))(
        cell_keys
    )

    def of_peer(cell_key: jax.Array, number: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(cell_key, number), iteration)

    numbers = _PEER_KEYS + jnp.arange(1, peers, dtype=jnp.uint32)
    of_others = jax.vmap(jax.vmap(of_peer, in_axes=(None, 0)), in_axes=(0, None))
    act_keys = [keys[:, :1], of_others(cell_keys, numbers)]
    return jnp.concatenate(act_keys, axis=1), keys[:, 1]


def _cells_per_call(cells: Sequence[Cell]) -> int:
    """Return how many cells one device call serves.

    One on CPU, where one after another is the faster way (see `population.map_groups`)
    and every cell runs the very same program, whatever the number of cells. All of
    them on an accelerator, where a last, smaller batch costs one more compilation.
    """
    return 1 if jax.default_backend() == "cpu" else len(cells)


def _stack(members: Sequence[Rollout], peers: int) -> Rollout:
    """Return rollouts ``[T, B]`` as ``[c, K, T, B]``; of one, without a copy."""

    def stack(*x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        stacked = np.stack(x) if len(x) > 1 else x[0][None]
        return stacked.reshape(-1, peers, *stacked.shape[1:])

    stacked: Rollout = jax.tree.map(stack, *members)
    return stacked


def agent_of(cell: Cell) -> Agent:
    """Return what the agents of a cell, and of those beside it, have in common."""
    return build_agent(
        cell.settings.agent,
        cell.rule.rule,
        cell.spec.num_actions,
        lifetime_env_steps=cell.env_steps,
    )


class BatchRun:
    """Trains cells of equal shapes, rule and settings."""

    # Of groups, from an update until it is recorded.
    _updated: UpdatedPeers | None = None

    def __init__(self, cells: Sequence[Cell]) -> None:
        """Build the agents, and describe their pools."""
        first = cells[0]
        self.settings, spec = first.settings, first.spec
        self._peers = first.group_size
        self.runs = [CellRun(cell) for cell in cells]
        self.agent = agent_of(first)
        self._meta_params = first.rule.meta_params
        self._chunk = _cells_per_call(cells)
        self._sizes = (self._chunk,) * (len(cells) // self._chunk)
        self._keys = jax.vmap(jax.random.key)(
            np.array([cell.base_seed for cell in cells], np.uint32)
        )
        example = np.zeros((1, *spec.observation_shape), spec.observation_dtype)
        self._states = [
            _init(self.agent, keys, jax.device_put(example))
            # Iteration 0 is nobody's: its keys are for the births.
            for keys in split_groups(self._keys_of(np.uint32(0))[0], self._sizes)
        ]
        self._actor = Actor(
            self.agent,
            [cell.task for cell in cells],
            # An evaluation never cuts an episode to bound a replay at resume.
            self.settings.environment.model_copy(update={"epoch_steps": sys.maxsize}),
            seeds=[cell.base_seed for cell in cells],
            seed_indices=[0] * len(cells),
            peers=self._peers,
            chunk=self._chunk,
        )
        capacity = self.settings.replay.capacity
        # Of every peer; the first one's draws do not depend on how many there are.
        self._replays = [
            Replay(
                capacity,
                seed=(cell.base_seed, *[peer] * (peer > 0)),
                frame_stack=spec.frame_stack,
            )
            for cell in cells
            for peer in range(self._peers)
            if capacity
        ]
        self._scores = RecentScores(len(cells), self._peers)
        self._iterations = self._updates = 0
        self._update_time = 0.0

    @property
    def num_parameters(self) -> int:
        """Of one agent's network."""
        leaves = jax.tree.leaves(self._states[0].params)
        return int(sum(x.size for x in leaves)) // (self._chunk * self._peers)

    def _keys_of(self, iteration: jax.Array | np.uint32) -> tuple[jax.Array, jax.Array]:
        return _keys(self._keys, iteration, peers=self._peers)

    def agents_of(self, index: int, *, peer: int = 0) -> AgentState:
        """Return the agent of a cell, one of its group."""
        chunk, position = divmod(index, self._chunk)
        state: AgentState = jax.tree.map(
            lambda x: x[position, peer], self._states[chunk]
        )
        return state

    def peers_of(self, run: CellRun) -> list[AgentState]:
        """Return the agents of a cell, all of its group."""
        index = self.runs.index(run)
        return [self.agents_of(index, peer=peer) for peer in range(self._peers)]

    def run(
        self,
        on_row: OnRow,
        on_finished: OnFinished,
        *,
        told_to_stop: ToldToStop = never,
    ) -> None:
        """Train every cell to its budget, or until ``told_to_stop``.

        Args:
          on_row: called with a cell and metrics where a row of its curve was added.
          on_finished: called with each cell once it has its result.
          told_to_stop: asked before every rollout.
        """
        budget = self.runs[0].cell.env_steps
        total = budget * len(self.runs)
        self._actor.start()
        start = time.perf_counter()
        try:
            with Progress(total, "evaluating", "env_steps") as progress:
                while not (told_to_stop() or all(run.is_done for run in self.runs)):
                    metrics = self._iterate()
                    self._record(metrics, on_row, on_finished)
                    done = sum(min(run.env_steps, budget) for run in self.runs)
                    seconds = time.perf_counter() - start
                    progress.update(done, self._shown(done / seconds))
        finally:
            self._actor.close()

    def _iterate(self) -> list[Metrics]:
        """Act one rollout with every agent and update it once; return the metrics.

        With replay, the updates begin when it holds a whole batch (or is full), as in
        DiscoRL's released evaluation; until then there are no metrics.
        """
        self._iterations += 1
        iteration = jax.device_put(np.uint32(self._iterations))
        act_keys, update_keys = self._keys_of(iteration)
        # A replay is on the host: its rollouts need not be on the device before.
        actor = self._actor
        collect = actor.collect_on_host if self._replays else actor.collect
        self._rollout = collect(self._states, self.settings.rollout_length, act_keys)
        start = time.perf_counter()
        rollouts = self._batches(self._rollout)
        if rollouts is None:
            return []
        rollouts = self._with_scores(rollouts)
        chunks = zip(
            self._states, rollouts, split_groups(update_keys, self._sizes), strict=True
        )
        updated = [
            _update(
                self.agent, self._meta_params, states, rollout, keys, chunk=self._chunk
            )
            for states, rollout, keys in chunks
        ]
        self._states = jax.block_until_ready([states for states, _ in updated])
        if self._peers > 1:
            self._updated = UpdatedPeers(
                self.agent, self._states, rollouts, chunk=self._chunk
            )
        if self._updates == 0:
            release_memory()  # of the compiler
        self._updates += 1
        self._update_time += time.perf_counter() - start
        return [metrics for _, metrics in updated]

    def _batches(self, rollout: Rollout) -> list[Rollout] | None:
        """Return what each chunk learns from, or None while the replays fill."""
        if not self._replays:
            acted: list[Rollout] = split_groups(rollout, self._sizes)
            return acted
        for i, replay in enumerate(self._replays):
            member = divmod(i, self._peers)
            replay.add(jax.tree.map(lambda x, at=member: x[at], rollout))
        replay_config = self.settings.replay
        batch = replay_config.ratio * self.settings.environment.num_envs
        if len(self._replays[0]) < min(batch, replay_config.capacity):
            return None
        drawn = [replay.sample(batch) for replay in self._replays]
        size = self._chunk * self._peers
        chunks = [drawn[i : i + size] for i in range(0, len(drawn), size)]
        stacked: list[Rollout] = jax.device_put(
            [_stack(chunk, self._peers) for chunk in chunks]
        )
        return stacked

    def _with_scores(self, rollouts: list[Rollout]) -> list[Rollout]:
        """Return the chunks' rollouts with scores, where peers are compared."""
        if self.agent.spec.reads == "own":
            return rollouts
        starts = range(0, len(self.runs), self._chunk)
        scores = self._scores.scores()
        parts = jax.device_put(
            [scores[start : start + self._chunk] for start in starts]
        )
        return [
            dataclasses.replace(rollout, score=part)
            for rollout, part in zip(rollouts, parts, strict=True)
        ]

    def _record(
        self, metrics: list[Metrics], on_row: OnRow, on_finished: OnFinished
    ) -> None:
        """Count the iteration in every cell that is not done yet."""
        env_steps = jax.device_get(self._rollout.env_steps).sum(axis=1)
        episodes = self._actor.drain_episodes()
        self._scores.add(episodes)
        learning = [(i, run) for i, run in enumerate(self.runs) if not run.is_done]
        for i, run in learning:
            if run.record(
                env_steps=int(env_steps[i]),
                agent_updates=self._updates,
                episodes=episodes[i],
            ):
                if self._updated is not None:
                    row = self._updated.row(i, env_steps=run.env_steps)
                    run.agreement.append(row)
                on_row(run, self._metrics_of(metrics, i))
            if run.is_done:
                on_finished(run)
        self._updated = None

    def _metrics_of(self, metrics: list[Metrics], index: int) -> PeerMetrics:
        if not metrics:
            return {}
        chunk, position = divmod(index, self._chunk)
        return {
            name: values[position]
            for name, values in jax.device_get(metrics[chunk]).items()
        }

    def take_times(self) -> dict[str, float]:
        """Return the seconds spent on each stage since the last call."""
        times = {**self._actor.take_times(), "learn": self._update_time}
        self._update_time = 0.0
        return times

    def _shown(self, steps_per_second: float) -> dict[str, Value]:
        returns = [x for run in self.runs for x in run.newest_returns]
        cells = {run.cell.rule.name: None for run in self.runs}
        return {
            "rule": "+".join(cells),
            "finished": sum(run.is_done for run in self.runs),
            "cells": len(self.runs),
            "agent_updates": self._updates,
            "episodic_return": float(np.mean(returns)) if returns else None,
            "SPS": int(steps_per_second),
        }
