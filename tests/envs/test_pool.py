"""What environments do, pinned on real pools."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import envpool
import gymnasium.envs.toy_text.frozen_lake
import numpy as np
import pytest

from metarl.config import AtariOptions, EnvironmentConfig
from metarl.envs import families, suites
from metarl.envs.pool import Pool, Step
from metarl.envs.tasks import Task, resolve_environment

NOOP, FIRE = 0, 1


def atari(*, clip_rewards: bool = False, **options: object) -> EnvironmentConfig:
    """Return a configuration with small frames and no random no-ops."""
    small = {"frame_size": 36, "frame_stack": 2, "noop_max": 1} | options
    return EnvironmentConfig(
        clip_rewards=clip_rewards, atari=AtariOptions.model_validate(small)
    )


def play(pool: Pool, actions: Callable[[int], int], num_steps: int) -> list[Step]:
    """Return steps in which every environment takes ``actions(t)``."""
    return [pool.step(np.full(pool.num_envs, actions(t))) for t in range(num_steps)]


def same(left: Step, right: Step) -> bool:
    return all(
        np.array_equal(getattr(left, field.name), getattr(right, field.name))
        for field in dataclasses.fields(Step)
    )


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


def test_catch_lasts_until_the_ball_lands() -> None:
    (task,) = resolve_environment(EnvironmentConfig(suite="catch_5x5"))
    pool = Pool(task, EnvironmentConfig(), num_envs=16, seed=1)
    assert pool.reset().sum() == 32  # ball and paddle
    steps = play(pool, lambda _: 1, 4)
    assert not any(step.is_terminal.any() for step in steps[:3])
    assert steps[3].is_terminal.all()
    assert set(steps[3].raw_rewards.tolist()) == {-1.0, 1.0}
    assert not pool.step(np.ones(16, np.int32)).valid.any()


def test_cartpole_falls_or_is_cut_after_500_steps() -> None:
    pool = Pool("CartPole", EnvironmentConfig(), num_envs=4, seed=1)
    state = pool.reset()
    cut = terminal = 0
    for t in range(520):
        # The first two are balanced, the others pushed to one side.
        lean = state @ np.array([0.1, 0.4, 1.0, 1.0], np.float32)
        step = pool.step(np.where(np.arange(4) < 2, lean > 0, 1).astype(np.int32))
        state = step.observations
        ends = (np.abs(state[:, 0]) > 2.4) | (np.abs(state[:, 2]) > 0.20943951)
        assert np.array_equal(step.is_terminal, step.valid & ends)
        assert np.array_equal(step.raw_rewards, step.valid.astype(np.float32))
        cut += int(step.cut.sum())
        terminal += int(step.is_terminal.sum())
        if step.cut.any():
            assert t == 499
    assert cut == 2
    assert terminal > 50


def test_acrobot_swings_up_or_is_cut_after_500_steps() -> None:
    pool = Pool("Acrobot", EnvironmentConfig(), num_envs=8, seed=1)
    state = pool.reset()
    assert state.shape == (8, 6)
    terminal = 0
    for t in range(520):
        # The first four push with the first link's motion, the others do nothing.
        pushing = np.where(state[:, 4] > 0, 0, 2)
        step = pool.step(np.where(np.arange(8) < 4, pushing, 1))
        state = step.observations
        cos1, sin1, cos2, sin2 = state[:, :4].T
        height = -cos1 - (cos1 * cos2 - sin1 * sin2)  # of the tip, over the pivot
        assert np.array_equal(step.is_terminal, step.valid & (height > 1))
        paid = step.valid & ~step.is_terminal
        assert np.array_equal(step.raw_rewards, -paid.astype(np.float32))
        assert step.cut[:4].sum() == 0
        assert step.cut[4:].all() == (t == 499)
        terminal += int(step.is_terminal.sum())
    assert terminal > 10


def test_mountain_car_arrives_or_is_cut_after_200_steps() -> None:
    pool = Pool("MountainCar", EnvironmentConfig(), num_envs=8, seed=1)
    state = pool.reset()
    assert state.shape == (8, 2)
    terminal = 0
    for t in range(210):
        pushing = np.where(state[:, 1] >= 0, 2, 0)
        step = pool.step(np.where(np.arange(8) < 4, pushing, 1))
        state = step.observations
        arrived = (state[:, 0] >= 0.5) & (state[:, 1] >= 0)
        assert np.array_equal(step.is_terminal, step.valid & arrived)
        assert np.array_equal(step.raw_rewards, -step.valid.astype(np.float32))
        assert step.cut[:4].sum() == 0
        assert step.cut[4:].all() == (t == 199)
        terminal += int(step.is_terminal.sum())
    assert terminal >= 4


@pytest.mark.parametrize(
    ("game", "rewards", "ended"),
    [("Acrobot", [0.0, -1.0], [1, 0]), ("MountainCar", [-1.0] * 4, [1, 0, 0, 1])],
)
def test_an_end_in_the_very_last_step_is_told_from_the_time_limit(
    game: str, rewards: list[float], ended: list[int]
) -> None:
    family = families.family_of(Task(suites.get_game(game)))
    state = np.array([[0.5, 0.0], [0.49, 0.03], [0.6, -0.01], [0.53, 0.05]])
    raw = np.pad(state[: len(rewards)], ((0, 0), (0, 4)))
    assert family.ended(raw, np.array(rewards), {}).tolist() == ended


def test_frozen_lake_is_one_hot_and_ends_in_holes_and_the_goal() -> None:
    maps = gymnasium.envs.toy_text.frozen_lake.MAPS
    for name, size in (("FrozenLake-v1", 4), ("FrozenLake8x8-v1", 8)):
        cells = "".join(maps[f"{size}x{size}"])
        ends = {i for i, cell in enumerate(cells) if cell in "HG"}
        family = families.family_of(Task(suites.get_game(name)))
        every = np.arange(size**2)
        told = family.ended(every, np.zeros(size**2), {})
        assert set(np.flatnonzero(told).tolist()) == ends
        pool = Pool(name, EnvironmentConfig(), num_envs=64, seed=1)
        assert pool.reset().argmax(-1).tolist() == [0] * 64
        rng = np.random.default_rng(0)
        seen, cut = set(), 0
        for _ in range(400):
            step = pool.step(rng.integers(1, 3, size=64))
            assert step.observations.sum(-1).tolist() == [1] * 64
            where = step.observations.argmax(-1)
            seen |= set(where[step.is_terminal].tolist())
            assert not set(where[~step.is_terminal].tolist()) & ends
            assert np.array_equal(step.raw_rewards == 1, where == size**2 - 1)
            cut += int(step.cut.sum())
        assert size**2 - 1 in seen
        assert seen <= ends


def test_frozen_lake_is_cut_after_100_steps() -> None:
    pool = Pool("FrozenLake", EnvironmentConfig(), num_envs=512, seed=1)
    pool.reset()
    length = np.zeros(512, np.int64)
    cuts: list[int] = []
    for _ in range(120):
        step = pool.step(np.full(512, 3))  # UP: stays in the upper row for long
        length = np.where(step.valid, length + 1, 0)
        cuts += length[step.cut].tolist()
    assert cuts
    assert set(cuts) == {100}


def test_minigrid_is_one_hot_per_code_plus_direction() -> None:
    config = EnvironmentConfig(suite="minigrid")
    for task in resolve_environment(config):
        name = task.game.task_id
        pool = Pool(task, config, num_envs=3, seed=7)
        raw = envpool.make(name, env_type="gymnasium", num_envs=3, seed=7)
        encoded, (original, _) = pool.reset(), raw.reset()
        rng = np.random.default_rng(0)
        for _ in range(60):
            cells = encoded[:, :-4].reshape(3, 7, 7, 20)
            parts = np.split(cells, [11, 17], axis=-1)
            for channel, part in enumerate(parts):
                assert (part.sum(-1) == 1).all()
                assert np.array_equal(part.argmax(-1), original["image"][..., channel])
            assert (encoded[:, -4:].sum(-1) == 1).all()
            assert np.array_equal(encoded[:, -4:].argmax(-1), original["direction"])
            actions = rng.integers(7, size=3)
            encoded = pool.step(actions).observations
            original = raw.step(actions)[0]


def test_listed_minigrid_tasks_have_one_mission() -> None:
    """Agents do not see the mission, so it must not change."""
    for name, game in suites.GAMES.items():
        if game.family == "minigrid":
            pool = envpool.make(name, env_type="gymnasium", num_envs=16, seed=1)
            assert len(np.unique(pool.reset()[0]["mission"], axis=0)) == 1, name


def test_minigrid_ends_with_a_reward_or_a_cut() -> None:
    pool = Pool("MiniGrid-Empty-Random-5x5", EnvironmentConfig(), num_envs=32, seed=1)
    pool.reset()
    rng = np.random.default_rng(0)
    ends = np.zeros(2, np.int64)
    for _ in range(220):
        step = pool.step(rng.integers(3, size=32))
        assert np.array_equal(step.is_terminal, step.raw_rewards > 0)
        ends += [int(step.is_terminal.sum()), int(step.cut.sum())]
    assert ends.min() > 0
    episodes = pool.drain_episodes()
    assert len(episodes.returns) == ends.sum()
    assert (episodes.returns > 0).sum() == ends[0]
    assert set(episodes.lengths[episodes.returns == 0].tolist()) == {100}


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
