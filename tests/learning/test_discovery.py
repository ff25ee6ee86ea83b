"""Meta-training moves the rule to where fresh agents learn, which they did not before.

Slow: `make test-slow`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from metarl import config_loader, train
from metarl.config import TrainConfig
from metarl.evaluation import evaluate

CONFIG = Path(__file__).parents[2] / "configs" / "catch.yaml"
SEEDS = (1, 2, 3)


@pytest.mark.slow
@pytest.mark.parametrize("meta_seed", SEEDS)
def test_fresh_agents_learn_under_the_new_rule(
    meta_seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    run = tmp_path / "run"
    config = config_loader.load(
        TrainConfig, [CONFIG], [f"seed={meta_seed}", f"run_dir={run}"]
    )
    assert train.main(config) == 0
    results = evaluate(
        [run, run / "initial_rule"],
        overrides=[
            "environment.suite=catch_5x5",
            f"seeds={list(SEEDS)}",
            "env_steps=800000",
            f"results_dir={tmp_path / 'results'}",
        ],
    )

    def mean(rule: str) -> float:
        return float(np.mean([r.mean_return for r in results if r.rule == rule]))

    assert {r.status for r in results if r.rule == "run"} == {"seen"}
    # A random policy's mean is -0.6; that of 100 of its episodes deviates by 0.08.
    assert mean("initial_rule") == pytest.approx(-0.6, abs=0.15)
    assert mean("run") >= 0.9
