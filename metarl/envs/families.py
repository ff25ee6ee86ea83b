"""What differs between families of environments: their observations, and their ends.

Host code in NumPy, used by `pool.py` alone; must not import envpool or jax.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from metarl.config import EnvironmentConfig
from metarl.envs.open_games import interface_of
from metarl.envs.tasks import (
    FROZEN_LAKE_SIZE,
    MINIGRID_CODES,
    MINIGRID_DIRECTIONS,
    Task,
)

Array = npt.NDArray[np.generic]
Bools = npt.NDArray[np.bool_]
Raw = Array | Mapping[str, Array]
"""Observations of a batch as EnvPool gives them; a mapping for MiniGrid."""

# Cells that end an episode, row by row: holes, and the goal in the last cell
# (Gymnasium's two fixed maps).
LAKE_ENDS = {
    "FrozenLake-v1": (5, 7, 11, 12, 15),
    "FrozenLake8x8-v1": (19, 29, 35, 41, 42, 46, 49, 52, 54, 59, 63),
}
# Where CartPole falls (Barto, Sutton and Anderson 1983, as in Gymnasium).
_CART_LIMIT = 2.4
_POLE_LIMIT = 12 * 2 * math.pi / 360
# Where the car is out of the valley (Moore 1990, as in Gymnasium).
_HILL_TOP = 0.5


@dataclasses.dataclass(frozen=True)
class Family:
    """How to read one family's environments.

    Attributes:
      encode: writes raw observations into an array of ours, ``[B, ...]``.
      ended: whether the world ended each episode by itself; asked only where its time
        was up in the same step, which EnvPool then reports as a mere truncation.
        Takes the raw observations, rewards and info.
    """

    encode: Callable[[Raw, Array], None]
    ended: Callable[[Raw, Array, Mapping[str, Array]], Bools]


def family_of(task: Task, config: EnvironmentConfig | None = None) -> Family:
    """Return how to read a task's environments.

    Args:
      task: what is played.
      config: how; None: as by default.
    """
    name = task.game.task_id
    if task.game.family == "atari":
        return Family(_channels_last, lambda _, __, info: info["terminated"] != 0)
    if task.game.family == "catch":
        # EnvPool's Catch has no time limit.
        if config is not None and config.catch_pixels is not None:
            return Family(_board_picture, lambda _, rewards, __: rewards != 0)
        return Family(_copy, lambda _, rewards, __: rewards != 0)
    if task.game.family == "cartpole":
        return Family(_copy, lambda raw, _, __: _has_fallen(_array(raw)))
    if task.game.family == "acrobot":
        # Every step costs 1, but for the one that swings the tip up.
        return Family(_copy, lambda _, rewards, __: rewards == 0)
    if task.game.family == "mountain_car":
        return Family(_copy, lambda raw, _, __: _has_arrived(_array(raw)))
    if task.game.family == "frozen_lake":
        one_hot = np.eye(FROZEN_LAKE_SIZE[name] ** 2, dtype=np.bool_)
        ends = np.array(LAKE_ENDS[name])
        return Family(
            lambda raw, out: np.copyto(out, one_hot[_array(raw)]),
            lambda raw, _, __: np.isin(_array(raw), ends),
        )
    if task.game.family == "procgen":
        return Family(
            _channels_last, lambda _, __, info: info["prev_level_complete"] != 0
        )
    if task.game.family in ("craftax", "gymnasium", "envpool"):
        # Gymnasium tells both ends apart. Of the others nobody knows what ended an
        # episode in the very step in which its time was up: as if it went on.
        encode = _encoding_of(task)
        return Family(encode, lambda _, rewards, __: np.zeros(len(rewards), np.bool_))
    # MiniGrid: all ends by the world that give no reward (lava) look like a truncation
    # where they fall on the very last step; nothing that EnvPool returns tells.
    return Family(_minigrid_one_hot, lambda _, rewards, __: rewards != 0)


def _array(raw: Raw) -> Array:
    assert isinstance(raw, np.ndarray)
    return raw


def _copy(raw: Raw, out: Array) -> None:
    np.copyto(out, _array(raw))


def _board_picture(raw: Raw, out: Array) -> None:
    """Write boards ``[B, H, W]`` as white squares on black, ``u8[B, sH, sW, 3]``."""
    boards = _array(raw)
    side = out.shape[1] // boards.shape[1]
    squares = (boards != 0).repeat(side, axis=1).repeat(side, axis=2)
    np.copyto(out, np.where(squares[..., None], np.uint8(255), np.uint8(0)))


def _channels_last(raw: Raw, out: Array) -> None:
    """Write ``[B, C, H, W]`` as ``[B, H, W, C]``."""
    frames = _array(raw)
    for channel in range(frames.shape[1]):  # thrice as fast as copying a moved axis
        out[..., channel] = frames[:, channel]


def _encoding_of(task: Task) -> Callable[[Raw, Array], None]:
    """Return how agents come to see an environment that describes itself."""
    if task.game.family == "craftax":
        return _copy
    interface = interface_of(task.game.task_id)
    if interface.encoding == "channels_first":
        return _channels_last
    if interface.encoding == "add_channel":
        return lambda raw, out: np.copyto(out, _array(raw)[..., None])
    if interface.encoding == "one_hot":
        one_hot = np.eye(interface.shape[0], dtype=np.bool_)
        first = interface.first_code
        return lambda raw, out: np.copyto(out, one_hot[_array(raw) - first])
    # To float32 from whatever it is; pixels stay as they are.
    return lambda raw, out: np.copyto(out, _array(raw), casting="same_kind")


def _has_fallen(state: Array) -> Bools:
    position, angle = np.abs(state[:, 0]), np.abs(state[:, 2])
    fallen: Bools = (position > _CART_LIMIT) | (angle > _POLE_LIMIT)
    return fallen


def _has_arrived(state: Array) -> Bools:
    position, speed = state.astype(np.float32)[:, :2].T
    arrived: Bools = (position >= _HILL_TOP) & (speed >= 0)
    return arrived


def _minigrid_one_hot(raw: Raw, out: Array) -> None:
    """Write each cell's type, colour and state, and the direction, one-hot and flat.

    The mission, a sentence, is left out.
    """
    assert isinstance(raw, Mapping)
    codes = raw["image"]  # u8[B, 7, 7, 3]
    batch = codes.shape[0]
    parts = [
        np.eye(size, dtype=np.bool_)[codes[..., channel]]
        for channel, size in enumerate(MINIGRID_CODES)
    ]
    cells = np.concatenate(parts, axis=-1).reshape(batch, -1)
    direction = np.eye(MINIGRID_DIRECTIONS, dtype=np.bool_)[raw["direction"]]
    np.concatenate([cells, direction.reshape(batch, -1)], axis=1, out=out)
