"""Replay of whole trajectories on the host, first in first out.

Host code in NumPy, between the actor and the update, one per agent; of JAX only its
trees. Must not import agents or environments.

Why not flashbax: its buffers are JAX arrays on the device of the agents, where a
thousand Atari trajectories of each of several cells (0.9 GB each) do not belong, and
its sampling follows JAX's keys of a whole program; a NumPy ring is the same bits on
every device and costs no dependency.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
import numpy.typing as npt

from metarl.types import Rollout

Array = npt.NDArray[Any]


class Replay:
    """Keeps the newest ``capacity`` trajectories of one agent and draws batches.

    Arrays keep their dtype (uint8 frames stay uint8), and memory is taken once, when
    the first trajectory comes.
    """

    def __init__(self, capacity: int, *, seed: int) -> None:
        """Make an empty replay.

        Args:
          capacity: trajectories kept, at least 1.
          seed: decides every draw, together with the number of trajectories added.
        """
        if capacity < 1:
            raise ValueError(f"capacity: {capacity} (allowed: at least 1)")
        self.capacity = capacity
        self._rng = np.random.default_rng(seed)
        self._leaves: list[Array] = []  # each [capacity, T or T + 1, ...]
        self._structure: jax.tree_util.PyTreeDef | None = None
        self._added = 0
        self._new_env_steps = 0

    def __len__(self) -> int:
        """Return how many trajectories there are."""
        return min(self._added, self.capacity)

    @property
    def nbytes(self) -> int:
        """Memory of the arrays."""
        return sum(leaf.nbytes for leaf in self._leaves)

    def add(self, rollout: Rollout) -> None:
        """Put in the B trajectories of ``rollout [T, B]``, in order.

        Args:
          rollout: NumPy arrays; copied.
        """
        columns, self._structure = jax.tree.flatten(_swap_axes(rollout))
        if not self._leaves:
            self._leaves = [
                np.empty((self.capacity, *column.shape[1:]), column.dtype)
                for column in columns
            ]
        count = columns[0].shape[0]
        kept = min(count, self.capacity)  # the others would be overwritten at once
        slots = (self._added + np.arange(count - kept, count)) % self.capacity
        for leaf, column in zip(self._leaves, columns, strict=True):
            leaf[slots] = column[count - kept :]
        self._added += count
        self._new_env_steps += int(rollout.env_steps)

    def sample(self, batch: int) -> Rollout:
        """Return ``batch`` trajectories ``[T, batch]``, drawn uniformly.

        With replacement, so that draws are independent and a batch may be larger than
        what is there. `env_steps` counts those of all that was added since the last
        sample: an agent's age goes by what it acted, not by what it replays.
        """
        if self._structure is None:
            raise ValueError("sample: nothing was added yet")
        index = self._rng.integers(len(self), size=batch)
        columns = [leaf[index] for leaf in self._leaves]
        env_steps, self._new_env_steps = np.int32(self._new_env_steps), 0
        return _swap_axes(jax.tree.unflatten(self._structure, columns), env_steps)


def _swap_axes(rollout: Rollout, env_steps: Any = None) -> Rollout:
    """Return ``[T, B, ...]`` as ``[B, T, ...]``, and back.

    Args:
      rollout: NumPy arrays.
      env_steps: to replace the rollout's, which belongs to no trajectory.
    """
    observations, transitions = jax.tree.map(
        lambda x: np.swapaxes(x, 0, 1), (rollout.observations, rollout.transitions)
    )
    return dataclasses.replace(
        rollout,
        observations=observations,
        transitions=transitions,
        env_steps=env_steps,
    )
