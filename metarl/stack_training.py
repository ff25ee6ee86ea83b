"""Meta-gradients through the updates of one stack's agents, and the windows of these.

Host code under `meta_training.py`, which moves the rule; the agents' lives are in
`stack_agents.py`. `StackTraining.play` is what estimators that differentiate call.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from metarl import experiment as experiments
from metarl.agents.agent import AgentState
from metarl.config import TrainConfig
from metarl.experiment import Stack
from metarl.meta.estimators import ExactEstimator, Population
from metarl.meta.inner_loop import Window
from metarl.meta_step_arrays import block_window, with_steps_of
from metarl.rules.base import Metrics
from metarl.sliding import SlidingWindow
from metarl.stack_agents import Measure, StackAgents, unmeasured
from metarl.types import Params, Rollout


class StackTraining(StackAgents):
    """A stack's agents, and what is differentiated of their updates."""

    def __init__(
        self,
        stack: Stack,
        config: TrainConfig,
        *,
        seed: int | None = None,
        measure: Measure = unmeasured,
    ) -> None:
        """Build the first agents; then `start` or `restore`; see `StackAgents`."""
        super().__init__(stack, config, seed=seed, measure=measure)
        self._sliding = SlidingWindow(config.meta) if config.meta.overlaps else None

    # --- Checkpoints --------------------------------------------------------------

    @property
    def keeps_batches(self) -> bool:
        """Whether trajectories are kept: in replays, or in a sliding window."""
        return super().keeps_batches or self._sliding is not None

    def tree(self, *, replays: bool = True) -> dict[str, Any]:
        """Return all arrays that `restore` needs to go on from here.

        Args:
          replays: with the agents' replays and windows that slide, without which they
            begin empty.
        """
        window = self._sliding.tree() if self._sliding and replays else {}
        return {**super().tree(replays=replays), "window": window}

    def like(self, *, replays: bool = True) -> dict[str, Any]:
        """Return what `tree` looks like, whatever has happened."""
        agents = self.population.agents
        window = self._sliding.like(agents) if self._sliding and replays else {}
        return {**super().like(replays=replays), "window": window}

    def restore(
        self,
        tree: Mapping[str, Any],
        *,
        report: Callable[[int, int], None] | None = None,
        replay_pools: bool = True,
    ) -> None:
        """Go on from ``tree``; see `StackAgents.restore`."""
        if self._sliding is not None and tree["window"]:
            self._sliding.restore(tree["window"])
        super().restore(tree, report=report, replay_pools=replay_pools)

    # --- One meta-step ------------------------------------------------------------

    def meta_gradient(
        self, meta_params: Params, meta_step: int
    ) -> tuple[Params, Metrics]:
        """Play, and return the gradients ``[G, ...]`` and metrics ``[G]`` of it.

        Both may still be under way.

        Args:
          meta_params: the rule.
          meta_step: meta-steps done before.
        """
        key = experiments.meta_step_key(self.stack, self._seed, meta_step)
        estimator = self.stack.estimator
        assert isinstance(estimator, ExactEstimator)
        self.population, grads, metrics = estimator(
            self.play, meta_params, self.population, key
        )
        return grads, metrics

    def begin_ahead(self, meta_step: int, *, drain: bool) -> None:
        """Begin to act for the meta-step after the first ``meta_step``, if possible.

        Args:
          meta_step: meta-steps done before it.
          drain: whether the episodes will be drained before that.
        """
        key = experiments.meta_step_key(self.stack, self._seed, meta_step)
        act_keys, _ = self._split(key)
        self.rollouts.begin_ahead(self.population.agents, act_keys, drain=drain)

    def play(
        self, meta_params: Params, population: Population, key: jax.Array
    ) -> tuple[Population, jax.Array, Window]:
        """Act and update N times, then act for validation; see `estimators.Play`.

        A sliding window takes s updates more, and those before from where it was. Here
        the agents are those that acted; the updates of the window are computed anew by
        the estimator, with the rule as it is.
        """
        start = kept = population.agents
        assert population.values is not None
        rollouts: list[Rollout] = []

        def note(agents: AgentState, rollout: Rollout) -> None:
            nonlocal kept
            if self._sliding is not None and len(rollouts) == self._sliding.kept_before:
                kept = agents
            rollouts.append(rollout)

        _, update_keys = keys = self._split(key)
        agents, validation = self._live(meta_params, start, keys, note)
        if self._sliding is None:
            window = block_window(
                start, population.values, rollouts, update_keys, validation
            )
        else:
            rollouts[-1] = with_steps_of(validation, rollouts[-1])
            self._sliding.extend(rollouts, update_keys, born=start, kept=kept)
            window = self._sliding.window(population.values, validation)
        objective = jnp.mean(validation.returns, axis=(1, 2))
        return dataclasses.replace(population, agents=agents), objective, window

    def _bear(self, ended: npt.NDArray[np.bool_], newborn: Population) -> None:
        super()._bear(ended, newborn)
        if self._sliding is not None:
            self._sliding.forget(newborn.agents, ended)
