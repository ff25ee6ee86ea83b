"""What a task looks like to a person: the colour frames of one episode, in video time.

An agent's observations are small, grey and stacked. So a screen is an environment of
its own beside the agent's pool: built from the same seed and given the same actions it
goes through the same episode (the tests compare every reward and every end), and it
shows what the pool does not keep. Host code in NumPy; must not import jax.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import envpool
import numpy as np
import numpy.typing as npt

from metarl.config import EnvironmentConfig
from metarl.envs import families, tasks
from metarl.envs.pool import quiet
from metarl.errors import UserError

Frame = npt.NDArray[np.uint8]
"""Colours in [0, 255], ``[H, W, 3]``."""

FPS = 30
"""Frames per second of every video."""

_MIN_SIDE = 240
"""Pixels: smaller frames are enlarged by a whole factor, so that they stay sharp."""

# Frames that each step stays on the screen. Atari needs none of these: 60 screens per
# second of the emulator, in pairs, are 30. Nor does a person see anything of a grid at
# 30 steps per second. Acrobot's 15 are Gymnasium's choice, its physics would be 5;
# CartPole's would be 50.
_HOLD: dict[str, int] = {"catch": 6, "frozen_lake": 6, "minigrid": 3, "cartpole": 1}
_HOLD_OTHERS = 2

_DARK, _LINE, _LIGHT = (24, 26, 38), (44, 48, 66), (240, 228, 66)
_ICE, _HOLE, _GOAL, _WALKER = (222, 238, 247), (0, 78, 122), (0, 158, 115), (213, 94, 0)


@dataclasses.dataclass(frozen=True)
class Shown:
    """What one action led to."""

    frames: list[Frame]  # FPS per second; none in between, where two steps share one
    reward: float  # raw
    is_over: bool  # the episode, whichever way


class _Rendered(Protocol):
    """The part of EnvPool's interface that is used; a batch of one."""

    def reset(self) -> tuple[families.Raw, Mapping[str, families.Array]]: ...

    def step(
        self, action: npt.NDArray[np.int32]
    ) -> tuple[
        families.Raw,
        npt.NDArray[np.float32],
        npt.NDArray[np.bool_],
        npt.NDArray[np.bool_],
        Mapping[str, families.Array],
    ]: ...

    def render(self) -> npt.NDArray[Any] | None: ...

    def close(self) -> None: ...


class Screen:
    """Shows one episode; `reset`, then `step` until it is over.

    Atari: pairs of successive screens of the emulator, of each pixel the brighter one,
    as the agent sees them too, since many games draw a sprite in every other screen.
    Elsewhere the environment's own picture, or a plain one of ours where it has none,
    which stays long enough for a person to follow.
    """

    def __init__(
        self, task: tasks.Task, config: EnvironmentConfig, *, seed: int
    ) -> None:
        """Build the environment.

        Args:
          task: what is played.
          config: how; as the agent's pool has it.
          seed: of the pool, whose one environment this one goes along with.

        Raises:
          UserError: the task's environment shows nothing.
        """
        family = task.game.family
        options = tasks.envpool_options(task, config)
        self._draw = _drawing(task)
        self._is_paired = family == "atari"
        self._repeats = 1
        if self._is_paired:
            # One screen of the emulator per step, in place of one in `frame_skip`.
            self._repeats = int(options["frame_skip"])
            options["max_episode_steps"] *= self._repeats
            options["frame_skip"] = 1
        keywords: dict[str, int | float | str] = {**options}
        if self._draw is None:
            keywords["render_mode"] = "rgb_array"
        self._hold = 1 if self._is_paired else _HOLD.get(family, _HOLD_OTHERS)
        self._action_map = tasks.action_map(task, config)
        self._name = task.game.task_id
        if family == "gymnasium":
            from metarl.envs.gymnasium_pool import GymnasiumPicture

            picture = GymnasiumPicture(self._name, seed=seed)
            self._hold = max(1, round(FPS / picture.steps_per_second))
            self._env: _Rendered = picture
        else:
            self._env = _make_envpool(self._name, seed, keywords)
        self._pending: Frame | None = None

    def reset(self) -> list[Frame]:
        """Return the frames before the first action."""
        with quiet():
            raw, _ = self._env.reset()
        self._pending = None
        return [enlarge(self._picture(raw))] * self._hold

    def step(self, action: int) -> Shown:
        """Take one of the agent's actions and return what it led to."""
        index = action if self._action_map is None else int(self._action_map[action])
        actions = np.array([index], np.int32)
        frames: list[Frame] = []
        reward, is_over = 0.0, False
        for _ in range(self._repeats):
            raw, rewards, terminated, truncated, _ = self._env.step(actions)
            reward += float(rewards[0])
            is_over = bool(terminated[0] or truncated[0])
            frames += self._frames(self._picture(raw))
            if is_over:
                break
        if is_over and self._pending is not None:
            frames.append(enlarge(self._pending))
            self._pending = None
        return Shown(frames, reward, is_over)

    def close(self) -> None:
        """Free the environment."""
        self._env.close()

    def _frames(self, picture: Frame) -> list[Frame]:
        if not self._is_paired:
            return [enlarge(picture)] * self._hold
        if self._pending is None:
            self._pending = picture
            return []
        pair = np.maximum(self._pending, picture)
        self._pending = None
        return [enlarge(pair)]

    def _picture(self, raw: families.Raw) -> Frame:
        if self._draw is not None:
            return self._draw(raw)
        try:
            pictures = self._env.render()
        except Exception as error:  # each library has its own, if it lacks one to draw
            raise UserError(f"{self._name} shows nothing ({error})") from None
        if pictures is None or pictures.ndim != 4 or pictures.dtype != np.uint8:
            raise UserError(f"{self._name} shows nothing that is a picture")
        picture: Frame = pictures[0]
        return picture


def _make_envpool(
    name: str, seed: int, options: Mapping[str, int | float | str]
) -> _Rendered:
    with quiet():
        environment: _Rendered = envpool.make(
            name,
            env_type="gymnasium",
            num_envs=1,
            batch_size=1,
            num_threads=1,
            seed=seed,
            **options,
        )
    return environment


def enlarge(frame: Frame) -> Frame:
    """Return a frame of 240 or more pixels a side, each pixel as a whole square."""
    factor = -(-_MIN_SIDE // min(frame.shape[:2]))
    return frame.repeat(factor, axis=0).repeat(factor, axis=1)


def _drawing(task: tasks.Task) -> Callable[[families.Raw], Frame] | None:
    """Return how to draw a task's raw observations; None where EnvPool does."""
    if task.game.family == "catch":
        return _draw_catch
    if task.game.family == "frozen_lake":
        return lambda raw: _draw_lake(task.game.task_id, raw)
    return None


def _draw_catch(raw: families.Raw) -> Frame:
    """Draw the board ``f32[1, H, W]``: the ball falls, the paddle is at the bottom."""
    assert isinstance(raw, np.ndarray)
    board = raw[0] != 0
    colours = np.where(board[..., None], _LIGHT, _DARK).astype(np.uint8)
    return _cells(colours, _side(board.shape))


def _draw_lake(name: str, raw: families.Raw) -> Frame:
    """Draw the lake ``i32[1]`` as seen from above: holes, the goal, and the walker."""
    assert isinstance(raw, np.ndarray)
    size = tasks.FROZEN_LAKE_SIZE[name]
    colours = np.full((size * size, 3), _ICE, np.uint8)
    colours[list(families.LAKE_ENDS[name])] = _HOLE
    colours[-1] = _GOAL
    side = _side((size, size))
    frame = _cells(colours.reshape(size, size, 3), side)
    row, column = divmod(int(raw[0]), size)
    across = np.arange(side) - (side - 1) / 2
    disc = across[:, None] ** 2 + across**2 < (0.36 * side) ** 2
    cell = frame[row * side : (row + 1) * side, column * side : (column + 1) * side]
    cell[disc] = _WALKER
    return frame


def _side(shape: tuple[int, ...]) -> int:
    """Return how many pixels wide cells are drawn."""
    return -(-_MIN_SIDE // min(shape))


def _cells(colours: Frame, side: int) -> Frame:
    """Return cells ``[H, W, 3]`` as squares, parted by lines one pixel wide."""
    frame = colours.repeat(side, axis=0).repeat(side, axis=1)
    frame[::side] = _LINE
    frame[:, ::side] = _LINE
    return frame
