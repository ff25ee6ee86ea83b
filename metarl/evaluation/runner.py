"""Trains the cells of one batch side by side: act, keep, draw, update.

Host code: environments, clocks and replay. Everything random in a cell follows from
its own seed, and cells never meet in one computation (on CPU; elsewhere they are
mapped together, with equal results but for rounding), so what a cell becomes does not
depend on the cells beside it.
"""

from __future__ import annotations

import collections
import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial

import jax
import numpy as np

from metarl.agents import population
from metarl.agents.agent import Agent, AgentState
from metarl.agents.build import build_agent
from metarl.console import Progress, Value
from metarl.envs.pool import Episodes
from metarl.evaluation.cells import Cell
from metarl.evaluation.recent_scores import RecentScores
from metarl.evaluation.results import CurveRow, Result, finite, make_result
from metarl.rollout.actor import Actor, split_groups
from metarl.rollout.replay import Replay
from metarl.rules.base import Metrics
from metarl.runtime import release_memory
from metarl.types import Params, Rollout

OnRow = Callable[["CellRun", dict[str, float]], None]
OnFinished = Callable[["CellRun"], None]
ToldToStop = Callable[[], bool]


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


@jax.jit
def _keys(cell_keys: jax.Array, iteration: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the keys to act with ``[G, 1]`` and to update with ``[G]``."""
    keys = jax.vmap(lambda k: jax.random.split(jax.random.fold_in(k, iteration)))(
        cell_keys
    )
    return keys[:, :1], keys[:, 1]


def _cells_per_call(cells: Sequence[Cell]) -> int:
    """Return how many cells one device call serves.

    One on CPU, where one after another is the faster way (see `population.map_groups`)
    and every cell runs the very same program, whatever the number of cells. All of
    them on an accelerator, where a last, smaller batch costs one more compilation.
    """
    return 1 if jax.default_backend() == "cpu" else len(cells)


def _stack(members: Sequence[Rollout]) -> Rollout:
    """Return rollouts ``[T, B]`` as ``[c, 1, T, B]``; of one, without a copy."""
    stacked: Rollout = jax.tree.map(
        lambda *x: (np.stack(x) if len(x) > 1 else x[0][None])[:, None], *members
    )
    return stacked


def agent_of(cell: Cell) -> Agent:
    """Return what the agents of a cell, and of those beside it, have in common."""
    return build_agent(
        cell.settings.agent,
        cell.rule.rule,
        cell.spec.num_actions,
        lifetime_env_steps=cell.env_steps,
    )


class CellRun:
    """Where one cell stands: its episodes, its curve, and its result at the end."""

    def __init__(self, cell: Cell) -> None:
        """Start counting."""
        self.cell = cell
        self.env_steps = self.agent_updates = self.episodes = 0
        self.nonfinite_returns = 0  # episodes whose return is NaN or infinite
        final = cell.settings.final_score
        share = final.last_share
        # Of the episodes that the score is the mean of.
        self.last_returns: collections.deque[float] = collections.deque(
            maxlen=final.episodes if share is None else None
        )
        self.newest_returns: collections.deque[float] = collections.deque(maxlen=100)
        self._counts_from = 0.0 if share is None else (1 - share) * cell.env_steps
        self.curve: list[CurveRow] = []
        self.result: Result | None = None
        self._since_row: list[Episodes] = []
        self.newest_lengths = np.zeros(0, np.int64)  # of the newest row's episodes

    @property
    def is_done(self) -> bool:
        """Whether the budget is used."""
        return self.env_steps >= self.cell.env_steps

    def record(self, *, env_steps: int, agent_updates: int, episodes: Episodes) -> bool:
        """Count one iteration; return whether a row of the curve was due."""
        self.env_steps += env_steps
        self.agent_updates = agent_updates
        self.episodes += len(episodes.returns)
        returns = [float(x) for x in episodes.returns]
        self.nonfinite_returns += int((~np.isfinite(episodes.returns)).sum())
        self.newest_returns.extend(returns)
        if self.env_steps > self._counts_from:
            self.last_returns.extend(returns)
        self._since_row.append(episodes)
        settings, budget = self.cell.settings, self.cell.env_steps
        points = self.env_steps * settings.curve_points // budget
        before = (self.env_steps - env_steps) * settings.curve_points // budget
        if not self.is_done and points == before:
            return False
        self._add_row()
        if self.is_done:
            self.result = make_result(
                self.cell,
                env_steps=self.env_steps,
                episodes=self.episodes,
                last_returns=list(self.last_returns),
            )
        return True

    def _add_row(self) -> None:
        returns = np.concatenate([e.returns for e in self._since_row])
        self.newest_lengths = np.concatenate([e.lengths for e in self._since_row])
        self._since_row = []
        self.curve.append(
            CurveRow(
                env_steps=self.env_steps,
                agent_updates=self.agent_updates,
                episodes=len(returns),
                mean_return=finite(float(returns.mean())) if len(returns) else None,
            )
        )


class BatchRun:
    """Trains cells of equal shapes, rule and settings."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        """Build the agents, and describe their pools."""
        first = cells[0]
        self.settings, spec = first.settings, first.spec
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
            for keys in split_groups(_keys(self._keys, np.uint32(0))[0], self._sizes)
        ]
        self._actor = Actor(
            self.agent,
            [cell.task for cell in cells],
            # An evaluation never cuts an episode to bound a replay at resume.
            self.settings.environment.model_copy(update={"epoch_steps": sys.maxsize}),
            seeds=[cell.base_seed for cell in cells],
            seed_indices=[0] * len(cells),
            chunk=self._chunk,
        )
        capacity = self.settings.replay.capacity
        self._replays = [
            Replay(capacity, seed=cell.base_seed, frame_stack=spec.frame_stack)
            for cell in cells
            if capacity
        ]
        groups, peers, _ = self._actor.shape
        self._scores = RecentScores(groups, peers)
        self._iterations = self._updates = 0
        self._update_time = 0.0

    @property
    def num_parameters(self) -> int:
        """Of one agent's network."""
        leaves = jax.tree.leaves(self._states[0].params)
        return int(sum(x.size for x in leaves)) // self._chunk

    def agents_of(self, index: int) -> AgentState:
        """Return the agent (group of one) of a cell."""
        chunk, position = divmod(index, self._chunk)
        state: AgentState = jax.tree.map(lambda x: x[position, 0], self._states[chunk])
        return state

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
        """Act one rollout with every cell and update it once; return the metrics.

        With replay, the updates begin when it holds a whole batch (or is full), as in
        DiscoRL's released evaluation; until then there are no metrics.
        """
        self._iterations += 1
        iteration = jax.device_put(np.uint32(self._iterations))
        act_keys, update_keys = _keys(self._keys, iteration)
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
            replay.add(jax.tree.map(lambda x, i=i: x[i, 0], rollout))
        replay_config = self.settings.replay
        batch = replay_config.ratio * self.settings.environment.num_envs
        if len(self._replays[0]) < min(batch, replay_config.capacity):
            return None
        drawn = [replay.sample(batch) for replay in self._replays]
        starts = range(0, len(drawn), self._chunk)
        chunks = [drawn[start : start + self._chunk] for start in starts]
        stacked: list[Rollout] = jax.device_put([_stack(c) for c in chunks])
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
        env_steps = jax.device_get(self._rollout.env_steps)[:, 0]
        episodes = self._actor.drain_episodes()
        self._scores.add(episodes)
        learning = [(i, run) for i, run in enumerate(self.runs) if not run.is_done]
        for i, run in learning:
            if run.record(
                env_steps=int(env_steps[i]),
                agent_updates=self._updates,
                episodes=episodes[i][0],
            ):
                on_row(run, self._metrics_of(metrics, i))
            if run.is_done:
                on_finished(run)

    def _metrics_of(self, metrics: list[Metrics], index: int) -> dict[str, float]:
        if not metrics:
            return {}
        chunk, position = divmod(index, self._chunk)
        return {
            name: float(values[position, 0])
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
