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
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import numpy.typing as npt

from metarl.rollout.frames import FrameStore
from metarl.types import Rollout, Transitions

Array = npt.NDArray[Any]

ReplayTree = dict[str, Array]
"""A replay's content as arrays, for a checkpoint."""

_TRANSITIONS = tuple(
    field.name
    for field in dataclasses.fields(Transitions)
    if field.name != "behaviour_log_pi_a"  # which rollouts of pools lack
)
REPLAY_KEYS = (
    "observations",
    "frames",
    *_TRANSITIONS,
    "returns",
    "success",
    "added",
    "new_env_steps",
)
"""What a replay's content consists of."""


class Replay:
    """Keeps the newest ``capacity`` trajectories of one agent and draws batches.

    Arrays keep their dtype (uint8 frames stay uint8). Each frame of stacked
    observations is kept once; the memory of all else is taken once, when the first
    trajectory comes.
    """

    def __init__(
        self,
        capacity: int,
        *,
        seed: int | Sequence[int],
        frame_stack: int | None = None,
    ) -> None:
        """Make an empty replay.

        Args:
          capacity: trajectories kept, at least 1.
          seed: decides every draw, together with the number of trajectories added.
          frame_stack: how many frames lie behind one another on an observation's last
            axis (`PoolSpec.frame_stack`); None: observations are kept as they are.
        """
        if capacity < 1:
            raise ValueError(f"capacity: {capacity} (allowed: at least 1)")
        self.capacity = capacity
        self._rng = np.random.default_rng(seed)
        self._frames = None if frame_stack is None else FrameStore(frame_stack)
        # Each array [capacity, T or T + 1, ...]; slots in place of stacked frames.
        self._kept: Rollout | None = None
        self._added = 0
        self._new_env_steps = 0

    def __len__(self) -> int:
        """Return how many trajectories there are."""
        return min(self._added, self.capacity)

    @property
    def nbytes(self) -> int:
        """Memory of all that is kept, frames and what they are found by included."""
        kept = sum(leaf.nbytes for leaf in jax.tree.leaves(self._kept))
        return kept + (0 if self._frames is None else self._frames.nbytes)

    def add(self, rollout: Rollout) -> None:
        """Put in the B trajectories of ``rollout [T, B]``, in order.

        Args:
          rollout: NumPy arrays; copied.
        """
        count = rollout.returns.shape[0]
        first = max(0, count - self.capacity)  # those before are overwritten at once
        new = jax.tree.map(lambda x: x[first:], _swap_axes(rollout))
        places = (self._added + np.arange(first, count)) % self.capacity
        if self._frames is not None:
            new = self._keep_frames(self._frames, new, places)
        if self._kept is None:
            self._kept = jax.tree.map(
                lambda x: np.empty((self.capacity, *x.shape[1:]), x.dtype), new
            )
        for leaf, column in zip(
            jax.tree.leaves(self._kept), jax.tree.leaves(new), strict=True
        ):
            leaf[places] = column
        self._added += count
        if self._frames is not None:
            moved_to = self._frames.compact()
            if moved_to is not None:
                slots = np.asarray(self._kept.observations)[: len(self)]
                slots[...] = moved_to[slots]
        self._new_env_steps += int(rollout.env_steps)

    @property
    def added(self) -> int:
        """How many trajectories were ever put in."""
        return self._added

    def sample(self, batch: int, rng: np.random.Generator | None = None) -> Rollout:
        """Return ``batch`` trajectories ``[T, batch]``, drawn uniformly.

        With replacement, so that draws are independent and a batch may be larger than
        what is there. `env_steps` counts those of all that was added since the last
        sample: an agent's age goes by what it acted, not by what it replays.

        Args:
          batch: how many.
          rng: draws them; None: the replay's own generator.
        """
        if self._kept is None:
            raise ValueError("sample: nothing was added yet")
        index = (self._rng if rng is None else rng).integers(len(self), size=batch)
        drawn: Rollout = jax.tree.map(lambda x: x[index], self._kept)
        env_steps, self._new_env_steps = np.int32(self._new_env_steps), 0
        sample = _swap_axes(drawn, env_steps)
        if self._frames is None:
            return sample
        observations: Any = self._frames.stacked(np.asarray(drawn.observations))
        return dataclasses.replace(sample, observations=observations)

    def state(self) -> ReplayTree:
        """Return the content, by the names of `REPLAY_KEYS`; not the generator."""
        counts = {
            "added": np.asarray(self._added),
            "new_env_steps": np.asarray(self._new_env_steps),
        }
        if self._kept is None:
            return {name: np.zeros(0) for name in REPLAY_KEYS} | counts
        kept = jax.tree.map(lambda x: x[: len(self)], self._kept)
        observations, frames = np.asarray(kept.observations), np.zeros(0)
        if self._frames is not None:
            frames, observations = self._frames.state(observations)
        transitions = {x: getattr(kept.transitions, x) for x in _TRANSITIONS}
        return {
            "observations": observations,
            "frames": frames,
            **transitions,
            "returns": np.asarray(kept.returns),
            "success": np.asarray(kept.success),
            **counts,
        }

    def restore(self, state: ReplayTree) -> None:
        """Hold what `state` returned of a replay of this capacity."""
        self._added = int(state["added"])
        self._new_env_steps = int(state["new_env_steps"])
        self._kept = None
        if self._added == 0:
            return
        fields: dict[str, Any] = {
            name: self._with_room(state[name])
            for name in ("observations", "returns", "success", *_TRANSITIONS)
        }
        if self._frames is not None:
            self._frames.restore(state["frames"], state["observations"])
        transitions = Transitions(**{name: fields.pop(name) for name in _TRANSITIONS})
        no_steps: Any = None
        self._kept = Rollout(transitions=transitions, env_steps=no_steps, **fields)

    def _with_room(self, column: Array) -> Array:
        """Return a copy with as many rows as the capacity."""
        room = np.empty((self.capacity, *column.shape[1:]), column.dtype)
        room[: len(column)] = column
        return room

    def _keep_frames(
        self, frames: FrameStore, new: Rollout, places: npt.NDArray[np.int64]
    ) -> Rollout:
        """Return ``new [B, T]`` with slots for observations, forgetting the old ones.

        Args:
          frames: where they are kept.
          new: trajectories.
          places: where they will stand.
        """
        if self._kept is not None:
            taken = places[places < len(self)]
            frames.release(np.asarray(self._kept.observations)[taken])
        slots: Any = frames.put(np.asarray(new.observations))
        return dataclasses.replace(new, observations=slots)


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
