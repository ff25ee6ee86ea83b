"""Gymnasium's environments behind the interface of EnvPool's, as `pool.py` uses it.

One after another in this process. Like EnvPool's, the call after an episode's end
discards its action and returns the next episode's first observation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from metarl.envs.open_games import interface_of, make_gymnasium, quiet

Array = npt.NDArray[Any]


class GymnasiumEnvironments:
    """A batch of one environment; environment i is seeded with seed + i."""

    def __init__(self, name: str, *, num_envs: int, seed: int) -> None:
        """Make them.

        Args:
          name: with `gym:` before it.
          num_envs: B.
          seed: of the first.
        """
        self._first_action = interface_of(name).first_action
        self._seeds: list[int | None] = [seed + i for i in range(num_envs)]
        with quiet():
            self._env = SyncVectorEnv(
                [lambda: make_gymnasium(name)] * num_envs,
                autoreset_mode=AutoresetMode.NEXT_STEP,
            )
        self._actions: Array | None = None

    def reset(self) -> tuple[Array, Mapping[str, Any]]:
        """Return the first observations ``[B, ...]``, and what else is told."""
        with quiet():
            observations, info = self._env.reset(seed=self._seeds)
        return observations, info

    def send(self, action: npt.NDArray[np.int32]) -> None:
        """Note the actions ``[B]``; `recv` takes them."""
        self._actions = action

    def recv(self) -> tuple[Array, Array, Array, Array, Mapping[str, Any]]:
        """Let every environment take its action."""
        assert self._actions is not None
        with quiet():
            observations, rewards, terminated, truncated, info = self._env.step(
                self._actions + self._first_action
            )
        return observations, rewards.astype(np.float32), terminated, truncated, info

    def close(self) -> None:
        """Free the environments."""
        self._env.close()
