"""`metarl evaluate`: fresh agents with frozen rules."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, PositiveInt

from metarl.config.agent import AgentConfig
from metarl.config.base import Model
from metarl.config.environment import EnvironmentConfig
from metarl.config.shared import RuntimeConfig, TrackingConfig


class ReplayConfig(Model):
    """Replay of whole trajectories, first in first out (REF's evaluation)."""

    capacity: Annotated[int, Field(ge=0)] = 1024
    """Trajectories kept; 0: none, every batch is what was just acted."""
    ratio: PositiveInt = 32
    """How often each trajectory is trained on, on average: a batch has
    ratio * num_envs trajectories."""


class EvaluationConfig(Model):
    """`metarl evaluate`: train fresh agents with frozen rules."""

    exp_name: str = "evaluation"
    results_dir: Path = Path("results")
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = (1, 2, 3)
    env_steps: PositiveInt | None = None
    """Of each cell, in total over a group; None: the suite's budget."""
    rollout_length: PositiveInt = 29
    replay: ReplayConfig = ReplayConfig()
    environment: EnvironmentConfig = EnvironmentConfig()
    agent: AgentConfig = AgentConfig()
    curve_points: PositiveInt = 20
    """Rows of each learning curve."""
    cells_at_once: PositiveInt = 4
    """Cells of equal shapes trained side by side in one program."""
    tracking: TrackingConfig = TrackingConfig()
    runtime: RuntimeConfig = RuntimeConfig()
