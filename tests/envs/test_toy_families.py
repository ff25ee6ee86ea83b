"""Catch, classic control, FrozenLake and MiniGrid, pinned on real pools."""

from __future__ import annotations

import envpool
import gymnasium.envs.toy_text.frozen_lake
import numpy as np
import pytest
from played_pools import play

from metarl.config import EnvironmentConfig
from metarl.envs import families, suites
from metarl.envs.pool import Pool
from metarl.envs.tasks import Task, resolve_environment


def test_catch_lasts_until_the_ball_lands() -> None:
    (task,) = resolve_environment(EnvironmentConfig(suite="catch_5x5"))
    pool = Pool(task, EnvironmentConfig(), num_envs=16, seed=1)
    assert pool.reset().sum() == 32  # ball and paddle
    steps = play(pool, lambda _: 1, 4)
    assert not any(step.is_terminal.any() for step in steps[:3])
    assert steps[3].is_terminal.all()
    assert set(steps[3].raw_rewards.tolist()) == {-1.0, 1.0}
    assert not pool.step(np.ones(16, np.int32)).valid.any()


def test_cartpole_falls_or_is_cut_after_500_steps() -> None:
    pool = Pool("CartPole", EnvironmentConfig(), num_envs=4, seed=1)
    state = pool.reset()
    cut = terminal = 0
    for t in range(520):
        # The first two are balanced, the others pushed to one side.
        lean = state @ np.array([0.1, 0.4, 1.0, 1.0], np.float32)
        step = pool.step(np.where(np.arange(4) < 2, lean > 0, 1).astype(np.int32))
        state = step.observations
        ends = (np.abs(state[:, 0]) > 2.4) | (np.abs(state[:, 2]) > 0.20943951)
        assert np.array_equal(step.is_terminal, step.valid & ends)
        assert np.array_equal(step.raw_rewards, step.valid.astype(np.float32))
        cut += int(step.cut.sum())
        terminal += int(step.is_terminal.sum())
        if step.cut.any():
            assert t == 499
    assert cut == 2
    assert terminal > 50


def test_acrobot_swings_up_or_is_cut_after_500_steps() -> None:
    pool = Pool("Acrobot", EnvironmentConfig(), num_envs=8, seed=1)
    state = pool.reset()
    assert state.shape == (8, 6)
    terminal = 0
    for t in range(520):
        # The first four push with the first link's motion, the others do nothing.
        pushing = np.where(state[:, 4] > 0, 0, 2)
        step = pool.step(np.where(np.arange(8) < 4, pushing, 1))
        state = step.observations
        cos1, sin1, cos2, sin2 = state[:, :4].T
        height = -cos1 - (cos1 * cos2 - sin1 * sin2)  # of the tip, over the pivot
        assert np.array_equal(step.is_terminal, step.valid & (height > 1))
        paid = step.valid & ~step.is_terminal
        assert np.array_equal(step.raw_rewards, -paid.astype(np.float32))
        assert step.cut[:4].sum() == 0
        assert step.cut[4:].all() == (t == 499)
        terminal += int(step.is_terminal.sum())
    assert terminal > 10


def test_mountain_car_arrives_or_is_cut_after_200_steps() -> None:
    pool = Pool("MountainCar", EnvironmentConfig(), num_envs=8, seed=1)
    state = pool.reset()
    assert state.shape == (8, 2)
    terminal = 0
    for t in range(210):
        pushing = np.where(state[:, 1] >= 0, 2, 0)
        step = pool.step(np.where(np.arange(8) < 4, pushing, 1))
        state = step.observations
        arrived = (state[:, 0] >= 0.5) & (state[:, 1] >= 0)
        assert np.array_equal(step.is_terminal, step.valid & arrived)
        assert np.array_equal(step.raw_rewards, -step.valid.astype(np.float32))
        assert step.cut[:4].sum() == 0
        assert step.cut[4:].all() == (t == 199)
        terminal += int(step.is_terminal.sum())
    assert terminal >= 4


@pytest.mark.parametrize(
    ("game", "rewards", "ended"),
    [("Acrobot", [0.0, -1.0], [1, 0]), ("MountainCar", [-1.0] * 4, [1, 0, 0, 1])],
)
def test_an_end_in_the_very_last_step_is_told_from_the_time_limit(
    game: str, rewards: list[float], ended: list[int]
) -> None:
    family = families.family_of(Task(suites.get_game(game)))
    state = np.array([[0.5, 0.0], [0.49, 0.03], [0.6, -0.01], [0.53, 0.05]])
    raw = np.pad(state[: len(rewards)], ((0, 0), (0, 4)))
    assert family.ended(raw, np.array(rewards), {}).tolist() == ended


def test_frozen_lake_is_one_hot_and_ends_in_holes_and_the_goal() -> None:
    maps = gymnasium.envs.toy_text.frozen_lake.MAPS
    for name, size in (("FrozenLake-v1", 4), ("FrozenLake8x8-v1", 8)):
        cells = "".join(maps[f"{size}x{size}"])
        ends = {i for i, cell in enumerate(cells) if cell in "HG"}
        family = families.family_of(Task(suites.get_game(name)))
        every = np.arange(size**2)
        told = family.ended(every, np.zeros(size**2), {})
        assert set(np.flatnonzero(told).tolist()) == ends
        pool = Pool(name, EnvironmentConfig(), num_envs=64, seed=1)
        assert pool.reset().argmax(-1).tolist() == [0] * 64
        rng = np.random.default_rng(0)
        seen, cut = set(), 0
        for _ in range(400):
            step = pool.step(rng.integers(1, 3, size=64))
            assert step.observations.sum(-1).tolist() == [1] * 64
            where = step.observations.argmax(-1)
            seen |= set(where[step.is_terminal].tolist())
            assert not set(where[~step.is_terminal].tolist()) & ends
            assert np.array_equal(step.raw_rewards == 1, where == size**2 - 1)
            cut += int(step.cut.sum())
        assert size**2 - 1 in seen
        assert seen <= ends


def test_frozen_lake_is_cut_after_100_steps() -> None:
    pool = Pool("FrozenLake", EnvironmentConfig(), num_envs=512, seed=1)
    pool.reset()
    length = np.zeros(512, np.int64)
    cuts: list[int] = []
    for _ in range(120):
        step = pool.step(np.full(512, 3))  # UP: stays in the upper row for long
        length = np.where(step.valid, length + 1, 0)
        cuts += length[step.cut].tolist()
    assert cuts
    assert set(cuts) == {100}


def test_minigrid_is_one_hot_per_code_plus_direction() -> None:
    config = EnvironmentConfig(suite="minigrid")
    for task in resolve_environment(config):
        name = task.game.task_id
        pool = Pool(task, config, num_envs=3, seed=7)
        raw = envpool.make(name, env_type="gymnasium", num_envs=3, seed=7)
        encoded, (original, _) = pool.reset(), raw.reset()
        rng = np.random.default_rng(0)
        for _ in range(60):
            cells = encoded[:, :-4].reshape(3, 7, 7, 20)
            parts = np.split(cells, [11, 17], axis=-1)
            for channel, part in enumerate(parts):
                assert (part.sum(-1) == 1).all()
                assert np.array_equal(part.argmax(-1), original["image"][..., channel])
            assert (encoded[:, -4:].sum(-1) == 1).all()
            assert np.array_equal(encoded[:, -4:].argmax(-1), original["direction"])
            actions = rng.integers(7, size=3)
            encoded = pool.step(actions).observations
            original = raw.step(actions)[0]


def test_listed_minigrid_tasks_have_one_mission() -> None:
    """Agents do not see the mission, so it must not change."""
    for name, game in suites.GAMES.items():
        if game.family == "minigrid":
            pool = envpool.make(name, env_type="gymnasium", num_envs=16, seed=1)
            assert len(np.unique(pool.reset()[0]["mission"], axis=0)) == 1, name


def test_minigrid_ends_with_a_reward_or_a_cut() -> None:
    pool = Pool("MiniGrid-Empty-Random-5x5", EnvironmentConfig(), num_envs=32, seed=1)
    pool.reset()
    rng = np.random.default_rng(0)
    ends = np.zeros(2, np.int64)
    for _ in range(220):
        step = pool.step(rng.integers(3, size=32))
        assert np.array_equal(step.is_terminal, step.raw_rewards > 0)
        ends += [int(step.is_terminal.sum()), int(step.cut.sum())]
    assert ends.min() > 0
    episodes = pool.drain_episodes()
    assert len(episodes.returns) == ends.sum()
    assert (episodes.returns > 0).sum() == ends[0]
    assert set(episodes.lengths[episodes.returns == 0].tolist()) == {100}
