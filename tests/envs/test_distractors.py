"""Distractors: finite sets, what they do to frames, and which one an episode has."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from metarl.config import AtariOptions, DistractorsConfig, EnvironmentConfig
from metarl.envs import distractors
from metarl.envs.distractors import CLEAN, training_set, unseen_set
from metarl.envs.pool import Pool, Step
from metarl.envs.tasks import PoolSpec, resolve_environment
from metarl.errors import UserError

KINDS = ("noise", "colours", "backgrounds")
SPEC = PoolSpec((20, 10, 3), np.dtype(np.uint8), 3, ("LEFT", "STAY", "RIGHT"))
STACKED = dataclasses.replace(SPEC, observation_shape=(20, 10, 6), frame_stack=2)
PIXELS = EnvironmentConfig(catch_pixels=2)
# Episodes of 20 steps.
SHORT = EnvironmentConfig(
    atari=AtariOptions(frame_size=36, frame_stack=2, max_episode_frames=80)
)


def config_of(kind: str = "backgrounds", **more) -> DistractorsConfig:
    return DistractorsConfig(kind=kind, **more)


def among(environment: EnvironmentConfig, kind: str, **more) -> EnvironmentConfig:
    return environment.model_copy(update={"distractors": config_of(kind, **more)})


def frames_of(spec: PoolSpec = SPEC, batch: int = 1, seed: int = 0) -> np.ndarray:
    shape = (batch, *spec.observation_shape)
    return np.random.default_rng(seed).integers(256, size=shape).astype(np.uint8)


def looks(members: distractors.DistractorSet, frame: np.ndarray) -> np.ndarray:
    """Return one frame ``[1, ...]`` with each of the distractors."""
    frames = np.repeat(frame, len(members), axis=0)
    return members.altered(frames, np.arange(len(members)))


def played(pool: Pool, steps: int, seed: int = 0) -> list[Step]:
    rng = np.random.default_rng(seed)
    return [
        pool.step(rng.integers(pool.spec.num_actions, size=pool.num_envs))
        for _ in range(steps)
    ]


# --- The sets ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_set_is_the_same_again_and_larger_ones_contain_it(kind):
    frame = frames_of()
    eight = looks(training_set(config_of(kind), SPEC), frame)
    training_set.cache_clear()
    assert np.array_equal(looks(training_set(config_of(kind), SPEC), frame), eight)
    more = looks(training_set(config_of(kind, train=20), SPEC), frame)
    assert np.array_equal(more[:8], eight)
    other = looks(training_set(config_of(kind, seed=1), SPEC), frame)
    assert not np.array_equal(other, eight)


@pytest.mark.parametrize("kind", KINDS)
def test_no_unseen_distractor_is_in_the_training_set(kind):
    config = config_of(kind, train=64)
    # Frames of all colours: mixtures of colours that differ do so somewhere.
    frame = frames_of()
    train = looks(training_set(config, SPEC), frame)
    unseen = looks(unseen_set(config, SPEC, 64), frame)
    every = np.concatenate([frame, train, unseen]).reshape(129, -1)
    assert len(np.unique(every, axis=0)) == 129
    # Nor nearly: by a hundredth of the range on average, or more.
    apart = np.abs(every[1:65, None].astype(int) - every[None, 65:]).mean(axis=-1)
    assert apart.min() > 2.5


@pytest.mark.parametrize("kind", KINDS)
def test_clean_frames_stay_as_they_are_and_others_do_not(kind):
    members = training_set(config_of(kind), SPEC)
    frames = frames_of(batch=3)
    before = frames.copy()
    after = members.altered(frames, np.array([CLEAN, 2, CLEAN]))
    assert np.array_equal(frames, before)
    assert np.array_equal(after[[0, 2]], before[[0, 2]])
    assert (after[1] != before[1]).mean() > 0.1
    members.alter(frames, np.array([CLEAN, 2, CLEAN]))
    assert np.array_equal(frames, after)


@pytest.mark.parametrize("kind", KINDS)
def test_frames_of_a_stack_are_altered_alike(kind):
    members = training_set(config_of(kind), STACKED)
    frames = frames_of(STACKED, batch=2)
    numbers = np.array([3, 5])
    whole = members.altered(frames, numbers)
    for colours in (slice(0, 3), slice(3, 6)):
        alone = training_set(config_of(kind), SPEC)
        part = alone.altered(frames[..., colours].copy(), numbers)
        assert np.array_equal(whole[..., colours], part)


def test_noise_is_uniform_up_to_its_strength():
    members = training_set(config_of("noise", strength=0.2, train=64), SPEC)
    grey = np.full((1, *SPEC.observation_shape), 128, np.uint8)
    found = looks(members, grey).astype(int) - 128
    assert (found.min(), found.max()) == (-51, 51)
    # 38,400 draws of mean 0 and deviation 29.4: 5 standard errors.
    assert abs(found.mean()) < 5 * 29.4 / np.sqrt(found.size)
    white = np.full_like(grey, 255)
    assert looks(members, white).min() == 204
    assert looks(members, white).max() == 255  # no wrapping round


def test_backgrounds_are_behind_what_is_brighter():
    members = training_set(config_of("backgrounds", strength=0.8), SPEC)
    black = np.zeros((1, *SPEC.observation_shape), np.uint8)
    pictures = looks(members, black)
    assert pictures.max() <= 204
    assert pictures.max() > 150
    # A few colours each, in rectangles.
    for picture in pictures:
        assert 3 <= len(np.unique(picture.reshape(-1, 3), axis=0)) <= 13
    object_on_black = black.copy()
    object_on_black[:, 4:6, 2:4] = 220
    found = looks(members, object_on_black)
    assert (found[:, 4:6, 2:4] == 220).all()
    found[:, 4:6, 2:4] = pictures[:, 4:6, 2:4]
    assert np.array_equal(found, pictures)


def test_colours_are_mixed_by_one_map_that_keeps_contrast():
    members = training_set(config_of("colours", strength=0.5, train=64), SPEC)
    ramp = np.zeros((1, *SPEC.observation_shape), np.uint8)
    ramp[:] = np.linspace(0, 255, 20).astype(np.uint8)[:, None, None]
    found = looks(members, ramp).astype(int)
    # The same everywhere: equal pixels stay equal.
    assert (found == found[:, :, :1]).all()
    # Of a grey ramp each channel keeps half of its range at least, within rounding.
    low, high = found[:, 0, 0], found[:, -1, 0]
    assert (high - low).min() >= 126
    assert (high - low).max() <= 256
    assert np.std(low) > 10  # brightness
    assert np.std(high - low) > 10  # contrast
    # Hue and saturation: of a red frame some of the red shows in other channels.
    red = np.zeros_like(ramp)
    red[..., 0] = 255
    shift = looks(members, red).astype(int) - looks(members, np.zeros_like(red))
    assert shift[:, 0, 0, 1:].max() > 60
    assert shift[:, 0, 0, 0].min() >= 126


# --- Which one an episode has -----------------------------------------------------


def test_every_member_is_drawn_as_often_as_another():
    seeds = np.repeat(np.arange(7, 107), 90)
    episodes = np.tile(np.arange(90), 100)
    numbers = distractors.draw(8, seeds, episodes)
    counts = np.bincount(numbers - CLEAN, minlength=9)
    # 1,000 expected of each; 5 standard deviations of 30.
    assert np.abs(counts - 1000).max() < 150
    # Neither of an environment's successive episodes nor of neighbours' do they follow.
    grid = numbers.reshape(100, 90)
    for axis in (0, 1):
        same = np.mean(np.diff(grid, axis=axis) == 0)
        assert abs(same - 1 / 9) < 0.02
    assert np.array_equal(distractors.draw(8, seeds[:5], episodes[:5]), numbers[:5])


@pytest.mark.parametrize(
    ("game", "environment", "steps"), [("Catch", PIXELS, 60), ("Pong", SHORT, 45)]
)
def test_an_episode_has_one_distractor_and_all_else_is_as_without(
    game, environment, steps
):
    pool = Pool(game, among(environment, "backgrounds"), num_envs=6, seed=3)
    clean = Pool(game, environment, num_envs=6, seed=3)
    members = training_set(config_of(), pool.spec)
    assert pool.spec == clean.spec
    seen, bare = pool.reset(), clean.reset()
    rng, shown = np.random.default_rng(0), [pool.distractor_numbers]
    for _ in range(steps):
        assert np.array_equal(seen, members.altered(bare, shown[-1]))
        actions = rng.integers(3, size=6)
        altered, plain = pool.step(actions), clean.step(actions)
        for field in dataclasses.fields(Step):
            if field.name != "observations":
                one, other = (getattr(x, field.name) for x in (altered, plain))
                assert np.array_equal(one, other), field.name
        seen, bare = altered.observations, plain.observations
        shown.append(pool.distractor_numbers)
        goes_on = altered.valid
        assert np.array_equal(shown[-1][goes_on], shown[-2][goes_on])
    changes = np.diff(np.stack(shown), axis=0) != 0
    assert changes.sum() >= 6
    assert clean.distractor_numbers.tolist() == [CLEAN] * 6
    pool.close(), clean.close()


def test_environments_show_several_members_clean_frames_among_them():
    pool = Pool("Catch", among(PIXELS, "colours", train=2), num_envs=64, seed=3)
    pool.reset()
    assert set(pool.distractor_numbers.tolist()) == {CLEAN, 0, 1}
    first = pool.distractor_numbers
    played(pool, 10)  # into the second episode
    assert not np.array_equal(pool.distractor_numbers, first)
    pool.close()


@pytest.mark.parametrize(("game", "environment"), [("Catch", PIXELS), ("Pong", SHORT)])
@pytest.mark.parametrize("after", [35, 49])
def test_a_restored_pool_shows_the_same_frames(game, environment, after):
    environment = among(environment, "noise")
    pool = Pool(game, environment, num_envs=3, seed=11)
    pool.reset()
    played(pool, after)
    state = pool.state()
    expected = played(pool, 30, seed=1)
    restored = Pool(game, environment, num_envs=3, seed=11, num_threads=2)
    restored.restore(state)
    for before, now in zip(expected, played(restored, 30, seed=1), strict=True):
        assert before.observations.tobytes() == now.observations.tobytes()
        assert np.array_equal(before.valid, now.valid)
    pool.close(), restored.close()


# --- Catch as a picture -----------------------------------------------------------


def test_catch_as_a_picture_is_the_same_game():
    numbers = Pool("Catch", EnvironmentConfig(), num_envs=5, seed=4)
    picture = Pool("Catch", PIXELS, num_envs=5, seed=4)
    assert picture.spec.observation_shape == (20, 10, 3)
    assert picture.spec.is_picture
    assert not numbers.spec.is_picture
    board, frame = numbers.reset(), picture.reset()
    rng = np.random.default_rng(0)
    for _ in range(40):
        # Every cell is a square of one grey, white where there is something.
        assert np.array_equal(frame[:, ::2, ::2, 0], 255 * board)
        assert np.array_equal(frame.max(axis=-1), frame.min(axis=-1))
        cells = frame[..., 0].reshape(5, 10, 2, 5, 2)
        assert np.array_equal(cells.max(axis=(2, 4)), cells.min(axis=(2, 4)))
        actions = rng.integers(3, size=5)
        left, right = numbers.step(actions), picture.step(actions)
        assert np.array_equal(left.raw_rewards, right.raw_rewards)
        assert np.array_equal(left.is_terminal, right.is_terminal)
        assert np.array_equal(left.valid, right.valid)
        board, frame = left.observations, right.observations
    numbers.close(), picture.close()


# --- Mistakes ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("games", "more", "message"),
    [
        (
            ("Catch",),
            {},
            r"Catch-v0 is none \(it is with environment\.catch_pixels=2\)",
        ),
        (("Catch", "CartPole"), {"catch_pixels": 2}, "and CartPole-v1 is none$"),
        (("MiniGrid-Empty-5x5",), {}, "and MiniGrid-Empty-5x5-v0 is none$"),
    ],
)
def test_games_without_pictures_have_no_distractors(games, more, message):
    config = EnvironmentConfig(games=games, distractors=config_of("noise"), **more)
    with pytest.raises(UserError, match=message) as caught:
        resolve_environment(config, same_shapes=False)
    assert str(caught.value).startswith("environment.distractors.kind=noise: ")
    assert "\n" not in str(caught.value)


def test_games_with_pictures_have_them():
    config = EnvironmentConfig(games=("Catch", "Pong"), catch_pixels=2)
    config = among(config, "noise")
    assert len(resolve_environment(config, same_shapes=False)) == 2
