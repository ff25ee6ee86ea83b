"""Environments outside the tables: Gymnasium's and EnvPool's, by name."""

from __future__ import annotations

import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from metarl.config import ActorCriticConfig, EnvironmentConfig
from metarl.envs import open_games
from metarl.envs.gymnasium_pool import GymnasiumPicture
from metarl.envs.open_games import Interface, describe
from metarl.envs.pool import Pool
from metarl.envs.suites import get_game
from metarl.envs.tasks import pool_spec, resolve_environment
from metarl.errors import UserError
from metarl.rule_files import new_manifest, status

CONFIG = EnvironmentConfig()


class Counting(gymnasium.Env):
    """Shows the step and its seed; ends after 3 steps, or by time after 5.

    Its actions are numbered from 5; the highest one ends the episode at once.
    """

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = spaces.Discrete(3, start=5)

    def __init__(self, ends_at: int = 3, *, also: bool = False) -> None:
        self.ends_at, self.also = ends_at, also

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.born = seed
        self.steps = 0
        return np.array([0.0, self.born]), {}

    def step(self, action):
        assert action in (5, 6, 7), action
        self.steps += 1
        over = self.steps == self.ends_at or action == 7
        late = self.steps == 5 or (over and self.also)
        return np.array([self.steps, self.born]), float(action), over, late, {}


for name, options in {
    "Counting-v0": {},
    "CountingLate-v0": {"ends_at": 99},
    "CountingBoth-v0": {"also": True},
}.items():
    gymnasium.register(name, lambda options=options: Counting(**options))


COUNTING_INTERFACE = describe(
    "gym:Counting-v0", Counting.observation_space, Counting.action_space
)


def played(name: str, actions: list[int], num_envs: int = 1) -> list:
    pool = Pool(name, CONFIG, num_envs=num_envs, seed=40)
    pool.reset()
    steps = [pool.step(np.full(num_envs, action)) for action in actions]
    pool.close()
    return steps


def test_the_call_after_an_end_does_not_exist():
    steps = played("gym:Counting-v0", [0] * 6)
    assert [bool(s.valid[0]) for s in steps] == [True, True, True, False, True, True]
    assert [bool(s.is_terminal[0]) for s in steps] == [False, False, True] + [False] * 3
    assert not any(s.cut[0] for s in steps)
    assert [s.observations[0, 0] for s in steps] == [1, 2, 3, 0, 1, 2]
    # Our action 0 is the environment's 5; the reset pays nothing.
    assert [s.rewards[0] for s in steps] == [5, 5, 5, 0, 5, 5]


def test_no_step_touches_the_filters_of_warnings(monkeypatch):
    # They are the whole process's, and other threads may be at them.
    pool = Pool("gym:CartPole-v1", CONFIG, num_envs=2, seed=1)
    gymnasium.register("CountingShown-v0", lambda **_: Counting())
    monkeypatch.setattr(
        "metarl.envs.gymnasium_pool.interface_of", lambda _: COUNTING_INTERFACE
    )
    picture = GymnasiumPicture("gym:CountingShown-v0", seed=1)
    monkeypatch.undo()
    filters = list(warnings.filters)

    def touched(*args, **kwargs):
        raise AssertionError

    pool.reset()
    monkeypatch.setattr(warnings, "catch_warnings", touched)
    for _ in range(3):
        pool.step(np.zeros(2, np.int32))
    picture.reset()
    picture.step(np.zeros(1, np.int32))
    assert warnings.filters == filters
    picture.close()
    pool.close()


def test_a_time_limit_cuts_and_an_end_by_itself_wins():
    steps = played("gym:CountingLate-v0", [1] * 6)
    assert [bool(s.cut[0]) for s in steps] == [False] * 4 + [True, False]
    assert not any(s.is_terminal[0] for s in steps)
    assert not steps[5].valid[0]
    both = played("gym:CountingBoth-v0", [1] * 3)[-1]
    assert (both.is_terminal[0], both.cut[0]) == (True, False)


def test_every_environment_has_a_seed_of_its_own_and_episodes_are_counted():
    pool = Pool("gym:Counting-v0", CONFIG, num_envs=3, seed=40)
    assert pool.reset().tolist() == [[0, 40], [0, 41], [0, 42]]
    assert pool.observations.dtype == np.float32
    for action in ([0, 2, 1], [0, 0, 1], [0, 0, 1]):
        pool.step(np.array(action))
    episodes = pool.drain_episodes()
    assert sorted(episodes.returns) == [7.0, 15.0, 18.0]
    assert sorted(episodes.lengths) == [1, 3, 3]


def test_its_state_can_be_brought_back():
    left, right = (Pool("gym:CartPole-v1", CONFIG, num_envs=4, seed=3) for _ in "ab")
    left.reset()
    rng = np.random.default_rng(0)
    for _ in range(60):
        left.step(rng.integers(0, 2, 4))
    right.restore(left.state())
    actions = rng.integers(0, 2, 4)
    np.testing.assert_array_equal(
        left.step(actions).observations, right.step(actions).observations
    )


def test_gymnasiums_cartpole_is_envpools():
    steps = {}
    for name in ("gym:CartPole-v1", "CartPole-v1"):
        pool = Pool(name, CONFIG, num_envs=8, seed=1)
        pool.reset()
        rng = np.random.default_rng(0)
        for _ in range(400):
            pool.step(rng.integers(0, 2, 8))
        steps[name] = pool.drain_episodes()
        assert pool.spec.observation_shape == (4,)
    mean = {name: episodes.lengths.mean() for name, episodes in steps.items()}
    # Other seeds, the same physics: 22 steps for a random policy.
    assert mean["gym:CartPole-v1"] == pytest.approx(mean["CartPole-v1"], rel=0.2)


@pytest.mark.parametrize(
    ("observations", "expected"),
    [
        (spaces.Box(-1, 1, (4,)), Interface((4,), "float32", "plain", 2)),
        (spaces.Box(0, 9, (2, 3), np.int64), Interface((2, 3), "float32", "plain", 2)),
        (
            spaces.Box(0, 1, (), np.float64),
            Interface((1,), "float32", "add_channel", 2),
        ),
        (
            spaces.Box(0, 255, (96, 72, 3), np.uint8),
            Interface((96, 72, 3), "uint8", "plain", 2),
        ),
        (
            spaces.Box(0, 255, (3, 96, 72), np.uint8),
            Interface((96, 72, 3), "uint8", "channels_first", 2),
        ),
        (
            spaces.Box(0, 255, (96, 72), np.uint8),
            Interface((96, 72, 1), "uint8", "add_channel", 2),
        ),
        (
            spaces.Box(0, 10, (7, 7, 3), np.uint8),
            Interface((7, 7, 3), "float32", "plain", 2),
        ),
        (spaces.MultiBinary(5), Interface((5,), "float32", "plain", 2)),
        (
            spaces.Discrete(6, start=-2),
            Interface((6,), "bool", "one_hot", 2, first_code=-2),
        ),
    ],
)
def test_observations_are_described(observations, expected):
    assert describe("it", observations, spaces.Discrete(2)) == expected


@pytest.mark.parametrize(
    ("observations", "actions", "message"),
    [
        (
            spaces.Box(0, 1, (2,)),
            spaces.Box(0, 1, (2,)),
            "actions are Box of 2 numbers",
        ),
        (spaces.Box(0, 1, (2,)), spaces.Discrete(300), "300 actions.*at most 256"),
        (
            spaces.Dict({"a": spaces.Discrete(2)}),
            spaces.Discrete(2),
            "shows a dictionary.*allowed: a plain array",
        ),
        (spaces.Tuple([]), spaces.Discrete(2), "shows Tuple"),
        (spaces.Discrete(5000), spaces.Discrete(2), "one of 5000 numbers"),
    ],
)
def test_what_agents_cannot_play_is_told(observations, actions, message):
    with pytest.raises(UserError, match=message) as caught:
        describe("gym:It-v0", observations, actions)
    assert str(caught.value).startswith("gym:It-v0: it")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gym:CartPol-v1", "Gymnasium has no 'CartPol-v1'; did you mean 'CartPole-v1'"),
        ("gym:Pendulum-v1", "its actions are Box of 1 numbers"),
        ("gym:no_such_module:X-v0", "Gymnasium cannot make it .ModuleNotFoundError"),
        ("Pendulum-v1", "its actions are Box of 1 numbers"),
        ("MiniGrid-Fetch-5x5-N2-v0", "it shows a dictionary"),
        ("Backgammon-v1", "it is for several players"),
        ("NoSuch-v0", "environment.games: unknown game 'NoSuch-v0'"),
    ],
)
def test_names_that_cannot_be_played_are_one_line(name, message):
    with pytest.raises(UserError, match=message) as caught:
        resolve_environment(EnvironmentConfig(games=(name,)))
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_without_gymnasium_a_line_says_so(monkeypatch):
    monkeypatch.setattr(open_games.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"gym:X-v0: Gymnasium is not installed \(pip"):
        open_games.make_gymnasium("gym:X-v0")


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "num_actions"),
    [
        ("LunarLander-v3", (8,), "float32", 4),
        ("Taxi-v3", (500,), "bool", 6),
        ("Blackjack-v1", (3,), "float32", 2),
        ("Highway-v0", (5, 5), "float32", 5),
    ],
)
def test_envpools_other_environments_can_be_played(name, shape, dtype, num_actions):
    (task,) = resolve_environment(EnvironmentConfig(games=(name,)))
    assert task.game.family == "envpool"
    spec = pool_spec(task, CONFIG)
    assert (spec.observation_shape, spec.observation_dtype) == (shape, dtype)
    assert spec.num_actions == num_actions
    assert spec.action_meanings[-1] == f"ACTION_{num_actions - 1}"
    pool = Pool(task, CONFIG, num_envs=2, seed=0)
    assert pool.reset().shape == (2, *shape)
    for action in range(num_actions):
        step = pool.step(np.full(2, action))
        assert np.isfinite(step.observations.astype(np.float32)).all()
        if dtype == "bool":
            assert (step.observations.sum(axis=1) == 1).all()
    pool.close()


def test_a_game_is_seen_under_all_its_names():
    manifest = new_manifest(
        ActorCriticConfig(), games_seen=["Pong-v5", "CartPole-v1", "MazeHard-v0"]
    )
    for name in (
        "gym:ALE/Pong-v5",
        "gym:ale_py:ALE/Pong-v5",
        "gym:PongNoFrameskip-v4",
        "gym:Pong-ramDeterministic-v4",
        "gym:CartPole-v0",
        "phys2d/CartPole-v1",
        "MazeEasy-v0",
        "gym:procgen-maze-v0",
        "gym:procgen:procgen-maze-v0",
        "gym:procgen_gym/procgen-maze-easy-v0",
    ):
        assert status(manifest, name) == "seen", name
    for name in (
        "gym:ALE/Boxing-v5",
        "gym:Acrobot-v1",
        "Maze-v0",
        "gym:procgen-miner-v0",
        "gym:maze-v0",
    ):
        assert status(manifest, name) == "held_out", name


def test_names_are_games_without_looking_anything_up():
    assert get_game("gym:whatever:It-v0").family == "gymnasium"
    assert get_game("CartPole-v1").family == "cartpole"
    assert get_game("CartPole-v0").family == "envpool"
