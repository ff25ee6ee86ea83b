"""Q-learning learns CartPole as `metarl evaluate` runs it.

`pytest -m slow tests/learning/test_q_learning.py`. The same by hand: `metarl evaluate
q_learning --suite cartpole env_steps=5000 seeds='[1,2]' final_score.last_share=0.1`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from metarl.evaluation import evaluate


@pytest.mark.slow
def test_q_learning_balances_a_pole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A random policy's mean is 22.
    monkeypatch.setenv("WANDB_MODE", "disabled")
    results = evaluate(
        ["q_learning"],
        overrides=[
            "environment.suite=cartpole",
            "env_steps=5000",
            "seeds=[1, 2]",
            "final_score.last_share=0.1",
            f"results_dir={tmp_path}",
        ],
    )
    returns = [result.mean_return for result in results]
    assert float(np.mean(returns)) > 60
