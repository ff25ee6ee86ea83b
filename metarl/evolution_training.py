"""A stack whose meta-gradient comes from trying other rules, one life after another.

Host code beside `stack_training.py`, in whose place `meta_training.py` drives it. The
run's own rule is played by nobody: what is logged of agents is of the tried ones.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from metarl import experiment as experiments
from metarl.config import TrainConfig
from metarl.envs.pool import Episodes
from metarl.experiment import Stack
from metarl.meta.estimators import Play
from metarl.meta.evolution import EvolutionStrategies, Particles
from metarl.rules.base import Metrics
from metarl.stack_agents import Measure
from metarl.tried_rules import TriedRules, unroll_key
from metarl.types import Params


class EvolutionTraining:
    """A stack's meta-gradients by evolution strategies, plain or persistent.

    Plain ones let agents be born, live and die in every meta-step, some pairs at once.
    Persistent ones have agents that live on, and are replaced when they have lived.
    """

    def __init__(self, stack: Stack, config: TrainConfig, *, measure: Measure) -> None:
        """Build the first agents, if they live on; then `start` or `restore`.

        Args:
          stack: its static parts.
          config: of the run.
          measure: times what the host waits for.
        """
        assert isinstance(stack.estimator, EvolutionStrategies)
        self.stack, self._estimator = stack, stack.estimator
        self._config, self._measure = config, measure
        self._evolution = config.meta.evolution
        self._persistent: TriedRules | None = None
        self._sums: Params | None = None
        if self._estimator.persistent:
            pairs = range(self._evolution.pairs)
            self._persistent = TriedRules(stack, config, pairs, measure=measure)
            self._sums = _no_perturbations(self._estimator, stack)
        self.lives: npt.NDArray[np.int64] = np.zeros(len(stack.tasks), np.int64)
        self._env_steps = 0
        self._episodes: list[list[list[Episodes]]] = []
        self._times = {"env": 0.0, "inference": 0.0, "transfer": 0.0}

    def close(self) -> None:
        """Free the environments."""
        if self._persistent is not None:
            self._persistent.close()

    def start(self) -> None:
        """Begin anew: reset the environments."""
        if self._persistent is not None:
            self._persistent.start()
            self._end(np.zeros(self._persistent.shape, np.bool_))  # compiled here

    # --- Checkpoints --------------------------------------------------------------

    @property
    def keeps_batches(self) -> bool:
        """Whether trajectories are kept in replays from one meta-step to the next."""
        return self._persistent is not None and self._persistent.keeps_batches

    def tree(self, *, replays: bool = True) -> dict[str, Any]:
        """Return all arrays that `restore` needs to go on from here.

        Args:
          replays: with the agents' replays, without which they begin empty.
        """
        if self._persistent is None:
            return {"lives": self.lives}
        agents = self._persistent.tree(replays=replays)
        return {"lives": self.lives, "sums": self._sums, "agents": agents}

    def like(self, *, replays: bool = True) -> dict[str, Any]:
        """Return what `tree` looks like, whatever has happened."""
        if self._persistent is None:
            return {"lives": self.lives}
        agents = self._persistent.like(replays=replays)
        return {"lives": self.lives, "sums": self._sums, "agents": agents}

    def restore(
        self,
        tree: Mapping[str, Any],
        *,
        report: Callable[[int, int], None] | None = None,
        replay_pools: bool = True,
    ) -> None:
        """Go on from ``tree``; see `StackAgents.restore`."""
        self.lives = np.array(tree["lives"])
        if self._persistent is not None:
            self._sums = tree["sums"]
            self._persistent.restore(
                tree["agents"], report=report, replay_pools=replay_pools
            )

    # --- One meta-step ------------------------------------------------------------

    def meta_gradient(
        self, meta_params: Params, meta_step: int
    ) -> tuple[Params, Metrics]:
        """Try rules, and return the gradients ``[G, ...]`` and metrics ``[G]``.

        Args:
          meta_params: the rule.
          meta_step: meta-steps done before.
        """
        key = experiments.meta_step_key(self.stack, self._config.seed, meta_step)
        persistent = self._persistent
        if persistent is None:
            play: Play[Particles, None] = functools.partial(self._play_lives, meta_step)
            _, grads, metrics = self._estimator(play, meta_params, Particles(), key)
            return grads, metrics
        play = functools.partial(self._play_unroll, persistent)
        before = Particles(persistent.population, self._sums)
        after, grads, metrics = self._estimator(play, meta_params, before, key)
        self._sums = after.perturbations
        return grads, metrics

    def _play_lives(
        self, meta_step: int, rules: Params, particles: Particles, key: jax.Array
    ) -> tuple[Particles, jax.Array, None]:
        """Let newborn agents live by the ``rules [R, 2, G, ...]`` to their end."""
        total = self._evolution.pairs
        size = self._evolution.pairs_at_once or total
        fitness = []
        for first in range(0, total, size):
            pairs = range(first, first + size)
            tried = TriedRules(
                self.stack, self._config, pairs, born=meta_step, measure=self._measure
            )
            with contextlib.closing(tried):
                tried.start()
                fitness.append(
                    tried.live(
                        _of_pairs(rules, jax.device_put(np.int32(first)), size=size),
                        key,
                        only_last=self._evolution.fitness == "final",
                    )
                )
                self._take_from(tried)
        self.lives = self.lives + total
        return particles, jax.device_put(np.concatenate(fitness)), None

    def _play_unroll(
        self,
        persistent: TriedRules,
        rules: Params,
        particles: Particles,
        key: jax.Array,
    ) -> tuple[Particles, jax.Array, None]:
        """Let the agents go on by the ``rules [R, 2, G, ...]`` for N updates."""
        total = self._evolution.pairs
        flat = _of_pairs(rules, jax.device_put(np.int32(0)), size=total)
        fitness = persistent.unroll(flat, unroll_key(key, 0))
        after = Particles(persistent.population, particles.perturbations)
        return after, jax.device_put(fitness), None

    def begin_ahead(self, meta_step: int, *, drain: bool) -> None:
        """Do nothing: who acts next waits for the rule to have moved."""

    def end_lifetimes(self, meta_step: int) -> npt.NDArray[np.bool_]:
        """Give birth to new agents of the pairs whose budget is used.

        Args:
          meta_step: meta-steps done.

        Returns:
          No group, ``[G]``: their meta-optimisers serve many lives.
        """
        persistent = self._persistent
        if persistent is not None:
            ended = persistent.end_lifetimes(meta_step).reshape(persistent.shape)
            if ended.any():
                self._end(ended)
        return np.zeros(len(self.stack.tasks), np.bool_)

    def _end(self, ended: npt.NDArray[np.bool_]) -> None:
        """Forget the perturbations of pairs whose agents' life ``ended [R, 2, G]``."""
        assert self._sums is not None
        self._sums = _forgotten(self._sums, jax.device_put(ended[:, 0]))
        self.lives = self.lives + ended[:, 0].sum(axis=0)

    # --- What is counted ----------------------------------------------------------

    def _take_from(self, tried: TriedRules) -> None:
        self._env_steps += tried.take_env_steps()
        self._episodes.append(_by_group(tried.drain_episodes(), tried.shape[2]))
        for stage, seconds in tried.take_times().items():
            self._times[stage] += seconds

    def take_env_steps(self) -> int:
        """Return the environment steps acted by all tried rules since the last call."""
        if self._persistent is not None:
            return self._persistent.take_env_steps()
        taken, self._env_steps = self._env_steps, 0
        return taken

    def drain_episodes(self) -> list[list[Episodes]]:
        """Return the episodes finished since the last call, of each group."""
        if self._persistent is not None:
            drained = self._persistent.drain_episodes()
            return _by_group(drained, self._persistent.shape[2])
        drained_before, self._episodes = self._episodes, []
        return [
            [episodes for drained in drained_before for episodes in drained[group]]
            for group in range(len(self.stack.tasks))
        ]

    def take_times(self) -> dict[str, float]:
        """Return the seconds that acting spent on each stage since the last call."""
        if self._persistent is not None:
            return self._persistent.take_times()
        times, self._times = self._times, dict.fromkeys(self._times, 0.0)
        return times


def _by_group(drained: list[list[Episodes]], groups: int) -> list[list[Episodes]]:
    """Return the episodes of tried rules ``[2 R G][K]`` by the groups of the run."""
    return [
        [episodes for of_rule in drained[group::groups] for episodes in of_rule]
        for group in range(groups)
    ]


def _no_perturbations(estimator: EvolutionStrategies, stack: Stack) -> Params | None:
    """Return the sums of perturbations of agents that are not born yet."""

    def zeros() -> Params | None:
        return estimator.begin(stack.agent.rule.init_params(jax.random.key(0)))

    return jax.jit(zeros)()


@functools.partial(jax.jit, static_argnames="size")
def _of_pairs(rules: Params, first: jax.Array, *, size: int) -> Params:
    """Return ``size`` pairs of the rules ``[R, 2, G, ...]``, one rule after another."""

    def of_leaf(x: jax.Array) -> jax.Array:
        chosen = jax.lax.dynamic_slice_in_dim(x, first, size, axis=0)
        return chosen.reshape(-1, *x.shape[3:])

    return jax.tree.map(of_leaf, rules)


@jax.jit
def _forgotten(sums: Params, ended: jax.Array) -> Params:
    """Return ``sums [R, G, ...]`` with zeros where the life ``ended [R, G]``."""

    def of_leaf(x: jax.Array) -> jax.Array:
        return jnp.where(ended.reshape(*ended.shape, *[1] * (x.ndim - 2)), 0, x)

    return jax.tree.map(of_leaf, sums)
