"""Rollouts from the steps of anybody's environments.

Host code in NumPy, for those who step environments of their own; `actor.py` does it
for EnvPool. Must not import agents or environments.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from metarl.errors import UserError
from metarl.types import Rollout, Transitions

Array = npt.NDArray[Any]


class RolloutBuilder:
    """Collects steps of B environments until they are taken as a rollout ``[T, B]``.

    The environments follow Gymnasium's vector interface with its default autoreset,
    `NEXT_STEP`, which is EnvPool's too: the step after an episode's end ignores its
    action and returns the next episode's first observation, with reward 0. Such a
    step becomes a transition that does not exist.
    """

    def __init__(self, observations: npt.ArrayLike, *, num_actions: int) -> None:
        """Begin at the first observations.

        Args:
          observations: ``[B, ...]``, what the environments' reset returned.
          num_actions: A.
        """
        first = np.array(observations)
        if first.ndim == 0 or first.dtype.hasobject:
            raise UserError(
                "observations: one array [B, ...] of B environments is needed, got "
                f"{type(observations).__name__}"
            )
        self._observations: list[Array] = [first]  # one more than steps
        self._steps: list[dict[str, Array]] = []
        self._num_actions = num_actions
        self._done = np.zeros(len(first), np.bool_)  # the step before ended an episode
        self._returns = np.zeros(len(first))  # of the episodes that are under way
        self._finished: list[float] = []

    def __len__(self) -> int:
        """Return the number of steps that wait to be taken."""
        return len(self._steps)

    @property
    def observations(self) -> Array:
        """The newest observations ``[B, ...]``: what to act on."""
        return self._observations[-1]

    def add(
        self,
        actions: npt.ArrayLike,
        behaviour_logits: npt.ArrayLike,
        observations: npt.ArrayLike,
        rewards: npt.ArrayLike,
        terminated: npt.ArrayLike,
        truncated: npt.ArrayLike,
    ) -> None:
        """Add one step of all environments; copies what it is given.

        Args:
          actions: ``[B]`` taken on `self.observations`.
          behaviour_logits: ``[B, A]`` of the policy that took them.
          observations: ``[B, ...]`` after the step; this and what follows is what the
            step returned, in its order.
          rewards: ``[B]``.
          terminated: ``[B]``, the episode ended.
          truncated: ``[B]``, it was cut short: its last observation has a value.

        Raises:
          UserError: an array has another shape, or the environments do not follow
            the reset described above.
        """
        size = len(self._done)
        new = np.array(observations)
        _check("observations", new, self._observations[0].shape)
        terminated = _array("terminated", terminated, np.bool_, (size,))
        truncated = _array("truncated", truncated, np.bool_, (size,))
        rewards = _array("rewards", rewards, np.float32, (size,))
        taken = _array("actions", actions, np.int32, (size,))
        if taken.min() < 0 or taken.max() >= self._num_actions:
            raise UserError(
                f"actions: {taken.min()} to {taken.max()} "
                f"(allowed: 0 to {self._num_actions - 1})"
            )
        self._check_resets(rewards, terminated | truncated)
        self._steps.append(
            {
                "actions": taken,
                "behaviour_logits": _array(
                    "behaviour_logits",
                    behaviour_logits,
                    np.float32,
                    (size, self._num_actions),
                ),
                "rewards": rewards,
                "is_terminal": terminated,
                "cut": truncated & ~terminated,
                "valid": ~self._done,
            }
        )
        self._observations.append(new)
        self._done = terminated | truncated
        self._returns += rewards
        self._finished += self._returns[self._done].tolist()
        self._returns[self._done] = 0.0

    def take(self) -> Rollout:
        """Return the steps since the last call as a rollout; the next one goes on."""
        if not self._steps:
            raise UserError("rollout: no step was added since the last one was taken")
        columns: dict[str, Any] = {
            name: np.stack([step[name] for step in self._steps])
            for name in self._steps[0]
        }
        valid = columns["valid"]
        columns["learn"] = np.ones(valid.shape, np.float32)
        columns["own"] = np.ones(valid.shape, np.bool_)
        returns = columns["rewards"].sum(axis=0)
        # NumPy throughout, as a replay wants it; the update puts it on the device.
        fields: dict[str, Any] = {
            "observations": np.stack(self._observations),
            "transitions": Transitions(**columns),
            "returns": returns,
            "success": returns > 0,
            "env_steps": valid.sum(dtype=np.int32),
        }
        self._observations, self._steps = self._observations[-1:], []
        return Rollout(**fields)

    def take_returns(self) -> list[float]:
        """Return the sum of rewards of each episode that ended since the last call."""
        finished, self._finished = self._finished, []
        return finished

    def _check_resets(self, rewards: Array, done: Array) -> None:
        """Refuse environments that reset at once, whose last observations are lost."""
        wrong = self._done & ((rewards != 0) | done)
        if wrong.any():
            raise UserError(
                f"environment {int(wrong.argmax())}: the step after an episode's end "
                f"gave reward {rewards[wrong][0]:g} or ended an episode, but it must "
                "be a reset (Gymnasium's default, AutoresetMode.NEXT_STEP)"
            )


def _array(
    name: str, value: npt.ArrayLike, dtype: npt.DTypeLike, shape: tuple[int, ...]
) -> Array:
    """Return a copy of ``value`` as ``dtype`` after checking its shape."""
    array = np.array(value)
    _check(name, array, shape)
    return array.astype(dtype)


def _check(name: str, array: Array, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise UserError(
            f"{name}: shape {list(array.shape)} (needed here: {list(shape)})"
        )
