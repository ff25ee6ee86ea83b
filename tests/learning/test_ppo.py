"""PPO learns classic control as well as published implementations do.

Slow, some two minutes a game on an idle core pair:
`pytest -m slow tests/learning/test_ppo.py`. The same runs by hand:
`metarl evaluate ppo --suite cartpole seeds='[1,2,3]'`, and with `--suite acrobot`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from metarl.evaluation import evaluate

# Mean and deviation over three seeds after 500,000 steps: CleanRL's documentation of
# ppo.py, whose settings are the defaults here.
PUBLISHED = {"cartpole": (488.75, 18.40), "acrobot": (-82.48, 5.93)}


@pytest.mark.slow
@pytest.mark.parametrize("suite", PUBLISHED)
def test_ppo_reaches_the_published_returns(
    suite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    results = evaluate(
        ["ppo"],
        overrides=[
            f"environment.suite={suite}",
            "seeds=[1, 2, 3]",
            f"results_dir={tmp_path}",
        ],
    )
    assert [result.env_steps >= 500_000 for result in results] == [True] * 3
    mean, deviation = PUBLISHED[suite]
    ours = float(np.mean([result.mean_return for result in results]))
    assert ours == pytest.approx(mean, abs=deviation)


def test_ppo_soon_balances_a_pole(tmp_path: Path, monkeypatch) -> None:
    # A random policy's mean is 22.
    monkeypatch.setenv("WANDB_MODE", "disabled")
    (result,) = evaluate(
        ["ppo"],
        overrides=[
            "environment.suite=cartpole",
            "env_steps=15000",
            "agent.optimizer.learning_rate=1e-3",
            "seeds=[1]",
            "final_score.episodes=20",
            f"results_dir={tmp_path}",
        ],
    )
    assert result.mean_return > 100
