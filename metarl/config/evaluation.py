"""`metarl evaluate`: fresh agents with frozen rules."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, PositiveInt

from metarl.config.agent import AgentConfig
from metarl.config.base import EnvSteps, Model, Positive
from metarl.config.environment import EnvironmentConfig
from metarl.config.mutual import RuleConfig
from metarl.config.shared import RuntimeConfig, TrackingConfig


class ReplayConfig(Model):
    """Replay of whole trajectories, first in first out (REF's evaluation)."""

    capacity: Annotated[int, Field(ge=0)] = 1024
    """Trajectories kept; 0: none, every batch is what was just acted."""
    ratio: PositiveInt = 32
    """How often each trajectory is trained on, on average: a batch has
    ratio * num_envs trajectories."""


class FinalScoreConfig(Model):
    """Which finished episodes a cell's score is the mean of."""

    episodes: PositiveInt = 100
    """The last that many (Machado et al. 2018)."""
    last_share: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """In their place, all that finish in this last share of `env_steps`."""


class RobustnessConfig(Model):
    """What agents do among distractors once they have learned; off with 0 episodes."""

    episodes: Annotated[int, Field(ge=0, le=4096)] = 0
    """That each agent plays, without learning, on clean frames, with the distractors
    of `environment.distractors`, and with unseen ones: 3 times as many in all."""
    unseen: Annotated[int, Field(ge=1, le=4096)] = 64
    """Distractors of the same kind that are in no training set."""


class TuningConfig(Model):
    """A grid of learning rates, tried on validation games; off where it is empty.

    Every rule gets the same grid, discovered ones too, and is then scored with the
    rate that was best.
    """

    learning_rates: tuple[Positive, ...] = ()
    factors: tuple[Positive, ...] = ()
    """In place of rates: multiples of the rate that each rule has otherwise."""
    games: tuple[str, ...] = ()
    """To try them on, none of which is scored; empty: atari3_val for Atari."""
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = (1,)
    env_steps: EnvSteps | None = None
    """Of each try; None: as many as what is scored."""


class NamedRuleConfig(Model):
    """A hand-written rule with options, by a name of your own."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]
    update_rule: RuleConfig


class EvaluationConfig(Model):
    """`metarl evaluate`: train fresh agents with frozen rules."""

    exp_name: str = "evaluation"
    results_dir: Path = Path("results")
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = (1, 2, 3)
    rules: tuple[NamedRuleConfig, ...] = ()
    """Rules that can be named on the command line, beside those that there are."""
    env_steps: EnvSteps | None = None
    """Of each cell, in total over its group; None: the suite's budget."""
    rollout_length: PositiveInt = 29
    replay: ReplayConfig = ReplayConfig()
    environment: EnvironmentConfig = EnvironmentConfig()
    agent: AgentConfig = AgentConfig()
    curve_points: PositiveInt = 20
    """Rows of each learning curve."""
    final_score: FinalScoreConfig = FinalScoreConfig()
    robustness: RobustnessConfig = RobustnessConfig()
    tuning: TuningConfig = TuningConfig()
    cells_at_once: PositiveInt | None = None
    """Cells of equal shapes trained side by side in one program; None: as many as the
    memory that is free holds, at most 4 on CPU and 16 elsewhere."""
    videos: bool = False
    """Whether to film an episode of a random, the early and the final agent, for each
    rule and game with its first seed, as cells are trained. Needs PyAV."""
    tracking: TrackingConfig = TrackingConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    group_size: PositiveInt = 1
    """Agents (peers) of each cell that learn its game together, each with a network,
    an optimizer, a replay and environments of its own."""
