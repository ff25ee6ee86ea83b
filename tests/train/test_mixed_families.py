"""Populations of games of several shapes: stacks apart, and one rule that they move."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_run

import metarl
from metarl import experiment as experiments
from metarl import meta_log, train
from metarl.config import TrainConfig
from metarl.errors import UserError
from metarl.meta import trainer
from metarl.meta_training import MetaTraining
from metarl.run_folder import RunFolder
from metarl.stack_training import StackTraining

MIXED = (
    tiny_run.SCALED,
    "environment={suite: null, games: [Catch-v0, CartPole-v1]}",
    "population.num_agents=3",
    "population.lifetime_env_steps=150",
    "families.cartpole={environment: {num_envs: 3}, population: {rollout_length: 4}, "
    "agent: {network: {torso: {hidden: [6]}}}}",
)


def config(folder: Path, *overrides: str) -> TrainConfig:
    return tiny_run.config(folder, *MIXED, *overrides)


def test_agents_cycle_through_all_games_and_share_stacks_by_shape() -> None:
    games = "games: [Catch-v0, CartPole-v1, MiniGrid-Empty-5x5-v0, FrozenLake-v1]"
    experiment = experiments.build(
        config(Path("run"), f"environment={{{games}}}", "population.num_agents=6")
    )
    stacks = experiment.stacks
    assert [stack.members for stack in stacks] == [(0, 4), (1, 5), (2,), (3,)]
    assert [stack.pool_spec.num_actions for stack in stacks] == [3, 2, 7, 4]
    assert [stack.environment.num_envs for stack in stacks] == [4, 3, 4, 4]
    assert [stack.population.rollout_length for stack in stacks] == [5, 4, 5, 5]
    assert len(experiment.tasks) == 6
    assert experiment.games == (
        "Catch-v0",
        "CartPole-v1",
        "MiniGrid-Empty-5x5-v0",
        "FrozenLake-v1",
    )
    # The meta-value function is as wide as the agents of its stack.
    for stack, width in zip(stacks, (8, 6, 8, 8), strict=True):
        new = jax.eval_shape(partial(experiments.first_population, stack, 1))
        assert new.values.params["value/linear_0"]["w"].shape[1:] == (1, width, 1)
    with pytest.raises(UserError, match="Catch-v0 and CartPole-v1 differ in shape"):
        _ = experiment.only


def test_a_suites_options_hold_in_a_mix() -> None:
    experiment = experiments.build(
        config(Path("run"), "environment.games=[catch_5x5, CartPole-v1, Catch-v0]")
    )
    shapes = [stack.pool_spec.observation_shape for stack in experiment.stacks]
    assert shapes == [(5, 5), (4,), (10, 5)]
    options = [dict(task.options) for task in experiment.tasks]
    assert options == [{"height": 5, "width": 5}, {}, {}]
    # What a rule has seen is told by games.
    assert experiment.games == ("Catch-v0", "CartPole-v1")


def test_frames_are_counted_where_all_games_have_as_many() -> None:
    def frames(*overrides: str) -> float | None:
        built = experiments.build(config(Path("run"), *overrides))
        row = {"global_step": 10.0, "charts/SPS": 1.0}
        skip = meta_log.frames_per_step(built)
        return meta_log.shown(row, frames_per_step=skip)["frames"]

    pong = (
        "families.atari.agent.network.torso.kind=nature",
        "environment.games=[Pong]",
    )
    assert frames() == 10
    assert frames(*pong) == 40
    assert frames(*pong, "families.atari.environment.atari.frame_skip=3") == 30
    assert frames(pong[0], "environment.games=[Pong, Catch]") is None


def test_games_of_one_shape_are_one_stack() -> None:
    atari = "environment={suite: null, games: [Pong-v5, Breakout-v5], num_envs: 2}"
    torso = "agent.network.torso={kind: nature}"
    both = tiny_run.config(Path("run"), atari, torso)
    assert [s.members for s in experiments.build(both).stacks] == [(0, 1)]
    # By their own action sets they differ.
    own = tiny_run.config(
        Path("run"), atari, torso, "environment.atari.full_action_set=false"
    )
    assert [s.members for s in experiments.build(own).stacks] == [(0,), (1,)]


def test_a_network_that_cannot_read_one_of_the_games_is_refused(tmp_path: Path) -> None:
    torso = "families.catch.agent.network.torso.kind=impala"
    said = r"'impala' takes frames.*\(for Catch-v0: families\.catch\.agent\."
    with pytest.raises(UserError, match=said):
        train.new_run(config(tmp_path / "run", torso))
    assert not (tmp_path / "run").exists()


def test_what_a_family_cannot_play_is_refused(tmp_path: Path) -> None:
    games = (
        "environment.games=[Pong]",
        "families.atari.agent.network.torso.kind=nature",
    )
    frames = "families.atari.environment.atari.max_episode_frames=2"
    said = r"families\.atari\.environment\.atari\.max_episode_frames: 2 is less"
    with pytest.raises(UserError, match=said):
        train.new_run(config(tmp_path / "run", *games, frames))
    assert not (tmp_path / "run").exists()


def test_one_rule_is_moved_by_all_stacks(tmp_path: Path) -> None:
    given = config(tmp_path / "mixed")
    with MetaTraining(given) as mixed:
        mixed.start()
        params = jax.device_get(mixed.meta.params)
        metrics = jax.device_get(mixed.meta_step())
        row = mixed.row(metrics)
        moved = jax.device_get(mixed.meta.params)
        for _ in range(3):
            newest = mixed.meta_step()
        later = mixed.row(newest)
    # [G]: two agents on Catch, one on CartPole.
    assert metrics["loss"].shape == (3,)
    assert row["meta/loss"] == pytest.approx(np.mean(metrics["loss"]))
    assert "agents/Catch-v0/episodic_return" in later
    assert "agents/CartPole-v1/episodic_return" in later
    assert "charts/episodic_return" not in later
    # 2 x 4 x 15 and 3 x 12 steps per meta-step, less the resets.
    assert 4 * 156 * 0.8 < mixed.env_steps < 4 * 156

    # Each stack alone, with agents and pools of its own, plays the same; the rule is
    # moved by the mean of all groups' steps.
    grads = []
    for stack, first, last in zip(mixed.experiment.stacks, (0, 2), (2, 3), strict=True):
        private = StackTraining(stack, given)
        private.start()
        of_stack, of_metrics = private.meta_gradient(params, 0)
        private.close()
        np.testing.assert_array_equal(of_metrics["loss"], metrics["loss"][first:last])
        grads.append(jax.device_get(of_stack))
    joined = jax.tree.map(lambda *x: np.concatenate(x), *grads)
    assert np.all(np.abs(joined["gain"]) > 0)
    state = experiments.initial_meta(mixed.experiment, params)
    state, _ = trainer.update(given.meta.optimizer, state, joined)
    for name, value in moved.items():
        np.testing.assert_allclose(state.params[name], value, rtol=1e-6)
        assert value != params[name]


def test_resuming_a_mixed_population_changes_nothing(tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert train.main(config(whole, "meta_steps=4")) == 0
    assert train.main(config(stopped, "meta_steps=2")) == 0
    longer = tiny_run.resumed(stopped, "meta_steps=4")
    assert train.main(longer, resume=stopped) == 0
    states = []
    for folder in (whole, stopped):
        resumed = tiny_run.resumed(folder)
        with train.TrainingRun(resumed, RunFolder(folder)) as run:
            run.begin()
            assert run.training.lives.sum() > 0
            assert run.training.meta_steps == 4
            populations = [stack.population for stack in run.training.stacks]
            states.append((run.training.meta, populations))
    families = metarl.load_rule(whole).manifest.agent["families"]
    assert families["catch"]["num_envs"] == 4
    assert families["cartpole"]["num_envs"] == 3
    assert families["cartpole"]["agent"]["network"]["torso"]["hidden"] == [6]
    for left, right in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_array_equal(left, right)
