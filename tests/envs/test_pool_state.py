"""Determinism, epochs, and pools that are brought back by replaying."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest

from metarl.config import AtariOptions, EnvironmentConfig
from metarl.envs.pool import MAX_ENVS, Pool, PoolState, Step
from metarl.envs.pools import make_pools, pool_seed, restore_pools
from metarl.envs.suites import GAMES
from metarl.envs.tasks import Task, resolve_environment

ATARI = AtariOptions(frame_size=36, frame_stack=2)
STICKY = EnvironmentConfig(
    atari=ATARI.model_copy(update={"sticky_actions": 0.25, "max_episode_frames": 400})
)
SHORT = EnvironmentConfig(
    atari=ATARI.model_copy(
        update={
            "episodic_life": True,
            "fire_reset": True,
            "max_episode_frames": 240,
            "full_action_set": False,
        }
    ),
    clip_rewards=True,
)
CASES = {
    "sticky": ("Pong", STICKY),
    "lives": ("Breakout", SHORT),
    "mapped": ("Skiing", STICKY),
    "catch": ("Catch", EnvironmentConfig()),
    "cartpole": ("CartPole", EnvironmentConfig()),
    "acrobot": ("Acrobot", EnvironmentConfig()),
    "mountain_car": ("MountainCar", EnvironmentConfig()),
    "frozen_lake": ("FrozenLake", EnvironmentConfig()),
    "minigrid": ("MiniGrid-Empty-Random-5x5", EnvironmentConfig()),
}
NUM_ENVS = 3


def pool_of(case: str, **options: int) -> Pool:
    game, config = CASES[case]
    return Pool(game, config, num_envs=NUM_ENVS, seed=11, **options)


def random_actions(pool: Pool, seed: int = 0) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(seed)
    while True:
        yield rng.integers(pool.spec.num_actions, size=pool.num_envs)


def advance(pool: Pool, actions: Iterator[np.ndarray], steps: int) -> list[Step]:
    return [pool.step(next(actions)) for _ in range(steps)]


def assert_same(left: list[Step], right: list[Step]) -> None:
    assert len(left) == len(right)
    for t, (a, b) in enumerate(zip(left, right, strict=True)):
        for field in dataclasses.fields(Step):
            x, y = getattr(a, field.name), getattr(b, field.name)
            assert x.tobytes() == y.tobytes(), (t, field.name)


@pytest.mark.parametrize("case", CASES)
def test_the_number_of_threads_changes_nothing(case: str) -> None:
    runs = []
    for threads in (1, 3):
        pool = pool_of(case, num_threads=threads)
        pool.reset()
        runs.append(advance(pool, random_actions(pool), 150))
    assert_same(*runs)


def test_seeds_matter_and_each_environment_has_its_own() -> None:
    game, config = CASES["sticky"]
    left = Pool(game, config, num_envs=3, seed=11)
    right = Pool(game, config, num_envs=3, seed=12)
    left.reset(), right.reset()
    actions = np.random.default_rng(0).integers(18, size=80)
    for action in actions:
        a, b = (pool.step(np.full(3, action)) for pool in (left, right))
    # Environment i is seeded with seed + i.
    assert np.array_equal(a.observations[1:], b.observations[:-1])
    assert not np.array_equal(a.observations[0], a.observations[1])


@pytest.mark.parametrize("case", CASES)
def test_a_restored_pool_goes_on_as_if_nothing_had_happened(case: str) -> None:
    pool = pool_of(case)
    pool.reset()
    actions = random_actions(pool)
    advance(pool, actions, 40)
    pool.drain_episodes()
    advance(pool, actions, 37)
    midway = pool.state()
    # On to a moment right after a done, where a reset is pending.
    for _ in range(450):
        step = pool.step(next(actions))
        if (step.cut if case == "lives" else step.is_terminal | step.cut).any():
            break
    pending = pool.state()
    until_pending = len(pending.actions) - len(midway.actions)
    expected = advance(pool, actions, 60)
    assert not expected[0].valid.all()
    episodes = pool.drain_episodes()
    assert len(episodes.returns) >= 1

    for state, skipped in ((midway, until_pending), (pending, 0)):
        restored = pool_of(case, num_threads=2)
        observations = restored.restore(state)
        assert observations.tobytes() == restored.observations.tobytes()
        again = random_actions(restored)
        for _ in range(len(state.actions)):
            next(again)
        steps = advance(restored, again, skipped + 60)
        assert_same(steps[skipped:], expected)
        replayed = restored.drain_episodes()
        assert np.array_equal(replayed.returns, episodes.returns)
        assert np.array_equal(replayed.lengths, episodes.lengths)


def test_the_state_right_after_a_done_knows_of_the_pending_reset() -> None:
    pool = pool_of("catch")
    pool.reset()
    steps = advance(pool, random_actions(pool), 9)
    assert steps[-1].is_terminal.all()
    restored = pool_of("catch")
    restored.restore(pool.state())
    assert np.array_equal(restored.observations, steps[-1].observations)
    assert not restored.step(np.zeros(NUM_ENVS, np.int32)).valid.any()


def test_a_state_of_a_pool_that_has_not_moved_restores_its_reset() -> None:
    pool = pool_of("catch")
    first = pool.reset()
    assert pool.state().actions.shape == (0, NUM_ENVS)
    restored = pool_of("catch")
    assert np.array_equal(restored.restore(pool.state()), first)
    assert restored.steps == 0


def test_taking_the_state_disturbs_nothing() -> None:
    left, right = pool_of("lives"), pool_of("lives")
    left.reset(), right.reset()
    actions, others = random_actions(left), random_actions(right)
    steps = advance(left, actions, 80)
    watched = []
    for _ in range(80):
        watched += advance(right, others, 1)
        right.state()
    assert_same(steps, watched)


def test_the_state_is_a_copy_of_one_byte_per_step() -> None:
    pool = pool_of("catch")
    pool.reset()
    actions = random_actions(pool)
    advance(pool, actions, 300)  # beyond what is set aside at first
    state = pool.state()
    assert state.actions.dtype == np.uint8
    expected = random_actions(pool)
    assert all(np.array_equal(row, next(expected)) for row in state.actions)
    before = state.actions.copy()
    advance(pool, actions, 5)
    assert np.array_equal(state.actions, before)


def test_a_replay_that_leads_elsewhere_is_noticed() -> None:
    pool = pool_of("catch")
    pool.reset()
    advance(pool, random_actions(pool), 20)
    state = pool.state()
    wrong = dataclasses.replace(state, checksum=state.checksum ^ 1)
    with pytest.raises(RuntimeError, match="replaying 20 steps led to other"):
        pool_of("catch").restore(wrong)
    fewer = PoolState(state.seed, state.actions[:, :2], 0, state.checksum)
    with pytest.raises(ValueError, match="3"):
        pool_of("catch").restore(fewer)


def test_pools_replay_together_and_report() -> None:
    config = EnvironmentConfig(games=("Pong", "Breakout"), atari=ATARI)
    tasks = resolve_environment(config)
    pools = make_pools(tasks, config, seeds=(3, 9000), num_envs=2)
    for pool, steps in zip(pools, (70, 30), strict=True):
        pool.reset()
        advance(pool, random_actions(pool), steps)
    again = make_pools(tasks, config, seeds=(1, 2), num_envs=2)
    reports: list[tuple[int, int]] = []
    restore_pools(
        again,
        [pool.state() for pool in pools],
        report=lambda done, to_do: reports.append((done, to_do)),
        report_every=25,
    )
    assert reports == [(0, 200), (100, 200), (160, 200), (200, 200)]
    for pool, other in zip(pools, again, strict=True):
        assert other.seed == pool.seed
        assert_same(
            advance(pool, random_actions(pool, 1), 30),
            advance(other, random_actions(other, 1), 30),
        )


def test_pools_step_at_the_same_time() -> None:
    """All are sent to before any is received from, and give what they give alone."""
    config = EnvironmentConfig(num_envs=2, games=("Pong", "Qbert"), atari=ATARI)
    tasks = resolve_environment(config)
    together = make_pools(tasks, config, seeds=(1, 5))
    alone = make_pools(tasks, config, seeds=(1, 5))
    for pool in (*together, *alone):
        pool.reset()
    rng = np.random.default_rng(0)
    for actions in rng.integers(18, size=(40, 2, 2)):
        for pool, own in zip(together, actions, strict=True):
            pool.send(own)
        steps = [pool.recv() for pool in together]
        expected = [p.step(own) for p, own in zip(alone, actions, strict=True)]
        assert_same(steps, expected)


def test_an_epoch_ends_and_a_new_seed_starts_another() -> None:
    config = EnvironmentConfig(epoch_steps=12)
    pool = Pool("Catch", config, num_envs=16, seed=1)
    first = pool.reset()
    actions = random_actions(pool)
    advance(pool, actions, 11)
    assert not pool.needs_new_epoch
    advance(pool, actions, 1)
    assert pool.needs_new_epoch
    second = pool.rebuild(1000)
    assert not np.array_equal(first, second)
    assert (pool.seed, pool.steps, pool.needs_new_epoch) == (1000, 0, False)
    assert len(pool.drain_episodes().returns) == 0
    assert pool.step(next(actions)).valid.all()


def test_pool_seeds_never_overlap_within_an_epoch() -> None:
    for base_seed, epoch in ((1, 0), (1, 1), (2**31 - 1, 7)):
        seeds = [
            pool_seed(base_seed, group, peer, epoch)
            for group in range(128)
            for peer in range(4)
        ]
        assert np.diff(np.sort(seeds)).min() >= MAX_ENVS
        assert min(seeds) >= 0
        assert max(seeds) + MAX_ENVS <= 2**31
    assert pool_seed(1, 0, 0, 0) != pool_seed(1, 0, 0, 1)
    assert pool_seed(1, 0, 0, 0) != pool_seed(2, 0, 0, 0)
    # Frozen: another value would change every run.
    assert pool_seed(1, 2, 3, 4) == 194_719_744
    with pytest.raises(ValueError, match="8192 groups of 64 peers"):
        pool_seed(1, 0, 64, 0)


def test_threads_are_shared_between_pools() -> None:
    config = EnvironmentConfig(num_threads=4, num_envs=2)
    tasks = [Task(GAMES["Catch-v0"])] * 3
    pools = make_pools(tasks, config, seeds=(1, 10, 20))
    assert [pool.num_envs for pool in pools] == [2, 2, 2]
    assert [pool.num_threads for pool in pools] == [1, 1, 1]
    (pool,) = make_pools(tasks[:1], config, seeds=(1,), num_envs=8)
    assert (pool.num_envs, pool.num_threads) == (8, 4)
