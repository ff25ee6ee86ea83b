from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _no_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of W&B for every cell would take most of the tests' time."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
