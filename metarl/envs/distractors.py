"""Distractors: irrelevant pictures in the frames that agents see.

Finite sets of them, what they do to a frame, and which one an episode has. All of it
follows from seeds: distractor i of a set is the same whatever the size of the set, and
an episode's follows from its environment's seed and its number, so that a pool that
replays its actions shows the same frames. Host code in NumPy, under `pool.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal

import numpy as np
import numpy.typing as npt

from metarl.config import DistractorsConfig
from metarl.envs.tasks import PoolSpec

Frames = npt.NDArray[np.generic]
Numbers = npt.NDArray[np.int64]
Which = Literal["train", "unseen"]

CLEAN = -1
"""The number of no distractor."""

_PIXEL_MAX = 255
_RECTANGLES = 12
_ONE = 256  # of the fixed-point numbers by which colours are mixed
# What tells the random numbers of the two sets apart.
_STREAM: dict[Which, int] = {"train": 0, "unseen": 1}

_Alter = Callable[[Frames, Numbers], Frames]
"""Makes new frames of frames ``u8[N, H, W, S, C]`` and numbers ``[N]``."""


class DistractorSet:
    """Distractors for frames of one shape, numbered from 0."""

    def __init__(
        self, config: DistractorsConfig, spec: PoolSpec, *, which: Which, size: int
    ) -> None:
        """Draw them.

        Args:
          config: of which kind they are, and how strong; its `train` is not read.
          spec: of the task; its observations are pictures.
          which: the training set, or one that shares nothing with it.
          size: how many there are.
        """
        height, width, channels = spec.observation_shape
        stack = spec.frame_stack or 1
        # Frames that lie behind one another are altered alike.
        self._split = (stack, channels // stack)
        self._size = size
        entropy = (config.seed, _STREAM[which])
        draws = [np.random.default_rng((*entropy, number)) for number in range(size)]
        shape = (height, width, channels // stack)
        if config.kind == "noise":
            self._alter = _noise(draws, shape, config.strength)
        elif config.kind == "backgrounds":
            self._alter = _backgrounds(draws, shape, config.strength)
        elif config.kind == "colours":
            self._alter = _colours(draws, shape[-1], config.strength)
        else:
            raise ValueError(f"kind: {config.kind} (allowed: what there is a set of)")

    def __len__(self) -> int:
        """Return how many there are."""
        return self._size

    def alter(self, frames: Frames, numbers: Numbers) -> None:
        """Put distractors into frames.

        Args:
          frames: ``u8[B, H, W, S * C]``, changed in place.
          numbers: of each one's distractor, ``[B]``; `CLEAN`: it stays as it is.
        """
        has_one = numbers != CLEAN
        if not has_one.any():
            return
        chosen = frames[has_one]
        apart = chosen.reshape(*chosen.shape[:3], *self._split)
        frames[has_one] = self._alter(apart, numbers[has_one]).reshape(chosen.shape)

    def altered(self, frames: Frames, numbers: Numbers) -> Frames:
        """Return what `alter` makes of frames, which stay as they are."""
        copies = frames.copy()
        self.alter(copies, numbers)
        return copies


@functools.lru_cache(maxsize=16)
def training_set(config: DistractorsConfig, spec: PoolSpec) -> DistractorSet:
    """Return what agents learn among; the pools of equal shapes share it."""
    return DistractorSet(config, spec, which="train", size=config.train)


def unseen_set(config: DistractorsConfig, spec: PoolSpec, size: int) -> DistractorSet:
    """Return distractors of the same kind that are in no training set."""
    return DistractorSet(config, spec, which="unseen", size=size)


def draw(size: int, seeds: Numbers, episodes: Numbers) -> Numbers:
    """Return each episode's member of a training set: `CLEAN`, or 0 to size - 1.

    All are as likely as one another. By a hash (SplitMix64: Steele, Lea and Flood
    2014), so that nothing needs to be remembered of the episodes before.

    Args:
      size: of the set, clean frames not counted.
      seeds: of the environments, ``[B]``, in [0, 2**31).
      episodes: of each environment so far, ``[B]``.
    """
    z = (seeds.astype(np.uint64) << np.uint64(32)) ^ episodes.astype(np.uint64)
    z = z + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return (z % np.uint64(size + 1)).astype(np.int64) + CLEAN


def _noise(
    draws: list[np.random.Generator], shape: tuple[int, ...], strength: float
) -> _Alter:
    """Return additions that are uniform in [-255, 255] times the strength."""
    patterns = np.stack(
        [np.rint(strength * _PIXEL_MAX * (2 * rng.random(shape) - 1)) for rng in draws]
    ).astype(np.int16)

    def alter(frames: Frames, numbers: Numbers) -> Frames:
        sums = frames.astype(np.int16) + patterns[numbers][:, :, :, None]
        return np.clip(sums, 0, _PIXEL_MAX).astype(np.uint8)

    return alter


def _backgrounds(
    draws: list[np.random.Generator], shape: tuple[int, ...], strength: float
) -> _Alter:
    """Return pictures of which each pixel shows where it is the brighter one."""
    pictures = np.stack([_rectangles(rng, shape) for rng in draws])
    pictures = np.rint(strength * _PIXEL_MAX * pictures).astype(np.uint8)

    def alter(frames: Frames, numbers: Numbers) -> Frames:
        return np.maximum(frames, pictures[numbers][:, :, :, None])

    return alter


def _rectangles(
    rng: np.random.Generator, shape: tuple[int, ...]
) -> npt.NDArray[np.float64]:
    """Return one colour with rectangles of others, some over others, in [0, 1]."""
    height, width, colours = shape
    picture = np.empty(shape)
    picture[:] = rng.random(colours)
    for _ in range(_RECTANGLES):
        # Between 0 and the whole side, and partly beyond the edge.
        rows = _interval(rng, height)
        columns = _interval(rng, width)
        picture[rows, columns] = rng.random(colours)
    return picture


def _interval(rng: np.random.Generator, side: int) -> slice:
    middle, half = side * rng.random(), side * rng.random() / 4
    low, high = round(middle - half), round(middle + half)
    return slice(max(low, 0), max(high, low + 1))


def _colours(draws: list[np.random.Generator], colours: int, strength: float) -> _Alter:
    """Return mixtures of a frame and its colours mixed, made paler, and shifted.

    Each new channel is an average of the old ones, times a gain in [0, 1], plus an
    offset that keeps it in range. In fixed point, so that any machine rounds alike.
    """
    matrices, offsets = [], []
    for rng in draws:
        weights = -np.log1p(-rng.random((colours, colours)))
        weights /= weights.sum(axis=1, keepdims=True)
        gains, places = rng.random(colours), rng.random(colours)
        mixed = strength * gains[:, None] * weights
        matrices.append(mixed + (1 - strength) * np.eye(colours))
        offsets.append(strength * _PIXEL_MAX * (1 - gains) * places)
    matrix = np.rint(_ONE * np.stack(matrices)).astype(np.int32)  # [n, new, old]
    offset = np.rint(_ONE * (np.stack(offsets) + 0.5)).astype(np.int32)

    def alter(frames: Frames, numbers: Numbers) -> Frames:
        new = np.empty(frames.shape, np.uint8)
        old = frames.astype(np.int32)
        for i in range(colours):
            total = np.zeros(frames.shape[:-1], np.int32)
            total += offset[numbers, i][:, None, None, None]
            for j in range(colours):
                total += matrix[numbers, i, j][:, None, None, None] * old[..., j]
            new[..., i] = np.minimum(total // _ONE, _PIXEL_MAX)
        return new

    return alter
