"""What a person sees goes the way of the agent's pool, and looks like the game."""

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from metarl.config import EnvironmentConfig
from metarl.envs import suites, tasks
from metarl.envs.pool import Pool
from metarl.envs.render import Screen, enlarge
from metarl.errors import UserError

_STICKY = {"sticky_actions": 0.25, "frame_skip": 4, "full_action_set": False}


def _task(name: str) -> tasks.Task:
    return tasks.Task(suites.get_game(name))


def _config(**atari: object) -> EnvironmentConfig:
    return EnvironmentConfig.model_validate({"atari": {**_STICKY, **atari}})


@pytest.mark.parametrize(
    ("name", "options", "max_steps"),
    [
        ("Pong-v5", {}, 300),
        # Ends by the game itself, with lives and a step cut short.
        ("Breakout-v5", {"fire_reset": True, "frame_skip": 3}, 2000),
        # Ends by the time limit.
        ("Pong-v5", {"max_episode_frames": 400}, 2000),
        ("Catch-v0", {}, 100),
        ("CartPole-v1", {}, 600),
        ("Acrobot-v1", {}, 600),
        ("MountainCar-v0", {}, 400),
        ("FrozenLake-v1", {}, 200),
        ("MiniGrid-DoorKey-5x5-v0", {}, 400),
        ("CoinrunEasy-v0", {}, 1100),
        # EnvPool's, outside our tables.
        ("LunarLander-v3", {}, 1100),
    ],
)
def test_screen_goes_the_way_of_the_pool(
    name: str, options: dict[str, object], max_steps: int
) -> None:
    task, config = _task(name), _config(**options)
    pool = Pool(task, config, num_envs=1, seed=11)
    screen = Screen(task, config, seed=11)
    pool.reset()
    screen.reset()
    draw = np.random.default_rng(0)
    rewards = []
    for _ in range(max_steps):
        action = int(draw.integers(pool.spec.num_actions))
        step, shown = pool.step(np.array([action])), screen.step(action)
        rewards.append(shown.reward)
        assert shown.reward == step.raw_rewards[0]
        finished = pool.drain_episodes()
        assert shown.is_over == (len(finished.returns) == 1)
        if shown.is_over:
            assert sum(rewards) == pytest.approx(finished.returns[0])
            assert len(rewards) == finished.lengths[0]
            break
    else:
        assert max_steps == 300  # a game of Pong is longer; all others end
        assert any(rewards)
    pool.close()
    screen.close()


def test_atari_shows_the_emulators_screen_at_thirty_frames_per_second() -> None:
    task, config = _task("Pong-v5"), _config(frame_stack=1, frame_size=84)
    screen, colours = Screen(task, config, seed=3), _Colours(task, config, seed=3)
    frames = screen.reset()
    assert len(frames) == 1
    assert frames[0].shape == (420, 320, 3)
    assert frames[0].dtype == np.uint8
    np.testing.assert_array_equal(frames[0][::2, ::2], colours.reset())
    seen = []
    for _ in range(40):
        shown = screen.step(2)
        pictures = colours.step(2)
        # Four screens at 60 per second are two frames at 30.
        assert len(shown.frames) == 2
        for frame, pair in zip(shown.frames, pictures.reshape(2, 2, -1), strict=True):
            np.testing.assert_array_equal(frame[::2, ::2].ravel(), pair.max(axis=0))
        seen.append(shown.frames[-1])
    # Not grey, and not the same picture all along: the paddle has moved.
    assert (seen[0][..., 0] != seen[0][..., 2]).mean() > 0.5
    assert any((frame != seen[0]).any() for frame in seen)
    screen.close()


class _Colours:
    """The colour screens of Pong, from an emulator that nothing of ours steps."""

    def __init__(
        self, task: tasks.Task, config: EnvironmentConfig, *, seed: int
    ) -> None:
        import envpool

        options = tasks.envpool_options(task, config)
        options |= {"frame_skip": 1, "gray_scale": False}
        options |= {"img_height": 210, "img_width": 160}
        options["max_episode_steps"] *= 4
        self._env = envpool.make(
            task.game.task_id, env_type="gymnasium", num_envs=1, seed=seed, **options
        )

    def reset(self) -> np.ndarray:
        return self._env.reset()[0][0].transpose(1, 2, 0)

    def step(self, action: int) -> np.ndarray:
        screens = [self._env.step(np.array([action]))[0][0] for _ in range(4)]
        return np.stack([screen.transpose(1, 2, 0) for screen in screens])


def test_steps_of_grids_stay_long_enough_to_be_followed() -> None:
    catch = Screen(_task("Catch-v0"), EnvironmentConfig(), seed=0)
    first = catch.reset()
    then = catch.step(1).frames
    assert (len(first), len(then)) == (6, 6)  # five steps per second
    assert first[0].shape == (480, 240, 3)
    # The ball falls one cell; the paddle stays at the bottom.
    light = [
        {tuple(cell) for cell in np.argwhere(frame[24::48, 24::48, 0] > 200)}
        for frame in (first[0], then[0])
    ]
    balls = [{cell for cell in board if cell[0] < 9} for board in light]
    paddles = [{cell for cell in board if cell[0] == 9} for board in light]
    assert [len(ball) for ball in balls] == [1, 1]
    assert balls[1] == {(row + 1, column) for row, column in balls[0]}
    assert paddles[0] == paddles[1]
    assert len(paddles[0]) == 1


def test_frozen_lake_shows_where_one_walks() -> None:
    task, config = _task("FrozenLake-v1"), EnvironmentConfig()
    pool, screen = (
        Pool(task, config, num_envs=1, seed=5),
        Screen(task, config, seed=5),
    )
    observation, frames = pool.reset(), screen.reset()
    for _ in range(8):
        assert frames[-1].shape == (240, 240, 3)
        centres = frames[-1][30::60, 30::60].reshape(16, 3)
        walker = np.flatnonzero((centres == (213, 94, 0)).all(axis=1))
        np.testing.assert_array_equal(walker, np.flatnonzero(observation[0]))
        holes = np.flatnonzero((centres == (0, 78, 122)).all(axis=1))
        assert set(holes) == {5, 7, 11, 12} - set(walker)
        observation = pool.step(np.array([2])).observations
        shown = screen.step(2)
        frames = shown.frames
        if shown.is_over:
            break
    pool.close()
    screen.close()


@pytest.mark.parametrize(
    ("shape", "enlarged"),
    [((210, 160), (420, 320)), ((160, 160), (320, 320)), ((240, 500), (240, 500))],
)
def test_small_frames_are_enlarged_by_whole_factors(
    shape: tuple[int, int], enlarged: tuple[int, int]
) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    large = enlarge(frame)
    assert large.shape == (*enlarged, 3)
    factor = enlarged[0] // shape[0]
    for i in range(factor):
        for j in range(factor):
            np.testing.assert_array_equal(large[i::factor, j::factor], frame)


class Drawn(gymnasium.Env):
    """Shows its step as a shade of red; the highest of its actions ends it."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 4}  # noqa: RUF012
    observation_space = spaces.Box(0, 1, (1,), np.float32)
    action_space = spaces.Discrete(2, start=3)

    def __init__(self, render_mode: str | None = None, *, nothing: bool = False):
        self.render_mode, self.nothing = render_mode, nothing

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.np_random.random(1, np.float32), {}

    def step(self, action):
        self.steps += 1
        seen = self.np_random.random(1, np.float32)
        return seen, 0.1 * float(seen[0]), action == 4, False, {}

    def render(self):
        if self.nothing:
            return None
        return np.full((120, 130, 3), (10 * self.steps, 0, 0), np.uint8)


gymnasium.register("Drawn-v0", Drawn)
gymnasium.register("NotDrawn-v0", Drawn, kwargs={"nothing": True})


def test_gymnasium_draws_its_own_at_its_own_speed() -> None:
    task, config = _task("gym:Drawn-v0"), EnvironmentConfig()
    pool = Pool(task, config, num_envs=1, seed=5)
    screen = Screen(task, config, seed=5)
    pool.reset()
    frames = screen.reset()
    assert len(frames) == 8  # 30 / 4 = 7.5
    for i, action in enumerate([0, 0, 1]):
        step, shown = pool.step(np.array([action])), screen.step(action)
        assert shown.reward == step.raw_rewards[0] != 0
        assert shown.is_over == step.is_terminal[0] == (i == 2)
        assert len(shown.frames) == 8
        assert shown.frames[0].shape == (240, 260, 3)
        assert (shown.frames[0][..., 0] == 10 * (i + 1)).all()
    pool.close()
    screen.close()


def test_gymnasium_without_a_picture_is_refused_in_one_line() -> None:
    screen = Screen(_task("gym:NotDrawn-v0"), EnvironmentConfig(), seed=0)
    with pytest.raises(
        UserError, match=r"^gym:NotDrawn-v0 shows nothing that is a picture$"
    ):
        screen.reset()
    screen.close()


def test_a_task_without_a_picture_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # EnvPool renders no Catch; ours is the only picture of it.
    monkeypatch.setattr("metarl.envs.render._drawing", lambda _: None)
    screen = Screen(_task("Catch-v0"), EnvironmentConfig(), seed=0)
    with pytest.raises(UserError, match=r"^Catch-v0 shows nothing \(render"):
        screen.reset()
    screen.close()
