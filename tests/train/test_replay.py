"""Agents of a population that learn from trajectories of theirs again."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_run

from metarl import experiment as experiments
from metarl import train
from metarl.config import TrainConfig
from metarl.errors import UserError
from metarl.run_folder import RunFolder
from metarl.stack_training import StackTraining
from metarl.types import Rollout


def config(folder: Path, *overrides: str) -> TrainConfig:
    return tiny_run.config(
        folder,
        tiny_run.SCALED,
        "population={replay: {share: 0.5, capacity: 20}, lifetime_env_steps: 200}",
        *overrides,
    )


def trajectories(rollout: Rollout, first: int = 0) -> list[bytes]:
    """Return what each trajectory ``[T, B]`` from ``first`` on holds, all in one."""
    return [
        b"".join(
            np.ascontiguousarray(x[:, b]).tobytes()
            for x in (rollout.observations, *jax.tree.leaves(rollout.transitions))
        )
        for b in range(first, rollout.returns.shape[0])
    ]


def test_updates_learn_from_new_and_replayed_trajectories(tmp_path: Path) -> None:
    given = config(tmp_path)
    experiment = experiments.build(given)
    params = experiments.initial_meta_params(experiment, given)
    stack = StackTraining(experiment.only, given)
    stack.start()
    acted: list[set[bytes]] = [set(), set()]
    last = None
    for n in range(5):
        key = jax.random.key(n)
        population, _, window = stack.play(params, stack.population, key)
        window = jax.device_get(window)
        assert window.rollouts.returns.shape == (2, 2, 1, 8)
        assert window.validation.returns.shape == (2, 1, 4)
        for update in range(2):
            for group in range(2):
                rollout = jax.tree.map(
                    lambda x, g=group, n=update: x[g, n, 0], window.rollouts
                )
                new, replayed = trajectories(rollout)[:4], trajectories(rollout, 4)
                acted[group] |= set(new)
                assert set(replayed) <= acted[group]
                if update == 1:
                    # The new ones go on where those before have ended.
                    np.testing.assert_array_equal(
                        rollout.observations[0, :4], last[group][-1, :4]
                    )
            last = window.rollouts.observations[:, update, 0]
        stack.population = population
        ended = stack.end_lifetimes(n + 1)
        for group in np.flatnonzero(ended):
            acted[group] = set()  # a new agent has lived through none of it
    stack.close()
    assert stack.lives.sum() >= 2


def states(folder: Path) -> list[np.ndarray]:
    with train.TrainingRun(tiny_run.resumed(folder), RunFolder(folder)) as run:
        run.begin()
        (stack,) = run.training.stacks
        assert stack.lives.sum() > 0
        kept = (run.training.meta, stack.population, stack._replays.state())
        return [np.asarray(leaf) for leaf in jax.tree.leaves(kept)]


def test_resuming_with_replay_changes_nothing(tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert train.main(config(whole, "meta_steps=5")) == 0
    assert train.main(config(stopped, "meta_steps=3")) == 0
    longer = tiny_run.resumed(stopped, "meta_steps=5", "population.overlap=always")
    assert train.main(longer, resume=stopped) == 0
    for left, right in zip(states(whole), states(stopped), strict=True):
        np.testing.assert_array_equal(left, right)


def test_replays_that_are_not_saved_begin_empty(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, without = tmp_path / "run", "checkpoint.replay=false"
    life = "population.lifetime_env_steps=100000"
    assert train.main(config(folder, "meta_steps=2", life, without)) == 0
    assert "begin empty" not in capsys.readouterr().out
    with train.TrainingRun(tiny_run.resumed(folder), RunFolder(folder)) as run:
        run.begin()
        (stack,) = run.training.stacks
        assert [len(replay) for replay in stack._replays._replays] == [0, 0]
    assert (
        "warning: checkpoint 2 was saved with checkpoint.replay=false: replays and "
        "sliding windows begin empty"
    ) in capsys.readouterr().out
    # What is saved from here on is whole again.
    longer = tiny_run.resumed(folder, "meta_steps=3", "checkpoint.replay=true")
    assert train.main(longer, resume=folder) == 0
    with train.TrainingRun(tiny_run.resumed(folder), RunFolder(folder)) as run:
        run.begin()
        (stack,) = run.training.stacks
        assert [len(replay) for replay in stack._replays._replays] == [8, 8]


def test_a_batch_must_be_whole(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"population\.replay\.share=0\.3: a batch of"):
        experiments.build(config(tmp_path, "population.replay.share=0.3"))
