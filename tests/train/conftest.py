"""Runs that tests of several files look at, and leave as they are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import compared_runs
import pytest
import tiny_run
import validated_runs


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 6 meta-steps that nothing interrupted, saved at its end alone."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    config = tiny_run.config(folder, "meta_steps=6", "checkpoint.every=100")
    assert compared_runs.run(config) == 0
    return folder


@pytest.fixture(scope="session")
def validated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 5 meta-steps, validated after 2, 4 and 5."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "disabled")
        assert validated_runs.run(folder) == 0
    return folder


@pytest.fixture(scope="module")
def no_wandb() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "disabled")
        yield
