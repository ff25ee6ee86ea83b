"""Families that not every machine can run: what they do where it can, else a line."""

from __future__ import annotations

import envpool
import numpy as np
import pytest

from metarl.config import EnvironmentConfig
from metarl.envs import actions, availability
from metarl.envs.pool import Pool
from metarl.envs.suites import GAMES, SUITES
from metarl.envs.tasks import Task, pool_spec, resolve_environment
from metarl.errors import UserError

CONFIG = EnvironmentConfig()


def has_procgen() -> bool:
    try:
        envpool.make_spec("CoinrunHard-v0")
    except ImportError:
        return False
    return True


procgen = pytest.mark.skipif(not has_procgen(), reason="the system has no Qt 5")
craftax = pytest.mark.skipif(
    "Craftax-Symbolic-v1" not in envpool.list_all_envs(),
    reason="this EnvPool has no Craftax",
)


def suite_tasks(name: str) -> tuple[Task, ...]:
    return resolve_environment(EnvironmentConfig(suite=name))


@procgen
def test_procgen_shows_frames_and_cuts_at_its_time_limit():
    (maze,) = (t for t in suite_tasks("procgen_easy") if "Maze" in t.game.task_id)
    pool = Pool(maze, CONFIG, num_envs=2, seed=3)
    first = pool.reset()
    assert (first.shape, first.dtype) == ((2, 64, 64, 3), np.uint8)
    assert first.max() > 100  # pixels, not fractions
    noop = pool.spec.action_meanings.index("NOOP")
    steps = [pool.step(np.full(2, noop)) for _ in range(502)]
    # A maze takes 500 steps; who stands still gets nothing.
    assert [t for t, step in enumerate(steps) if step.cut.any()] == [499]
    assert not any(step.is_terminal.any() for step in steps)
    assert [t for t, step in enumerate(steps) if not step.valid.all()] == [500]
    assert pool.drain_episodes().lengths.tolist() == [500, 500]
    pool.close()


@procgen
def test_procgen_is_channels_last_and_has_the_levels_of_its_suite():
    (task,) = (t for t in suite_tasks("procgen") if "Coinrun" in t.game.task_id)
    assert dict(task.options) == {"num_levels": 500}
    pool = Pool(task, CONFIG, num_envs=8, seed=0)
    observations = pool.reset()
    raw = envpool.make(
        "CoinrunHard-v0", env_type="gymnasium", num_envs=8, seed=0, num_levels=500
    )
    frames, info = raw.reset()
    np.testing.assert_array_equal(observations, np.moveaxis(frames, 1, -1))
    assert (info["level_seed"] >= 0).all()
    assert (info["level_seed"] < 500).all()
    assert len(set(info["level_seed"])) > 1
    pool.close()


@procgen
@pytest.mark.parametrize("suite", ["procgen", "procgen_easy"])
def test_every_procgen_game_has_as_many_actions(suite):
    for name in SUITES[suite].games:
        assert envpool.make_spec(name).action_space.n == len(actions.PROCGEN)


@procgen
def test_procgens_state_can_be_brought_back():
    left, right = (Pool("StarpilotEasy-v0", CONFIG, num_envs=3, seed=5) for _ in "ab")
    left.reset()
    rng = np.random.default_rng(0)
    for _ in range(80):
        left.step(rng.integers(0, 15, 3))
    right.restore(left.state())
    last = rng.integers(0, 15, 3)
    np.testing.assert_array_equal(
        left.step(last).observations, right.step(last).observations
    )


@craftax
@pytest.mark.parametrize(
    ("suite", "size", "number"), [("craftax", 8268, 43), ("craftax_classic", 1345, 17)]
)
def test_craftax_shows_its_state_and_ends(suite, size, number):
    (task,) = suite_tasks(suite)
    pool = Pool(task, CONFIG, num_envs=4, seed=3)
    assert pool.reset().shape == (4, size)
    assert pool.spec.num_actions == number
    rng = np.random.default_rng(0)
    steps = [pool.step(rng.integers(0, number, 4)) for _ in range(600)]
    ends = np.array([step.is_terminal for step in steps])
    valid = np.array([step.valid for step in steps])
    assert ends.any()
    np.testing.assert_array_equal(valid[1:], ~ends[:-1])
    episodes = pool.drain_episodes()
    # An achievement is worth 1, or more in the full game; health some tenths.
    assert -1 <= episodes.returns.min() <= episodes.returns.max() < 20
    pool.close()


@pytest.mark.parametrize(("suite", "num_games"), [("procgen", 16), ("craftax", 1)])
def test_shapes_are_known_without_the_library(suite, num_games):
    games = SUITES[suite].games
    specs = [pool_spec(Task(GAMES[name]), CONFIG) for name in games]
    assert len({spec.observation_shape for spec in specs}) == 1
    assert len(specs) == num_games


def test_what_procgen_needs_is_one_line(monkeypatch):
    def fail(_: str) -> None:
        raise ImportError("no Qt\nat all")

    monkeypatch.setattr(envpool, "make_spec", fail)
    with pytest.raises(UserError) as caught:
        suite_tasks("procgen")
    assert "apt-get install libqt5gui5" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_craftax_needs_is_one_line(monkeypatch):
    monkeypatch.setattr(envpool, "list_all_envs", lambda: ["Pong-v5"])
    with pytest.raises(UserError) as caught:
        availability.require("Craftax-Symbolic-v1", "craftax")
    message = str(caught.value)
    assert "needs EnvPool 1.2.7 or newer" in message
    assert "Python 3.12" in message
    assert "\n" not in message
