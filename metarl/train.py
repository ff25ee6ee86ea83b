"""The meta-training loop, in reading order: act, learn, differentiate, move the rule.

Host code: it owns the run's folder, its checkpoints, signals and clocks. One
meta-step is `MetaTraining.meta_step`; `meta_log.py` makes rows of its metrics.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from metarl import experiment as experiments
from metarl import meta_log, rule_files
from metarl.agents import population as agents_population
from metarl.agents.agent import Agent, AgentState
from metarl.checkpoint import AS_STORED, CheckpointStore
from metarl.config import MetaOptimizerConfig, TrainConfig
from metarl.console import Progress, heartbeat, say
from metarl.meta import trainer
from metarl.meta.estimators import Population
from metarl.meta.inner_loop import Window
from metarl.meta.objective import ValueState
from metarl.numerics import global_norm
from metarl.provenance import git_commit
from metarl.rollout.actor import POOL_KEYS, Actor
from metarl.rollout.ahead import RolloutQueue
from metarl.rules.base import Metrics
from metarl.run_folder import RunFolder, describe_machine, load_parent
from metarl.runtime import release_memory
from metarl.stop_signals import stop_signals
from metarl.tracking import Position, RunLabels, Tracker
from metarl.types import Params, Rollout

EXIT_DONE, EXIT_FAILED, EXIT_PREEMPTED = 0, 1, 75


def main(config: TrainConfig, *, resume: Path | None = None) -> int:
    """Meta-train a rule as `metarl train` does; return the exit code.

    Args:
      config: resolved.
      resume: the run to go on with; `config` is then its own, with overrides.
    """
    if resume is None:
        folder = new_run(config)
    else:
        folder = RunFolder(resume)
        folder.accept_changes(config)
    return go_on(config, folder)


def go_on(config: TrainConfig, folder: RunFolder) -> int:
    """Take up the run in ``folder`` where it stands; return the exit code."""
    with (
        folder.locked(),
        stop_signals() as told_to_stop,
        contextlib.ExitStack() as stack,
    ):
        with heartbeat("preparing agents and environments"):
            training = stack.enter_context(MetaTraining(config, folder))
            training.begin()
        return training.run(told_to_stop)


def new_run(config: TrainConfig) -> RunFolder:
    """Return the folder of a new run, made once its parts are known to fit together.

    Raises:
      UserError: they do not, or there is a run in the folder.
    """
    experiment = experiments.build(config)

    def initial_state() -> object:
        params = experiments.initial_meta_params(experiment, config)
        return experiments.initial_state(experiment, config, params)

    jax.eval_shape(initial_state)
    if config.initial_rule is not None:
        load_parent(config.initial_rule, config)
    return RunFolder.create(config)


class MetaTraining:
    """One run: what it is made of, and where it stands."""

    def __init__(self, config: TrainConfig, folder: RunFolder) -> None:
        """Build the parts and the first state; `begin` may replace the latter."""
        self.config, self.folder = config, folder
        self.experiment = experiments.build(config)
        self.parent = folder.parent(config)
        self.initial_params: Params = (
            experiments.initial_meta_params(self.experiment, config)
            if self.parent is None
            else jax.device_put(self.parent.meta_params)
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
        self.checkpoints = CheckpointStore(
            folder.checkpoints, keep=config.checkpoint.keep
        )
        self.log = meta_log.MetaLog(self.experiment, self.actor)

    def __enter__(self) -> MetaTraining:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Free the environments and finish the last save."""
        self.rollouts.close()
        self.actor.close()
        self.checkpoints.close()

    # --- The loop -----------------------------------------------------------------

    def run(self, told_to_stop: Callable[[], bool] = lambda: False) -> int:
        """Take meta-steps until they are done or ``told_to_stop``."""
        total = self.config.meta_steps
        if self.meta_steps >= total:
            say(
                f"{self.folder.path}: finished already, after {self.meta_steps} "
                "meta-steps (extend it with meta_steps=...)"
            )
            return EXIT_DONE
        say(f"run: {self.folder.path}")
        for line in meta_log.announcement(self.experiment, self.meta.params):
            say(line)
        self.log.start(self.env_steps)
        with self._tracker() as tracker:
            # The first meta-step compiles, and says so in lines of its own.
            with heartbeat("compiling and taking the first meta-step"):
                row = self._step_and_log(tracker)
            release_memory()
            with Progress(
                total, "meta-training", "meta_step", done=self.meta_steps
            ) as progress:
                progress.update(self.meta_steps, self._shown(row))
                while not (self.meta_steps >= total or told_to_stop() or self.failure):
                    if self.meta_steps % self.config.checkpoint.every == 0:
                        self.save()
                    row = self._step_and_log(tracker)
                    progress.update(self.meta_steps, self._shown(row))
            self.save()
            tracker.log_artifact(self.folder.rule)
            if self.failure is not None:
                tracker.close(exit_code=EXIT_FAILED)
        if self.failure is not None:
            say(f"meta_step={self.meta_steps}: {self.failure}")
            return EXIT_FAILED
        return self._farewell()

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
            self.rollouts.begin_ahead(agents, act_keys, drain=self._is_logged)
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
    def _is_logged(self) -> bool:
        return self.meta_steps % self.config.tracking.log_every == 0

    # --- What is kept -------------------------------------------------------------

    def begin(self) -> None:
        """Take up the newest checkpoint, or start anew where there is none."""
        step = self.checkpoints.latest_step()
        if step is None:
            self.actor.start()
            # Compiled here, and not when the first life ends.
            self.population = experiments.reborn(
                self.population,
                self.population,
                jax.device_put(np.zeros(len(self.lives), bool)),
            )
            if self.parent is None:
                # What there was before any meta-step, to compare with.
                params = jax.device_get(self.initial_params)
                manifest = self._manifest(games_seen=())
                rule_files.save_rule(self.folder.initial_rule, params, manifest)
            self._write_rule()
            return
        saved = self.checkpoints.metadata(step)
        if (machine := describe_machine()) != saved["machine"]:
            say(
                f"warning: the run was saved on {saved['machine']}, and goes on on "
                f"{machine}: results will differ in their last bits from there on"
            )
        pool = dict.fromkeys(POOL_KEYS, AS_STORED)
        tree = self.checkpoints.restore(step, self._tree([pool] * self.actor.num_pools))
        self.meta, self.population = tree["meta"], tree["population"]
        self.meta_steps, self.env_steps = step, int(str(saved["env_steps"]))
        self.lives = np.array(tree["lives"])
        if step < self.config.meta_steps:
            self.actor.restore(tree["pools"], report=meta_log.report_replay())

    def save(self) -> None:
        """Store everything that is needed to go on, and the rule."""
        metadata = {"env_steps": self.env_steps, "machine": describe_machine()}
        tree = self._tree(self.rollouts.pool_states())
        self.checkpoints.save(self.meta_steps, tree, metadata)
        self._write_rule()

    def _tree(self, pools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return {
            "meta": self.meta,
            "population": self.population,
            "lives": self.lives,
            "pools": pools,
        }

    def _write_rule(self) -> None:
        manifest = self._manifest(self.experiment.games)
        if self.parent is not None:
            parents = [(self.parent.name, self.parent.manifest)]
            manifest = rule_files.inherit(manifest, parents)
        rule_files.save_rule(
            self.folder.rule, jax.device_get(self.meta.params), manifest
        )

    def _manifest(self, games_seen: Sequence[str]) -> rule_files.Manifest:
        config = self.config
        return rule_files.new_manifest(
            config.update_rule,
            games_seen=games_seen,
            meta_steps=self.meta_steps,
            env_steps=self.env_steps,
            agent={
                "agent": config.agent.model_dump(mode="json"),
                "rollout_length": config.population.rollout_length,
                "num_envs": config.environment.num_envs,
                "environment": config.environment.model_dump(mode="json"),
            },
        )

    # --- What is said -------------------------------------------------------------

    def _step_and_log(self, tracker: Tracker) -> dict[str, float]:
        metrics = self.meta_step()
        if self._is_logged:
            metrics["distance"] = _relative_distance(
                self.meta.params, self.initial_params
            )
            row = self.log.row(
                jax.device_get(metrics),
                self.rollouts.drain_episodes(),
                env_steps=self.env_steps,
            )
            tracker.log(row, global_step=self.env_steps, meta_step=self.meta_steps)
        return self.log.newest

    def _shown(self, row: dict[str, float]) -> dict[str, float | None]:
        atari = self.experiment.tasks[0].game.family == "atari"
        skip = self.config.environment.atari.frame_skip if atari else 1
        return meta_log.shown(row, frames_per_step=skip) if row else {}

    def _farewell(self) -> int:
        moved = float(_relative_distance(self.meta.params, self.initial_params))
        say(
            f"{self.folder.path}: {self.meta_steps} meta-steps, {self.env_steps:,} "
            f"environment steps; the meta-parameters moved by {moved:.3%} of their norm"
        )
        say(f"rule: {self.folder.rule}")
        if self.meta_steps >= self.config.meta_steps:
            return EXIT_DONE
        say(f"stopped and saved; go on with: metarl train --resume {self.folder.path}")
        return EXIT_PREEMPTED

    def _tracker(self) -> Tracker:
        position = None
        if self.meta_steps > 0:
            position = Position(self.env_steps, self.meta_steps)
        commit = git_commit()
        labels = RunLabels(
            name=self.folder.path.name,
            group=self.config.exp_name,
            tags=() if commit is None else (commit,),
        )
        return Tracker(
            self.folder.path,
            self.config.tracking,
            self.config.model_dump(mode="json"),
            labels,
            resume=position,
        )


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
