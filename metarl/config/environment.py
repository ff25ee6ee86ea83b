"""Games, and how they are presented."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from metarl.config.base import Model, Probability


class AtariOptions(Model):
    """How Atari games are presented; EnvPool's names where it has one."""

    protocol: Literal["default", "machado", "dqn"] = "default"
    """`machado` sets sticky actions 0.25, all 18 actions, no life loss, 108,000 frames
    (Machado et al. 2018); `dqn` no sticky actions, life loss ends episodes, rewards
    clipped (Mnih et al. 2015). A preset overrides the options it names."""
    frame_size: Annotated[int, Field(ge=36, le=210)] = 84
    """Height and width in pixels."""
    frame_stack: PositiveInt = 4
    frame_skip: PositiveInt = 4
    grayscale: bool = True
    sticky_actions: Probability = 0.0
    """Probability of repeating the previous action."""
    noop_max: PositiveInt = 30
    """No-ops at the start of an episode: EnvPool draws from 1 to this."""
    fire_reset: bool = False
    full_action_set: bool = True
    """All 18 actions, so that games share shapes; else the game's minimal set."""
    episodic_life: bool = False
    max_episode_frames: PositiveInt = 108_000


class DistractorsConfig(Model):
    """Irrelevant pictures in the frames of a game, another one in every episode.

    What is altered tells nothing, and lasts for an episode. Agents learn with a finite
    set: clean frames, and `train` distractors, each as likely as another.
    """

    kind: Literal["none", "noise", "colours", "backgrounds"] = "none"
    """`noise`: a fixed number is added to each pixel; `colours`: other brightness,
    contrast, saturation and hue; `backgrounds`: coloured rectangles behind what is
    brighter."""
    train: Annotated[int, Field(ge=1, le=4096)] = 8
    """Distractors in the training set, beside clean frames. Larger sets contain the
    smaller ones."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Of the set, whatever the seed of the agents."""
    strength: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    """From clean frames (0) to the strongest. In parts of the full range: of `noise`
    the largest number, of `backgrounds` the brightest colour; of `colours` the weight
    of the altered picture beside the clean one."""


class EnvironmentConfig(Model):
    """Which games, and how they are played."""

    suite: str | None = None
    """A suite by name; see `metarl games`."""
    games: tuple[str, ...] = ()
    """Games by task id, in place of a suite; the name of a suite among them stands for
    its games, with its options (`[catch_5x5, CartPole-v1]`)."""
    num_envs: Annotated[int, Field(gt=0, le=4096)] = 32
    """Environments of each agent; seeds leave room for 4,096."""
    num_threads: PositiveInt = 2
    """EnvPool's threads for all pools together; changes no result."""
    clip_rewards: bool = False
    """Train on rewards clipped to [-1, 1]; raw ones are logged all the same."""
    epoch_steps: PositiveInt = 1_000_000
    """Steps of each environment after which its pool is rebuilt with a new seed, which
    bounds the replay at resume; long against an episode, since the unfinished ones are
    dropped."""
    atari: AtariOptions = AtariOptions()
    catch_pixels: Annotated[int, Field(ge=1, le=16)] | None = None
    """Pixels on each side of a cell, where Catch's board is seen as an RGB picture;
    null: as numbers."""
    distractors: DistractorsConfig = DistractorsConfig()
