"""Pools of small frames, and what they do while they are played."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from metarl.config import AtariOptions, EnvironmentConfig
from metarl.envs.pool import Pool, Step


def atari(*, clip_rewards: bool = False, **options: object) -> EnvironmentConfig:
    """Return a configuration with small frames and no random no-ops."""
    small = {"frame_size": 36, "frame_stack": 2, "noop_max": 1} | options
    return EnvironmentConfig(
        clip_rewards=clip_rewards, atari=AtariOptions.model_validate(small)
    )


def play(pool: Pool, actions: Callable[[int], int], num_steps: int) -> list[Step]:
    """Return steps in which every environment takes ``actions(t)``."""
    return [pool.step(np.full(pool.num_envs, actions(t))) for t in range(num_steps)]


def same(left: Step, right: Step) -> bool:
    return all(
        np.array_equal(getattr(left, field.name), getattr(right, field.name))
        for field in dataclasses.fields(Step)
    )
