"""Episodes are recorded as they are played, and their files hold every frame."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoded_video import decoded

from metarl.agents.agent import Agent
from metarl.config import EnvironmentConfig, OptimizerConfig, RandomConfig
from metarl.envs import suites, tasks
from metarl.evaluation import mp4
from metarl.evaluation.recording import (
    Recording,
    agent_policy,
    random_policy,
    record_episode,
)
from metarl.rules import make_rule
from metarl.types import Network

CATCH = tasks.Task(suites.get_game("Catch-v0"))


# --- Files ----------------------------------------------------------------------------


def test_file_has_every_frame_and_plays_in_browsers(tmp_path):
    colours = [(214, 92, 92), (92, 186, 92), (50, 132, 50), (240, 228, 66)]
    given = [np.full((31, 41, 3), colours[i % 4], np.uint8) for i in range(10)]
    path = tmp_path / "a.mp4"
    with mp4.Mp4Writer(path, fps=30) as writer:
        for frame in given:
            writer.add(frame)
    assert writer.num_frames == 10
    seen, says = decoded(path)
    assert seen.shape == (10, 32, 42, 3)  # yuv420p needs even sides
    assert says == {
        "codec": "h264",
        "format": "yuv420p",
        "colours": 6,  # SMPTE 170M, as they were converted
        "rate": 30,
        "seconds": pytest.approx(10 / 30),
    }
    for frame, original in zip(seen, given, strict=True):
        assert np.abs(frame[:31, :41].astype(int) - original).max() <= 12
    # The index comes before the pictures, so that a page starts to play at once.
    content = path.read_bytes()
    assert 0 < content.index(b"moov") < content.index(b"mdat")


def test_the_same_frames_give_the_same_file(tmp_path):
    draw = np.random.default_rng(0)
    frames = draw.integers(0, 256, (5, 32, 32, 3), np.uint8)
    for name in ("a", "b"):
        with mp4.Mp4Writer(tmp_path / name, fps=30) as writer:
            for frame in frames:
                writer.add(frame)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_frames_of_another_size_are_refused(tmp_path):
    with mp4.Mp4Writer(tmp_path / "a.mp4", fps=30) as writer:
        writer.add(np.zeros((32, 32, 3), np.uint8))
        with pytest.raises(ValueError, match="34 x 32 after others of 32 x 32"):
            writer.add(np.zeros((32, 33, 3), np.uint8))


# --- Episodes -------------------------------------------------------------------------


def test_a_whole_episode_is_recorded():
    frames: list[np.ndarray] = []
    first = record_episode(
        random_policy(3, seed=0),
        CATCH,
        EnvironmentConfig(),
        seed=4,
        on_frame=frames.append,
    )
    # Ten rows: nine steps after the first picture, six frames each.
    assert (first.env_steps, first.num_frames, first.is_cut) == (9, 60, False)
    assert first.episode_return in (-1.0, 1.0)
    assert len(frames) == 60
    assert len({frame.tobytes() for frame in frames}) == 10
    again = record_episode(
        random_policy(3, seed=0),
        CATCH,
        EnvironmentConfig(),
        seed=4,
        on_frame=lambda _: None,
    )
    assert again == first


def test_a_long_episode_is_cut():
    frames: list[np.ndarray] = []
    cut = record_episode(
        random_policy(18, seed=1),
        tasks.Task(suites.get_game("Pong-v5")),
        EnvironmentConfig(),
        seed=4,
        on_frame=frames.append,
        max_frames=8,
    )
    # One frame before the first step, two of each of three, one of the fourth.
    assert cut == Recording(0.0, 4, 8, True)
    assert len(frames) == 8
    assert frames[0].shape == (420, 320, 3)
    assert (frames[0] != frames[-1]).any()


def test_random_policy_is_uniform():
    policy = random_policy(4, seed=0)
    counts = np.bincount([policy(np.zeros((1, 2)), 0) for _ in range(4000)])
    # Four standard deviations of a binomial count.
    assert np.abs(counts - 1000).max() < 4 * np.sqrt(4000 * 0.25 * 0.75)


def test_agent_policy_acts_as_the_agent_does():
    network = Network(
        init=lambda key, _: {"w": jax.random.normal(key, (4, 3))},
        apply=lambda params, x: {"logits": x @ params["w"]},
    )
    rule = make_rule(RandomConfig())
    agent = Agent(_Sampled(rule), network, 3, OptimizerConfig(), 100)
    key = jax.random.key(1)
    state = agent.init(jax.random.key(0), jnp.zeros((1, 4)))
    policy = agent_policy(agent, state, key)
    seen = np.random.default_rng(0).normal(size=(20, 1, 4)).astype(np.float32)
    actions = [policy(x, step) for step, x in enumerate(seen)]
    expected = [
        agent.act(state, jnp.asarray(x), jax.random.fold_in(key, step))[0][0]
        for step, x in enumerate(seen)
    ]
    assert actions == [int(x) for x in expected]
    assert set(actions) == {0, 1, 2}


@dataclasses.dataclass(frozen=True)
class _Sampled:
    """A rule that acts by the network's logits, and nothing else."""

    rule: object

    def spec(self, num_actions: int) -> object:
        return self.rule.spec(num_actions)

    def init_state(self) -> object:
        return self.rule.init_state()

    def act(self, outputs, clock, key):
        del clock
        logits = outputs["logits"]
        return jax.random.categorical(key, logits), logits
