"""Batches of new and replayed trajectories: whose, which, and again after a stop."""

from __future__ import annotations

from collections import Counter

import jax
import numpy as np
import pytest

from metarl.config import PopulationReplayConfig
from metarl.errors import UserError
from metarl.rollout.batches import ReplayedBatches, batch_size
from metarl.types import Rollout, Transitions

STEPS, ENVS = 3, 2
LIVES = np.zeros(2, np.int64)


def acted(number: int) -> Rollout:
    """Return what two groups acted: every trajectory has its number everywhere.

    That of group g, environment b is ``100 g + 10 number + b``.
    """
    ids = 100 * np.arange(2)[:, None, None] + 10 * number + np.arange(ENVS)
    transition = np.repeat(ids[:, :, None], STEPS, axis=2)
    observation = np.repeat(ids[:, :, None], STEPS + 1, axis=2)
    return Rollout(
        observations=np.repeat(observation[..., None], 4, axis=-1).astype(np.float32),
        transitions=Transitions(
            actions=transition.astype(np.int32),
            behaviour_logits=np.repeat(transition[..., None], 3, -1).astype(np.float32),
            rewards=transition.astype(np.float32),
            is_terminal=transition % 2 == 0,
            cut=transition % 2 == 1,
            valid=np.ones(transition.shape, bool),
            learn=np.ones(transition.shape, np.float32),
            own=np.ones(transition.shape, bool),
        ),
        returns=ids.astype(np.float32),
        success=ids % 2 == 0,
        env_steps=np.full((2, 1), STEPS * ENVS, np.int32),
    )


def new(*, share: float = 0.8, capacity: int = 6, seed: int = 1) -> ReplayedBatches:
    config = PopulationReplayConfig(share=share, capacity=capacity)
    return ReplayedBatches(
        config, members=(0, 3), num_envs=ENVS, seed=seed, frame_stack=None
    )


def numbers(batch: Rollout, group: int) -> list[int]:
    return batch.returns[group, 0].astype(int).tolist()


def test_new_trajectories_come_first_and_the_others_are_the_agents_own() -> None:
    batches, seen = new(), Counter()
    for n in range(60):
        batch = batches.batch(acted(n), LIVES)
        assert batch.returns.shape == (2, 1, 10)
        assert batch.observations.shape == (2, 1, STEPS + 1, 10, 4)
        assert batch.transitions.behaviour_logits.shape == (2, 1, STEPS, 10, 3)
        for group in range(2):
            first = 100 * group + 10 * n
            got = numbers(batch, group)
            assert got[:ENVS] == [first, first + 1]
            kept = {
                first - 10 * age + b for age in range(min(n, 2) + 1) for b in (0, 1)
            }
            assert set(got[ENVS:]) <= kept
            seen.update(first - x for x in got[ENVS:])
        # Agents age by what they acted.
        np.testing.assert_array_equal(batch.env_steps, STEPS * ENVS)
    # All six that are kept are drawn as often.
    assert len(seen) == 6
    assert max(seen.values()) < 1.5 * min(seen.values())


def test_a_trajectory_stays_whole() -> None:
    batches = new()
    for n in range(3):
        batch = batches.batch(acted(n), LIVES)
    ids = batch.returns[:, :, None]
    t = batch.transitions
    for array in (t.actions, t.rewards, t.behaviour_logits[..., 1]):
        np.testing.assert_array_equal(array, np.repeat(ids, STEPS, axis=2))
    np.testing.assert_array_equal(
        batch.observations[..., 2], np.repeat(ids, STEPS + 1, axis=2)
    )
    np.testing.assert_array_equal(t.is_terminal, np.repeat(ids, STEPS, axis=2) % 2 == 0)
    np.testing.assert_array_equal(batch.success, batch.returns % 2 == 0)


def test_newborn_agents_replay_what_they_acted_themselves() -> None:
    batches = new()
    for n in range(3):
        batches.batch(acted(n), LIVES)
    batches.forget(1)
    batch = batches.batch(acted(3), np.array([0, 1]))
    assert set(numbers(batch, 0)) - {30, 31}
    assert set(numbers(batch, 1)) == {130, 131}


def test_seed_group_and_life_decide_the_draws() -> None:
    def draws(seed: int, lives: int) -> list[list[int]]:
        batches = new(seed=seed)
        for n in range(3):
            batch = batches.batch(acted(n), np.full(2, lives))
        return [[x % 100 for x in numbers(batch, group)] for group in range(2)]

    one = draws(1, 0)
    assert one == draws(1, 0)
    assert one[0] != one[1]
    assert one != draws(2, 0)
    assert one != draws(1, 1)


@pytest.mark.parametrize("added", [0, 1, 5])
def test_what_is_kept_comes_back(added: int) -> None:
    whole, stopped = new(), new()
    for n in range(added):
        whole.batch(acted(n), LIVES), stopped.batch(acted(n), LIVES)
    again = new()
    again.restore(stopped.state())
    for n in range(added, added + 4):
        left, right = (x.batch(acted(n), LIVES) for x in (whole, again))
        for a, b in zip(*map(jax.tree.leaves, (left, right)), strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
    assert again.nbytes == whole.nbytes


@pytest.mark.parametrize(
    ("share", "num_envs", "size"),
    [(0.0, 7, 7), (0.9, 10, 100), (0.875, 12, 96), (0.895833, 10, 96), (0.5, 1, 2)],
)
def test_sizes(share: float, num_envs: int, size: int) -> None:
    config = PopulationReplayConfig(share=share)
    assert batch_size(config, num_envs=num_envs) == size


def test_a_batch_that_is_not_whole_is_refused() -> None:
    with pytest.raises(UserError) as refused:
        batch_size(PopulationReplayConfig(share=0.7), num_envs=4)
    assert str(refused.value) == (
        "population.replay.share=0.7: a batch of environment.num_envs / (1 - share) = "
        "13.3333 trajectories must be whole (num_envs=4 is 0.307692 of 13)"
    )
