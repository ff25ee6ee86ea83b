from __future__ import annotations

import jax
import numpy as np
import pytest

from metarl.rollout.replay import Replay
from metarl.types import Rollout, Transitions

STEPS = 3


def numbered(first: int, count: int) -> Rollout:
    """Return trajectories of which every array holds the trajectory's number."""
    ids = np.arange(first, first + count)
    transition = np.broadcast_to(ids, (STEPS, count))
    observation = np.broadcast_to(ids, (STEPS + 1, count))
    return Rollout(
        observations=np.repeat(observation[..., None], 2, axis=-1).astype(np.uint8),
        transitions=Transitions(
            actions=transition.astype(np.int32),
            behaviour_logits=np.repeat(transition[..., None], 3, -1).astype(np.float32),
            rewards=(transition + 10 * np.arange(STEPS)[:, None]).astype(np.float32),
            is_terminal=transition % 2 == 0,
            cut=transition % 2 == 1,
            valid=np.ones((STEPS, count), bool),
            learn=np.ones((STEPS, count), np.float32),
            own=np.ones((STEPS, count), bool),
        ),
        returns=ids.astype(np.float32),
        success=ids > 3,
        env_steps=np.int32(STEPS * count),
    )


def held(replay: Replay) -> set[int]:
    return set(replay.sample(500).returns.astype(int).tolist())


def test_first_in_first_out():
    replay = Replay(4, seed=0)
    replay.add(numbered(0, 3))
    assert len(replay) == 3
    assert held(replay) == {0, 1, 2}
    replay.add(numbered(3, 3))
    assert len(replay) == 4
    assert held(replay) == {2, 3, 4, 5}


def test_more_than_fits_keeps_the_newest():
    replay = Replay(4, seed=0)
    replay.add(numbered(0, 1))
    replay.add(numbered(1, 10))
    assert held(replay) == {7, 8, 9, 10}
    replay.add(numbered(11, 1))
    assert held(replay) == {8, 9, 10, 11}


def test_draws_are_uniform_and_independent():
    replay = Replay(4, seed=0)
    replay.add(numbered(0, 4))
    draws = replay.sample(40_000).returns.astype(int)
    counts = np.bincount(draws, minlength=4)
    # Four standard deviations of a binomial (n = 40,000, p = 1/4) are 346.
    assert np.abs(counts - 10_000).max() < 350
    # With replacement: neighbours are equal as often as chance says.
    assert np.mean(draws[1:] == draws[:-1]) == pytest.approx(0.25, abs=0.01)


def test_a_batch_may_be_larger_than_what_is_held():
    replay = Replay(8, seed=0)
    replay.add(numbered(0, 2))
    assert replay.sample(64).returns.shape == (64,)


def test_seed_and_additions_decide_the_draws():
    def draws(seed: int) -> list[float]:
        replay = Replay(8, seed=seed)
        drawn: list[float] = []
        for i in range(4):
            replay.add(numbered(4 * i, 4))
            drawn += replay.sample(16).returns.tolist()
        return drawn

    assert draws(1) == draws(1)
    assert draws(1) != draws(2)


def test_a_trajectory_stays_together():
    replay = Replay(8, seed=3)
    replay.add(numbered(0, 5))
    batch = replay.sample(16)
    ids = batch.returns.astype(int)
    assert len(set(ids.tolist())) > 1
    np.testing.assert_array_equal(
        batch.observations, np.broadcast_to(ids[None, :, None], (STEPS + 1, 16, 2))
    )
    t = batch.transitions
    np.testing.assert_array_equal(t.actions, np.broadcast_to(ids, (STEPS, 16)))
    np.testing.assert_array_equal(t.rewards, ids + 10 * np.arange(STEPS)[:, None])
    np.testing.assert_array_equal(t.is_terminal, np.tile(ids % 2 == 0, (STEPS, 1)))
    np.testing.assert_array_equal(batch.success, ids > 3)


def test_arrays_keep_their_types_and_memory_is_what_they_need():
    replay = Replay(100, seed=0)
    rollout = numbered(0, 2)
    replay.add(rollout)
    batch = replay.sample(4)
    kept, given = (jax.tree.map(lambda x: x.dtype, r) for r in (batch, rollout))
    assert kept == given
    assert batch.observations.dtype == np.uint8
    per_trajectory = sum(x.nbytes // 2 for x in jax.tree.leaves(rollout) if x.ndim > 0)
    assert replay.nbytes == 100 * per_trajectory


def test_what_was_given_is_copied():
    replay = Replay(4, seed=0)
    rollout = numbered(0, 2)
    replay.add(rollout)
    rollout.returns[:] = 99
    assert held(replay) == {0, 1}


def test_env_steps_are_those_acted_since_the_last_sample():
    replay = Replay(4, seed=0)
    replay.add(numbered(0, 2))
    replay.add(numbered(2, 4))
    assert replay.sample(3).env_steps == STEPS * 6
    assert replay.sample(3).env_steps == 0
    replay.add(numbered(6, 1))
    assert replay.sample(3).env_steps == STEPS


def test_refuses_no_capacity_and_an_empty_draw():
    with pytest.raises(ValueError, match="capacity: 0"):
        Replay(0, seed=0)
    with pytest.raises(ValueError, match="nothing was added"):
        Replay(1, seed=0).sample(1)
