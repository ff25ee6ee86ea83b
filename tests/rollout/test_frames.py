"""Replay of stacked frames: each kept once, and all of them back to the byte."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import numpy as np
import pytest

from metarl.config import AtariOptions, EnvironmentConfig
from metarl.envs.pool import Pool
from metarl.envs.tasks import pool_spec, resolve_environment
from metarl.rollout import frames
from metarl.rollout.frames import FrameStore
from metarl.rollout.replay import Replay
from metarl.types import Rollout, Transitions


def rollouts(pool: Pool, length: int, *, num_actions: int = 18) -> Iterator[Rollout]:
    """Yield rollouts ``[T, B]`` of random play, one after another."""
    rng = np.random.default_rng(0)
    batch = pool.num_envs
    pool.reset()
    while True:
        observations, steps = [pool.observations], []
        actions = rng.integers(num_actions, size=(length, batch)).astype(np.int32)
        for t in range(length):
            steps.append(pool.step(actions[t]))
            observations.append(steps[-1].observations)
        fields = {
            name: np.stack([getattr(step, name) for step in steps])
            for name in ("rewards", "is_terminal", "cut", "valid")
        }
        returns = fields["rewards"].sum(axis=0)
        yield Rollout(
            observations=np.stack(observations),
            transitions=Transitions(
                actions=actions,
                behaviour_logits=rng.normal(size=(length, batch, num_actions)).astype(
                    np.float32
                ),
                learn=np.ones((length, batch), np.float32),
                own=np.ones((length, batch), np.bool_),
                **fields,
            ),
            returns=returns,
            success=returns > 0,
            env_steps=np.int32(fields["valid"].sum()),
        )


def atari(**options: object) -> EnvironmentConfig:
    return EnvironmentConfig(atari=AtariOptions.model_validate(options))


def frames_in(observations: np.ndarray, stack: int) -> set[bytes]:
    """Return the distinct frames of observations ``[..., H, W, C]``."""
    colours = observations.shape[-1] // stack
    return {
        picture[..., s * colours : (s + 1) * colours].tobytes()
        for picture in observations.reshape(-1, *observations.shape[-3:])
        for s in range(stack)
    }


def assert_same(left: Rollout, right: Rollout) -> None:
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


# Episodes are cut short, so that resets fall inside of trajectories; by their no-ops,
# by fire, and after lost lives.
@pytest.mark.parametrize(
    ("game", "stack", "options"),
    [
        ("Pong", 4, {"max_episode_frames": 43}),
        ("Pong", 2, {"max_episode_frames": 43, "grayscale": False}),
        ("Breakout", 4, {"episodic_life": True, "noop_max": 1}),
        ("Breakout", 4, {"grayscale": False, "fire_reset": True, "noop_max": 1}),
        ("Breakout", 1, {"max_episode_frames": 80}),
        ("Freeway", 2, {"max_episode_frames": 80}),
        ("Freeway", 1, {"max_episode_frames": 80, "grayscale": False}),
    ],
)
def test_real_rollouts_come_back_to_the_byte(
    game: str, stack: int, options: dict[str, object]
) -> None:
    config = atari(frame_size=36, frame_stack=stack, **options)
    pool = Pool(game, config, num_envs=3, seed=5)
    assert pool.spec.frame_stack == stack
    whole = Replay(7, seed=0)
    once = Replay(7, seed=0, frame_stack=pool.spec.frame_stack)
    resets, held = 0, []
    for rollout, _ in zip(rollouts(pool, 29), range(8), strict=False):
        resets += int((~rollout.transitions.valid).sum())
        whole.add(rollout), once.add(rollout)
        assert_same(once.sample(11), whole.sample(11))
        held += list(np.swapaxes(rollout.observations, 0, 1))
        distinct = set.union(*(frames_in(o, stack) for o in held[-7:]))
        assert len(once._frames) == len(distinct)
    assert resets >= 2
    pool.close()


def test_frames_come_back_after_a_stop() -> None:
    pool = Pool("Breakout", atari(frame_size=36), num_envs=2, seed=5)
    whole = Replay(5, seed=0, frame_stack=4)
    source = rollouts(pool, 9)
    for rollout, _ in zip(source, range(4), strict=False):
        whole.add(rollout)
    again = Replay(5, seed=0, frame_stack=4)
    again.restore(whole.state())
    for rollout, n in zip(source, range(4), strict=False):
        draws = [x.sample(11, np.random.default_rng(n)) for x in (whole, again)]
        assert_same(*draws)
        whole.add(rollout), again.add(rollout)
        # Each frame is kept once, as before.
        assert len(again._frames) == len(whole._frames)
    pool.close()


def test_only_stacks_of_frames_are_taken_apart() -> None:
    for suite in ("catch", "cartpole", "acrobot", "frozen_lake", "minigrid"):
        config = EnvironmentConfig(suite=suite)
        task = resolve_environment(config, same_shapes=False)[0]
        assert pool_spec(task, config).frame_stack is None


def memory_ratios(game: str, *, capacity: int, batch: int) -> tuple[float, float]:
    """Return the replay's bytes over those of its distinct frames.

    Distinct within each trajectory; and in all of them together.
    """
    pool = Pool(game, atari(), num_envs=batch, seed=1)
    replay = Replay(capacity, seed=0, frame_stack=pool.spec.frame_stack)
    held: list[set[int]] = []
    # Past its capacity, so that it has forgotten some.
    for rollout in rollouts(pool, 29):
        replay.add(rollout)
        for b in range(batch):
            pictures = frames_in(rollout.observations[:, b], 4)
            held.append({hash(picture) for picture in pictures})
        if len(held) >= capacity * 5 // 4:
            break
    pool.close()
    frame_bytes = 84 * 84
    held = held[-capacity:]
    apart, together = sum(map(len, held)), len(set.union(*held))
    assert len(replay._frames) == together
    return (
        replay.nbytes / (apart * frame_bytes),
        replay.nbytes / (together * frame_bytes),
    )


def test_memory_is_that_of_the_distinct_frames() -> None:
    apart, together = memory_ratios("Breakout", capacity=64, batch=8)
    assert apart < together < 1.15
    assert apart < 1


@pytest.mark.slow
@pytest.mark.parametrize("game", ["Pong", "Breakout", "Freeway"])
def test_memory_of_a_whole_replay(game: str) -> None:
    apart, together = memory_ratios(game, capacity=1024, batch=16)
    assert apart < together < 1.15


def noise(count: int, seed: int = 0) -> np.ndarray:
    """Return ``count`` observations of two frames, all of them different."""
    rng = np.random.default_rng(seed)
    return rng.integers(256, size=(count, 6, 6, 2)).astype(np.uint8)


def test_frames_of_one_key_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "_key", lambda content: content[0] % 2)
    store, seen = FrameStore(2), noise(20)
    slots = store.put(seen)
    assert len(store) == 40
    again = store.put(seen)
    for index in (slots, again):
        np.testing.assert_array_equal(store.stacked(index[:, None])[0], seen)
    store.release(again)
    np.testing.assert_array_equal(store.stacked(slots[:, None])[0], seen)
    store.release(slots)
    assert len(store) == 0
    # What was forgotten is not found any more, but what takes its place is.
    fresh = store.put(noise(20, seed=1))
    np.testing.assert_array_equal(store.stacked(fresh[:, None])[0], noise(20, seed=1))


def test_memory_is_given_back() -> None:
    store, seen = FrameStore(2), noise(100)
    slots = store.put(seen)
    full = store.nbytes
    assert store.compact() is None
    store.release(slots[:80])
    moved_to = store.compact()
    assert moved_to is not None
    assert store.nbytes < 0.3 * full
    kept = moved_to[slots[80:]]
    np.testing.assert_array_equal(store.stacked(kept[:, None])[0], seen[80:])
    # Moved frames are found where they are now.
    np.testing.assert_array_equal(store.put(seen[80:]), kept)
    assert len(store) == 40


def test_a_replay_shrinks_when_pictures_stand_still() -> None:
    def made(observations: np.ndarray) -> Rollout:
        length, batch = observations.shape[0] - 1, observations.shape[1]
        zeros = np.zeros((length, batch), np.float32)
        flags = zeros.astype(np.bool_)
        return Rollout(
            observations=observations,
            transitions=Transitions(
                actions=zeros.astype(np.int32),
                behaviour_logits=np.zeros((length, batch, 3), np.float32),
                rewards=zeros,
                is_terminal=flags,
                cut=flags,
                valid=~flags,
                learn=zeros,
                own=flags,
            ),
            returns=np.zeros(batch, np.float32),
            success=np.zeros(batch, np.bool_),
            env_steps=np.int32(length * batch),
        )

    moving = noise(6 * 40).reshape(6, 40, 6, 6, 2)
    still = np.broadcast_to(moving[:1, :1], moving.shape)
    once, whole = Replay(40, seed=0, frame_stack=2), Replay(40, seed=0)
    memory = []
    for observations in (moving, still[:, :30], still[:, :8], moving[:, :8]):
        for replay in (once, whole):
            replay.add(made(observations))
        assert_same(once.sample(50), whole.sample(50))
        memory.append(once.nbytes)
    held = frames_in(moving[:, :8], 2) | frames_in(still, 2)
    assert len(once._frames) == len(held)
    assert memory[1] < 0.7 * memory[0]
    assert memory[2] < memory[1] < memory[0]
