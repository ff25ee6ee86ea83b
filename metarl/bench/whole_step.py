"""Prepare a whole meta-step of a run: acting, updates, meta-gradient, meta-update."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from metarl.bench.cache import preparing
from metarl.bench.measure import Prepare, Subject
from metarl.bench.parts import count, refuse_evolution, trajectories
from metarl.config import BenchConfig, TrainConfig
from metarl.meta_training import MetaTraining
from metarl.run_folder import load_parent
from metarl.stack_training import StackTraining


@contextlib.contextmanager
def train_step(config: BenchConfig) -> Iterator[Subject]:
    """What `metarl train` repeats, without its folder."""
    refuse_evolution(config)
    settings = config.model_dump(exclude={"bench"})
    settings["meta_steps"] = 2**31 - 1  # the last ones would not overlap
    train = TrainConfig.model_validate(settings)
    params = None
    if train.initial_rule is not None:
        params = load_parent(train.initial_rule, train).meta_params
    with contextlib.ExitStack() as stack:
        with preparing(config):
            training = stack.enter_context(MetaTraining(train, initial_params=params))
            training.start()
        yield _subject(config, training)


def _subject(config: BenchConfig, training: MetaTraining) -> Subject:
    groups = len(training.experiment.tasks)
    length, meta = config.population.rollout_length, config.meta
    rollouts = meta.acted_updates + meta.validation_rollouts
    (first, *_) = training.stacks
    assert isinstance(first, StackTraining)
    agents = first.population.agents
    # A call waits for what training waits for: where a meta-step overlaps with the one
    # before, so it does here, and the median is that of steps in a row.
    return Subject(
        training.meta_step,
        env_steps=groups * config.environment.num_envs * length * rollouts,
        facts={
            "games": ",".join(training.experiment.games),
            "agents": groups,
            "parameters": count(agents.params) // groups,
            "meta_parameters": count(training.meta.params),
            "num_envs": config.environment.num_envs,
            "trajectories": trajectories(config),
            "num_threads": config.environment.num_threads,
            "rollout_length": length,
            "chunk": config.population.chunk,
            "inner_updates": meta.inner_updates,
            "validation_rollouts": meta.validation_rollouts,
            "estimator": meta.estimator,
            "remat": meta.remat,
        },
    )


CASES: dict[str, Prepare] = {"train-step": train_step}
