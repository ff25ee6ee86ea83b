"""A population of agents and the rule that it moves: one meta-step after another.

In reading order: act, learn, differentiate, move the rule. Host code; the agents and
their environments are in `stack_agents.py`, and `train.py` decides how long it goes
on, and what is kept of it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from metarl import experiment as experiments
from metarl import meta_log
from metarl.config import MetaOptimizerConfig, TrainConfig
from metarl.envs.pool import Episodes
from metarl.evolution_training import EvolutionTraining
from metarl.meta import trainer
from metarl.numerics import global_norm
from metarl.rules.base import Metrics
from metarl.stack_training import StackTraining
from metarl.types import Params

Tree = TypeVar("Tree")


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
        self.meta = experiments.initial_meta(
            self.experiment, jax.tree.map(jnp.copy, self.initial_params)
        )
        self.meta_steps = self.env_steps = 0
        self.failure: str | None = None
        self.log = meta_log.MetaLog(self.experiment)
        kind = EvolutionTraining if config.meta.evolves else StackTraining
        self.stacks: tuple[StackTraining | EvolutionTraining, ...] = tuple(
            kind(stack, config, measure=self.log.measure)
            for stack in self.experiment.stacks
        )

    def __enter__(self) -> MetaTraining:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Free the environments."""
        self.close()

    def close(self) -> None:
        """Free the environments."""
        for stack in self.stacks:
            stack.close()

    def start(self) -> None:
        """Begin anew: reset the environments."""
        for stack in self.stacks:
            stack.start()

    @property
    def keeps_batches(self) -> bool:
        """Whether trajectories are kept: in replays, or in sliding windows."""
        return any(stack.keeps_batches for stack in self.stacks)

    def tree(self, *, replays: bool = True) -> dict[str, Any]:
        """Return all arrays that `restore` needs to go on from here.

        Args:
          replays: with the agents' replays and windows that slide, without which they
            begin empty.
        """
        stacks = [stack.tree(replays=replays) for stack in self.stacks]
        return {"meta": self.meta, "stacks": stacks}

    def like(self, *, replays: bool = True) -> dict[str, Any]:
        """Return what `tree` looks like, whatever has happened."""
        stacks = [stack.like(replays=replays) for stack in self.stacks]
        return {"meta": self.meta, "stacks": stacks}

    def restore(
        self, tree: Mapping[str, Any], *, meta_steps: int, env_steps: int
    ) -> None:
        """Go on from ``tree``, with the meta-steps and environment steps done so far.

        The environments of a run that is over are not replayed.
        """
        self.meta = tree["meta"]
        self.meta_steps, self.env_steps = meta_steps, env_steps
        for stack, of_stack in zip(self.stacks, tree["stacks"], strict=True):
            stack.restore(
                of_stack,
                report=meta_log.report_replay(),
                replay_pools=meta_steps < self.config.meta_steps,
            )

    @property
    def distance(self) -> jax.Array:
        """How far the meta-parameters moved, relative to their norm at the start."""
        return _relative_distance(self.meta.params, self.initial_params)

    @property
    def lives(self) -> npt.NDArray[np.int64]:
        """How many lives of every group are over, ``[G]``."""
        return np.concatenate([stack.lives for stack in self.stacks])

    def meta_step(self) -> Metrics:
        """Let the population act and learn, and move the meta-parameters once.

        Returns:
          The metrics of the estimator, each ``[G]``, and of the meta-update.
        """
        results = [
            stack.meta_gradient(self.meta.params, self.meta_steps)
            for stack in self.stacks
        ]
        grads, metrics = (tuple(x) for x in zip(*results, strict=True))
        self.env_steps += sum(stack.take_env_steps() for stack in self.stacks)
        self.meta_steps += 1
        # The meta-gradient is still being computed, and what follows needs it not.
        ended = [stack.end_lifetimes(self.meta_steps) for stack in self.stacks]
        if self.meta_steps < self.config.meta_steps:
            for stack in self.stacks:
                stack.begin_ahead(self.meta_steps, drain=self.is_logged)
        with self.log.measure("meta"):
            self.meta, update_metrics = _meta_update(
                self.config.meta.optimizer, self.meta, grads
            )
            self._reset_optimizers(np.concatenate(ended))
            jax.block_until_ready(self.meta)
        self._check_skipped(grads)
        return {**_join(metrics), **update_metrics}

    def _reset_optimizers(self, ended: npt.NDArray[np.bool_]) -> None:
        """Begin the meta-optimisers of groups anew whose life ``ended``, if asked to.

        After the meta-step, whose gradients are those of the old lives.
        """
        if self.config.meta.optimizer.reset_with_lifetime and ended.any():
            self.meta = trainer.reset_optimizers(self.meta, jax.device_put(ended))

    def _check_skipped(self, grads: Sequence[Params]) -> None:
        """Let the run fail where too many meta-gradients in a row were not finite."""
        skipped = int(jax.device_get(self.meta.skipped_in_a_row))
        if skipped >= self.config.meta.max_skipped:
            leaves = filter(None, map(trainer.offending_leaf, grads))
            # Squares may overflow where no entry does.
            leaf = next(leaves, "their norm")
            self.failure = (
                f"meta-gradients were not finite in {skipped} meta-steps in a row, "
                f"in {leaf} first (meta.max_skipped)"
            )

    @property
    def is_logged(self) -> bool:
        """Whether a row of metrics is due after this meta-step."""
        return self.meta_steps % self.config.tracking.log_every == 0

    def row(self, metrics: Metrics) -> dict[str, float]:
        """Return a row of metrics, with what happened since the one before.

        Args:
          metrics: what the last meta-step returned.
        """
        times: dict[str, float] = {}
        for stack in self.stacks:
            for stage, seconds in stack.take_times().items():
                times[stage] = times.get(stage, 0.0) + seconds
        return self.log.row(
            jax.device_get({**metrics, "distance": self.distance}),
            self._drain_episodes(),
            env_steps=self.env_steps,
            times=times,
        )

    def _drain_episodes(self) -> list[list[Episodes]]:
        return [group for stack in self.stacks for group in stack.drain_episodes()]


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _meta_update(
    config: MetaOptimizerConfig, state: trainer.MetaState, grads: tuple[Params, ...]
) -> tuple[trainer.MetaState, Metrics]:
    return trainer.update(config, state, _join(grads))


@jax.jit
def _join(trees: tuple[Tree, ...]) -> Tree:
    """Return the trees of all stacks as one, joined along the axis G."""
    if len(trees) == 1:
        return trees[0]
    return jax.tree.map(lambda *x: jnp.concatenate(x), *trees)


@jax.jit
def _relative_distance(params: Params, origin: Params) -> jax.Array:
    difference = jax.tree.map(jnp.subtract, params, origin)
    return global_norm(difference) / jnp.maximum(global_norm(origin), 1e-12)
