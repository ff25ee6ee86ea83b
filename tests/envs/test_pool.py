"""What environments do, pinned on real pools: ends, rewards, options, observations."""

from __future__ import annotations

import numpy as np
import pytest
from played_pools import atari, play, same

from metarl.config import AtariOptions, EnvironmentConfig
from metarl.envs import suites
from metarl.envs.pool import Pool, Step
from metarl.envs.tasks import resolve_environment

NOOP, FIRE = 0, 1


def breakout(**options: object) -> Pool:
    """One Breakout; under FIRE alone its five lives last some 120 steps."""
    pool = Pool("Breakout", atari(**options), num_envs=1, seed=1)
    pool.reset()
    return pool


GAME_OVER = 140
"""Steps after which that Breakout is over."""


def end_of(steps: list[Step]) -> int:
    """Return the index of the transition before the first invalid one."""
    return next(t for t, step in enumerate(steps) if not step.valid[0]) - 1


# --- Ends -------------------------------------------------------------------------


def test_the_call_after_a_done_resets_and_does_not_exist() -> None:
    left, right = breakout(), breakout()
    steps = play(left, lambda _: FIRE, GAME_OVER)
    end = end_of(steps)
    assert steps[end].is_terminal[0]
    assert not steps[end].cut[0]
    assert steps[end].valid[0]
    reset = steps[end + 1]
    assert reset.rewards[0] == reset.raw_rewards[0] == 0
    assert not reset.is_terminal[0]
    assert not reset.cut[0]
    assert steps[end + 2].valid[0]
    # Its action changes nothing, nor does it leave a trace.
    others = play(right, lambda t: FIRE if t != end + 1 else 4, GAME_OVER)
    assert all(same(a, b) for a, b in zip(steps, others, strict=True))
    # The stack starts anew: both frames are the first one.
    first = reset.observations[0]
    assert np.array_equal(first[..., 0], first[..., 1])
    assert not np.array_equal(first, steps[end].observations[0])


def test_a_time_limit_cuts_and_does_not_terminate() -> None:
    pool = breakout(max_episode_frames=43)  # ten steps of four frames
    steps = play(pool, lambda _: FIRE, 23)
    assert [t for t, step in enumerate(steps) if step.cut[0]] == [9, 20]
    assert [t for t, step in enumerate(steps) if not step.valid[0]] == [10, 21]
    assert not any(step.is_terminal[0] for step in steps)
    free = play(breakout(), lambda _: FIRE, 10)
    assert np.array_equal(steps[9].observations, free[9].observations)
    assert pool.drain_episodes().lengths.tolist() == [10, 10]


def test_a_game_that_ends_at_its_time_limit_is_terminal() -> None:
    end = end_of(play(breakout(), lambda _: FIRE, GAME_OVER))
    steps = play(breakout(max_episode_frames=4 * (end + 1)), lambda _: FIRE, GAME_OVER)
    assert end_of(steps) == end
    assert steps[end].is_terminal[0]
    assert not steps[end].cut[0]
    one_less = play(breakout(max_episode_frames=4 * end), lambda _: FIRE, end)
    assert one_less[-1].cut[0]
    assert not one_less[-1].is_terminal[0]


def test_a_lost_life_is_terminal_if_asked_for_but_the_game_goes_on() -> None:
    whole, lives = breakout(), breakout(episodic_life=True)
    steps = play(whole, lambda t: FIRE if t % 3 else 3, 400)
    by_life = play(lives, lambda t: FIRE if t % 3 else 3, 400)
    for step, other in zip(steps, by_life, strict=True):
        assert np.array_equal(step.observations, other.observations)
        assert np.array_equal(step.raw_rewards, other.raw_rewards)
        assert np.array_equal(step.valid, other.valid)
        assert not (step.is_terminal & ~other.is_terminal).any()
    games = sum(int(step.is_terminal[0]) for step in steps)
    assert games >= 1
    in_first_game = by_life[: end_of(steps) + 1]
    assert sum(int(step.is_terminal[0]) for step in in_first_game) == 5
    episodes, others = whole.drain_episodes(), lives.drain_episodes()
    assert len(episodes.returns) == games
    assert np.array_equal(episodes.returns, others.returns)
    assert np.array_equal(episodes.lengths, others.lengths)


def test_a_life_lost_at_the_time_limit_is_terminal_and_not_cut() -> None:
    steps = play(breakout(episodic_life=True), lambda _: FIRE, GAME_OVER)
    lost = next(t for t, step in enumerate(steps) if step.is_terminal[0])
    options = {"episodic_life": True, "max_episode_frames": 4 * (lost + 1)}
    last = play(breakout(**options), lambda _: FIRE, lost + 2)
    assert last[lost].is_terminal[0]
    assert not last[lost].cut[0]
    assert not last[lost + 1].valid[0]
    assert not last[lost + 1].is_terminal[0]


@pytest.mark.parametrize(
    ("game", "num_actions"),
    [("Breakout", 18), ("Catch", 3), ("FrozenLake", 4), ("MiniGrid-FourRooms", 7)],
)
def test_observations_are_written_where_they_are_wanted(
    game: str, num_actions: int
) -> None:
    pool, other = (Pool(game, atari(), num_envs=3, seed=1) for _ in range(2))
    pool.reset(), other.reset()
    spec = pool.spec
    buffer = np.zeros((6, 3, *spec.observation_shape), spec.observation_dtype)
    for t in range(6):
        actions = np.full(3, t % num_actions)
        pool.send(actions)
        step, expected = pool.recv(buffer[t]), other.step(actions)
        assert np.shares_memory(step.observations, buffer[t])
        assert not pool.observations.flags.writeable
        assert same(step, expected)
        assert np.array_equal(buffer[t], expected.observations)


# --- Rewards ----------------------------------------------------------------------


def test_clipped_rewards_are_trained_on_and_raw_ones_counted() -> None:
    short, game = 720, "SpaceInvaders"  # frames: episodes of 180 steps
    raw = Pool(game, atari(max_episode_frames=short), num_envs=2, seed=3)
    config = atari(max_episode_frames=short, clip_rewards=True)
    clipped = Pool(game, config, num_envs=2, seed=3)
    raw.reset(), clipped.reset()
    rng = np.random.default_rng(0)
    total = np.zeros(2)
    finished: list[float] = []
    seen: set[float] = set()
    for _ in range(400):
        actions = rng.integers(18, size=2)
        step, other = raw.step(actions), clipped.step(actions)
        assert np.array_equal(step.rewards, step.raw_rewards)
        assert np.array_equal(other.raw_rewards, step.raw_rewards)
        assert np.array_equal(other.rewards, np.clip(step.raw_rewards, -1, 1))
        assert other.rewards.dtype == np.float32
        total += step.raw_rewards
        for i in np.flatnonzero(step.is_terminal | step.cut):
            finished.append(float(total[i]))
            total[i] = 0
        seen |= set(step.raw_rewards.tolist())
    assert max(seen) > 1
    assert len(finished) == 4
    assert min(finished) > 0
    assert clipped.drain_episodes().returns.tolist() == finished
    assert clipped.drain_episodes().returns.tolist() == []


# --- Options ----------------------------------------------------------------------


def test_a_protocol_of_atari_clips_no_other_rewards() -> None:
    dqn = EnvironmentConfig(atari=AtariOptions(protocol="dqn"))
    assert Pool("Pong-v5", dqn, num_envs=1, seed=0).config.clip_rewards
    assert not Pool("Acrobot-v1", dqn, num_envs=1, seed=0).config.clip_rewards


def test_the_full_set_plays_what_the_minimal_one_does_by_meaning() -> None:
    full = Pool("Pong", atari(), num_envs=1, seed=1)
    minimal = Pool("Pong", atari(full_action_set=False), num_envs=1, seed=1)
    full.reset(), minimal.reset()
    assert full.spec.num_actions == 18
    assert minimal.spec.action_meanings == (
        ("NOOP", "FIRE", "RIGHT", "LEFT", "RIGHTFIRE", "LEFTFIRE")
    )
    rng = np.random.default_rng(0)
    for index in rng.integers(6, size=60):
        meaning = minimal.spec.action_meanings[index]
        other = full.spec.action_meanings.index(meaning)
        left = full.step(np.array([other]))
        assert same(left, minimal.step(np.array([index])))


def test_actions_that_a_game_lacks_are_no_ops() -> None:
    idle = Pool("Skiing", atari(), num_envs=2, seed=1)
    firing = Pool("Skiing", atari(), num_envs=2, seed=1)
    idle.reset(), firing.reset()
    idle.step(np.array([NOOP, 3]))
    firing.step(np.array([17, 3]))  # DOWNLEFTFIRE, beyond EnvPool's nine
    for _ in range(30):
        assert same(idle.step(np.array([0, 3])), firing.step(np.array([17, 3])))
    turned = idle.observations
    assert not np.array_equal(turned[0], turned[1])


def test_sticky_actions_repeat_some_actions() -> None:
    sticky = Pool("Pong", atari(protocol="machado"), num_envs=1, seed=1)
    plain = Pool("Pong", atari(), num_envs=1, seed=1)
    sticky.reset(), plain.reset()
    actions = np.random.default_rng(0).integers(18, size=(60, 1))
    pairs = [(sticky.step(action), plain.step(action)) for action in actions]
    assert not all(same(left, right) for left, right in pairs)


def test_fire_reset_serves_the_ball() -> None:
    """Breakout stands still until FIRE is pressed, which the reset then does."""
    waiting = play(breakout(), lambda _: NOOP, 8)
    served = play(breakout(fire_reset=True), lambda _: NOOP, 8)
    assert np.array_equal(waiting[0].observations, waiting[-1].observations)
    assert not np.array_equal(served[0].observations, served[-1].observations)


# --- Observations -----------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        *(
            EnvironmentConfig(suite=s.name)
            for s in suites.list_suites()
            if s.family not in ("procgen", "craftax")  # see test_families.py
        ),
        EnvironmentConfig(games=("FrozenLake8x8",)),
        EnvironmentConfig(
            games=("Pong",),
            atari=AtariOptions(frame_size=40, frame_stack=3, grayscale=False),
        ),
    ],
)
def test_every_suites_observations_have_the_shapes_of_its_spec(
    config: EnvironmentConfig,
) -> None:
    task = resolve_environment(config)[0]
    pool = Pool(task, config, num_envs=2, seed=1)
    for observations in (pool.reset(), pool.step(np.array([0, 1])).observations):
        assert observations.shape == (2, *pool.spec.observation_shape)
        assert observations.dtype == pool.spec.observation_dtype
        assert observations.flags.c_contiguous
    assert np.array_equal(pool.observations, observations)


@pytest.mark.parametrize("channels", [1, 3])
def test_frames_stand_last_with_the_newest_at_the_end(channels: int) -> None:
    pool = Pool(
        "Breakout",
        atari(frame_stack=3, grayscale=channels == 1, fire_reset=True),
        num_envs=2,
        seed=1,
    )
    before = pool.reset()
    for _ in range(5):
        after = pool.step(np.array([2, 3])).observations
        assert after.shape == (2, 36, 36, 3 * channels)
        assert np.array_equal(after[..., :-channels], before[..., channels:])
        assert not np.array_equal(after[..., -channels:], before[..., -channels:])
        before = after
    # Colours are the innermost axis: Breakout's bricks are red before green and blue.
    if channels == 3:
        bricks = after[0, 10:13, 5:30, -3:].reshape(-1, 3).max(0)
        assert bricks[0] > bricks[2]


def test_observations_cannot_be_written_to() -> None:
    pool = Pool("Catch", EnvironmentConfig(), num_envs=1, seed=1)
    with pytest.raises(ValueError, match="read-only"):
        pool.reset()[:] = 0


# --- Misuse -----------------------------------------------------------------------


def test_misuse_is_refused() -> None:
    pool = Pool("Pong", atari(full_action_set=False), num_envs=2, seed=1)
    with pytest.raises(RuntimeError, match="after reset"):
        pool.send(np.array([0, 0]))
    pool.reset()
    with pytest.raises(RuntimeError, match="recv needs a send"):
        pool.recv()
    for actions in ([0, 6], [-1, 0]):
        with pytest.raises(ValueError, match="allowed: 0 to 5"):
            pool.send(np.array(actions))
    with pytest.raises(ValueError, match=r"shape \(1,\)"):
        pool.send(np.array([0]))
    pool.send(np.array([0, 0]))
    with pytest.raises(RuntimeError, match="a recv in between"):
        pool.send(np.array([0, 0]))
    with pytest.raises(RuntimeError, match="recv after the last send"):
        pool.state()
    pool.close()
    pool.close()
    for seed in (-1, 2**31 - 1):
        with pytest.raises(ValueError, match="seed"):
            Pool("Pong", atari(), num_envs=2, seed=seed)
