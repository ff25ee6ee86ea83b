"""Random experience has the shapes of the task and every kind of transition."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from metarl.bench import synthetic
from metarl.envs.tasks import PoolSpec

SPEC = PoolSpec((3, 2), np.dtype(np.float32), 4, ("a", "b", "c", "d"))
LEAD, STEPS, BATCH = (2, 1), 30, 40


@pytest.fixture(scope="module")
def rollout():
    made = synthetic.rollouts(
        jax.random.key(1), SPEC, lead=LEAD, steps=STEPS, batch=BATCH
    )
    return jax.device_get(made)


def test_shapes_and_ranges(rollout) -> None:
    t = rollout.transitions
    assert rollout.observations.shape == (*LEAD, STEPS + 1, BATCH, 3, 2)
    assert t.behaviour_logits.shape == (*LEAD, STEPS, BATCH, 4)
    assert set(np.unique(t.actions)) == {0, 1, 2, 3}
    assert np.abs(t.rewards).max() <= 1
    assert t.rewards.min() < -0.9
    np.testing.assert_allclose(rollout.returns, t.rewards.sum(axis=2), rtol=1e-5)
    np.testing.assert_array_equal(rollout.env_steps, t.valid.sum(axis=(2, 3)))
    assert (rollout.observations[0] != rollout.observations[1]).any()


def test_an_end_is_followed_by_one_transition_that_does_not_exist(rollout) -> None:
    t = rollout.transitions
    ends = t.is_terminal | t.cut
    assert t.is_terminal.any()
    assert t.cut.any()
    assert not (t.is_terminal & t.cut).any()
    np.testing.assert_array_equal(~t.valid[:, :, 1:], ends[:, :, :-1])
    assert t.valid[:, :, 0].all()
    assert not (ends & ~t.valid).any()
    assert (t.rewards[~t.valid] == 0).all()


@pytest.mark.parametrize(("dtype", "values"), [(np.uint8, 256), (np.bool_, 2)])
def test_observations_are_of_the_tasks_kind(dtype: type, values: int) -> None:
    spec = PoolSpec((16, 16), np.dtype(dtype), 2, ("a", "b"))
    made = synthetic.rollouts(jax.random.key(2), spec, lead=(1,), steps=3, batch=4)
    assert made.observations.dtype == dtype
    assert len(np.unique(made.observations)) == values
