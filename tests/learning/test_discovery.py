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

CONFIGS = Path(__file__).parents[2] / "configs"
# Budgets of the fresh agents; the first is that of the suite.
BUDGETS = {"catch.yaml": 100_000, "catch_disco.yaml": 800_000}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "meta_seed"),
    [*(("catch.yaml", seed) for seed in range(1, 6)), ("catch_disco.yaml", 1)],
)
def test_fresh_agents_learn_under_the_new_rule(
    name: str, meta_seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    run = tmp_path / "run"
    config = config_loader.load(
        TrainConfig, [CONFIGS / name], [f"seed={meta_seed}", f"run_dir={run}"]
    )
    assert train.main(config) == 0
    results = evaluate(
        [run, run / "initial_rule"],
        overrides=[
            "environment.suite=catch_5x5",
            f"env_steps={BUDGETS[name]}",
            f"results_dir={tmp_path / 'results'}",
        ],
    )

    def mean(rule: str) -> float:
        return float(np.mean([r.mean_return for r in results if r.rule == rule]))

    assert {r.status for r in results if r.rule == "run"} == {"seen"}
    # A random policy's mean is -0.6; that of 100 of its episodes deviates by 0.08.
    assert mean("initial_rule") == pytest.approx(-0.6, abs=0.15)
    assert mean("run") >= 0.9
