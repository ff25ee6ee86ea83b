"""The smallest run: two agents on 5 x 5 Catch, a meta-network of 1,030 parameters."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax

from metarl import config_loader
from metarl.config import TrainConfig

OVERRIDES = (
    "exp_name=tiny",
    "environment={suite: catch_5x5, num_envs: 4}",
    "population={num_agents: 2, rollout_length: 5}",
    "agent.network={torso: {kind: mlp, hidden: [8]}, "
    "action_model: {lstm: 4, head_hidden: [4]}}",
    "agent.optimizer.learning_rate=0.01",
    "update_rule={kind: disco, prediction_size: 5, num_bins: 7, max_abs_value: 3, "
    "trajectory_lstm: 4, lifetime_lstm: 3, embedding_hidden: 3, "
    "action_channels: [3, 2], policy_channels: 3, lifetime_input: 3}",
    "meta={inner_updates: 2, validation_rollouts: 1}",
    "tracking.wandb=disabled",
)
SCALED = "update_rule={kind: custom, rule: 'tiny:Scaled'}"
"""A rule of two meta-parameters: where what is tested is around the rule."""


def config(folder: Path, *overrides: str) -> TrainConfig:
    """Return the configuration of a tiny run in ``folder``."""
    given = [*OVERRIDES, f"run_dir={folder}", *overrides]
    return config_loader.load(TrainConfig, [], given)


def resumed(folder: Path, *overrides: str) -> TrainConfig:
    """Return the stored configuration of a run, with overrides."""
    return config_loader.load(TrainConfig, [folder / "config.yaml"], overrides)


@contextlib.contextmanager
def no_unasked_transfers() -> Iterator[None]:
    """Make implicit transfers between host and device errors, in every thread.

    `jax.transfer_guard` reaches no other thread than its own.
    """
    before = jax.config.jax_transfer_guard
    jax.config.update("jax_transfer_guard", "disallow")
    try:
        yield
    finally:
        jax.config.update("jax_transfer_guard", before)
