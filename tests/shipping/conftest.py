"""A run whose rule ships, where it ships to, and its results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_ship import store_cells, write_shippable_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that is done and did not validate, begun on a known machine."""
    folder = write_shippable_run(
        tmp_path / "run", seed=7, tracking="{project: mine, log_every: 10}"
    )
    machine = {"system": "x", "processor": "A Chip", "cores": "2 cores"}
    versions = {"machine": machine, "modified": True}
    (folder / "versions.json").write_text(json.dumps(versions))
    return folder


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    """Where it ships to."""
    return tmp_path / "checkpoints" / "tiny_lpg"


@pytest.fixture
def results(tmp_path: Path, run: Path) -> Path:
    """Three seeds of the rule, of the one it began as, and of actor_critic."""
    folder = tmp_path / "evaluated"
    steps = "env_steps=2000"
    store_cells(folder, run, [0.8, 0.9, 1.0], steps, suite="catch_5x5")
    start = run / "initial_rule"
    store_cells(folder, start, [-0.5, -0.6, -0.7], steps, suite="catch_5x5")
    store_cells(folder, "actor_critic", [0.0, 0.1, 0.2], steps, suite="catch_5x5")
    return folder
