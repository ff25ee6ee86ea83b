"""Runs of `metarl train`, and whether two of them are the same to the bit."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np

from metarl import config_loader, train
from metarl.config import TrainConfig
from metarl.run_folder import RunFolder

TIMES = ("stats/", "charts/SPS")
"""Metrics that no two runs share."""


def run(config: TrainConfig, *, resume: Path | None = None) -> int:
    return train.main(config, resume=resume)


def arrays(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "rule" / "rule.npz") as file:
        return dict(file)


def rows(folder: Path) -> list[dict[str, float]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if not k.startswith(TIMES)}
        for line in lines
    ]


def checkpoint(folder: Path) -> list[np.ndarray]:
    """Return every leaf of the newest checkpoint, environments included."""
    config = config_loader.load(TrainConfig, [folder / "config.yaml"])
    with train.TrainingRun(config, RunFolder(folder)) as taken_up:
        taken_up.begin()
        training = taken_up.training
        # The environments of a finished run are not replayed; their actions are in
        # the checkpoint, and `test_pool_state` says what follows from them.
        populations = [stack.population for stack in training.stacks]
        state = (training.meta, populations, training.env_steps, training.lives)
        return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def assert_same_run(one: Path, other: Path) -> None:
    assert rows(one) == rows(other)
    first, second = arrays(one), arrays(other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)
    for left, right in zip(checkpoint(one), checkpoint(other), strict=True):
        np.testing.assert_array_equal(left, right)
