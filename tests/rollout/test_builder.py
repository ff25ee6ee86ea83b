"""Steps of Gymnasium's environments become rollouts with every flag in its place."""

from __future__ import annotations

import gymnasium
import jax
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from metarl.errors import UserError
from metarl.rollout.builder import RolloutBuilder

FIRST = np.zeros((4, 3), np.float32)


class Countdown(gymnasium.Env):
    """Shows what is left of ``start``; each step takes 1, and 0 ends the episode."""

    observation_space = gymnasium.spaces.Box(0, 99, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, start: int) -> None:
        self.start = self.left = start

    def reset(self, **_: object) -> tuple[np.ndarray, dict]:
        self.left = self.start
        return np.array([self.left], np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.left -= 1
        left = np.array([self.left], np.float32)
        return left, 1.0 + action, self.left == 0, False, {}


def countdowns(**settings: object) -> SyncVectorEnv:
    """One that ends after 2 steps, and one of 9 that is truncated after 3."""
    limited = lambda: gymnasium.wrappers.TimeLimit(Countdown(9), 3)  # noqa: E731
    return SyncVectorEnv([lambda: Countdown(2), limited], **settings)


def play(envs: SyncVectorEnv, builder: RolloutBuilder, length: int) -> None:
    for _ in range(length):
        actions = np.array([1, 0])
        builder.add(actions, np.zeros((2, 2)), *envs.step(actions)[:4])


def test_a_rollout_knows_ends_cuts_and_resets() -> None:
    envs = countdowns()
    builder = RolloutBuilder(envs.reset()[0], num_actions=2)
    play(envs, builder, 4)
    assert len(builder) == 4
    rollout = builder.take()
    np.testing.assert_array_equal(
        rollout.observations[..., 0], [[2, 9], [1, 8], [0, 7], [2, 6], [1, 9]]
    )
    t = rollout.transitions
    # The third step of the first and the fourth of the second only reset.
    np.testing.assert_array_equal(t.valid.T, [[1, 1, 0, 1], [1, 1, 1, 0]])
    np.testing.assert_array_equal(t.is_terminal.T, [[0, 1, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(t.cut.T, [[0, 0, 0, 0], [0, 0, 1, 0]])
    np.testing.assert_array_equal(t.rewards.T, [[2, 2, 0, 2], [1, 1, 1, 0]])
    np.testing.assert_array_equal(t.actions, [[1, 0]] * 4)
    assert t.learn.all()
    assert t.own.all()
    np.testing.assert_array_equal(rollout.returns, [6, 3])
    assert rollout.success.all()
    assert rollout.env_steps == 6
    assert builder.take_returns() == [4.0, 3.0]
    assert builder.take_returns() == []


def test_the_next_rollout_goes_on_where_the_last_ended() -> None:
    envs = countdowns()
    whole, halves = (RolloutBuilder(envs.reset()[0], num_actions=2) for _ in range(2))
    play(envs, whole, 6)
    together = whole.take()
    envs.reset()
    play(envs, halves, 2)  # ends with an episode's end, whose reset comes after
    first = halves.take()
    play(envs, halves, 4)
    second = halves.take()
    joined = jax.tree.map(
        lambda a, b: np.concatenate([a, b]), first.transitions, second.transitions
    )
    leaves = jax.tree.leaves(joined), jax.tree.leaves(together.transitions)
    for ours, expected in zip(*leaves, strict=True):
        np.testing.assert_array_equal(ours, expected)
    np.testing.assert_array_equal(first.observations[-1], second.observations[0])
    np.testing.assert_array_equal(together.observations[2:], second.observations)
    assert halves.take_returns() == whole.take_returns() == [4.0, 3.0, 4.0]


def test_an_end_that_is_also_a_time_limit_is_an_end() -> None:
    builder = RolloutBuilder(FIRST[:1], num_actions=2)
    builder.add([0], [[0, 0]], FIRST[:1], [1.0], [True], [True])
    transitions = builder.take().transitions
    assert transitions.is_terminal[0, 0]
    assert not transitions.cut[0, 0]


def test_arrays_are_copied() -> None:
    seen = FIRST.copy()
    builder = RolloutBuilder(seen, num_actions=2)
    rewards = np.ones(4, np.float32)
    builder.add([0] * 4, np.zeros((4, 2)), seen, rewards, [False] * 4, [False] * 4)
    seen[:], rewards[:] = 7, 7
    rollout = builder.take()
    assert not rollout.observations.any()
    assert (rollout.transitions.rewards == 1).all()


def test_environments_that_reset_at_once_are_refused() -> None:
    envs = countdowns(autoreset_mode=AutoresetMode.SAME_STEP)
    builder = RolloutBuilder(envs.reset()[0], num_actions=2)
    with pytest.raises(UserError, match=r"environment 0: .*AutoresetMode\.NEXT_STEP"):
        play(envs, builder, 3)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("actions", [0, 1, 2, 1], r"actions: 0 to 2 \(allowed: 0 to 1\)"),
        ("actions", [0, 1, 0], r"actions: shape \[3\] \(needed here: \[4\]\)"),
        ("behaviour_logits", np.zeros((4, 3)), r"behaviour_logits: shape \[4, 3\]"),
        ("observations", np.zeros((4, 2)), r"observations: shape \[4, 2\]"),
        ("rewards", 1.0, r"rewards: shape \[\]"),
        ("terminated", [[False] * 4], r"terminated: shape \[1, 4\]"),
        ("truncated", [False], r"truncated: shape \[1\]"),
    ],
)
def test_a_step_of_another_shape_is_named(
    field: str, value: object, message: str
) -> None:
    step = {
        "actions": [0] * 4,
        "behaviour_logits": np.zeros((4, 2)),
        "observations": FIRST,
        "rewards": np.ones(4),
        "terminated": [False] * 4,
        "truncated": [False] * 4,
    }
    builder = RolloutBuilder(FIRST, num_actions=2)
    with pytest.raises(UserError, match=message):
        builder.add(**{**step, field: value})
    assert len(builder) == 0


def test_there_is_nothing_to_take_before_a_step() -> None:
    with pytest.raises(UserError, match="no step was added"):
        RolloutBuilder(FIRST, num_actions=2).take()


def test_observations_are_one_array() -> None:
    with pytest.raises(UserError, match=r"one array .* got dict"):
        RolloutBuilder({"position": FIRST}, num_actions=2)
