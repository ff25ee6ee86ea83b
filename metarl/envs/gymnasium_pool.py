"""Gymnasium's environments behind EnvPool's interface, for `pool.py` and `render.py`.

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
        observations, info = self._env.reset(seed=self._seeds)
        return observations, info

    def send(self, action: npt.NDArray[np.int32]) -> None:
        """Note the actions ``[B]``; `recv` takes them."""
        self._actions = action

    def recv(self) -> tuple[Array, Array, Array, Array, Mapping[str, Any]]:
        """Let every environment take its action."""
        assert self._actions is not None
        observations, rewards, terminated, truncated, info = self._env.step(
            self._actions + self._first_action
        )
        return observations, rewards.astype(np.float32), terminated, truncated, info

    def close(self) -> None:
        """Free the environments."""
        self._env.close()


class GymnasiumPicture:
    """One environment that also draws itself; a batch of one."""

    def __init__(self, name: str, *, seed: int) -> None:
        """Make it.

        Args:
          name: with `gym:` before it.
          seed: of it.
        """
        self._first_action = interface_of(name).first_action
        self._seed = seed
        self._env = make_gymnasium(name, render_mode="rgb_array")

    @property
    def steps_per_second(self) -> float:
        """How fast it wants to be seen."""
        return float(self._env.metadata.get("render_fps", 15))

    def reset(self) -> tuple[Array, Mapping[str, Any]]:
        """Return the first observation ``[1, ...]``, and what else is told."""
        observation, info = self._env.reset(seed=self._seed)
        return np.asarray(observation)[None], info

    def step(
        self, action: npt.NDArray[np.int32]
    ) -> tuple[Array, Array, Array, Array, Mapping[str, Any]]:
        """Take the action ``[1]``."""
        observation, reward, terminated, truncated, info = self._env.step(
            action[0] + self._first_action
        )
        return (
            np.asarray(observation)[None],
            np.array([reward], np.float32),
            np.array([terminated]),
            np.array([truncated]),
            info,
        )

    def render(self) -> Array:
        """Return the picture ``[1, H, W, 3]``."""
        return np.asarray(self._env.render())[None]

    def close(self) -> None:
        """Free the environment."""
        self._env.close()
