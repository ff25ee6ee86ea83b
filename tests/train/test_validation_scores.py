"""Scores of validations, computed by hand."""

from __future__ import annotations

import pytest

from metarl import validation
from metarl.evaluation.cell_records import (
    Result,
)


def result(game: str, seed: int, mean: float | None) -> Result:
    return Result("r", game, "validation", seed, 1, 60, 9, mean, None)


def test_score_rows_by_hand() -> None:
    # Random and human players: -20.7 and 14.6 at Pong, 163.9 and 13,455.0 at Qbert.
    published = [
        result("Pong-v5", 1, -20.7 + 0.1 * 35.3),
        result("Pong-v5", 2, -20.7 + 0.5 * 35.3),
        result("Qbert-v5", 1, 163.9 + 0.2 * 13291.1),
        result("Qbert-v5", 2, 163.9 + 0.7 * 13291.1),
    ]
    metrics, iqm = validation.score_rows(published)
    assert metrics["eval/Pong-v5/human_normalized_score"] == pytest.approx(0.3)
    assert metrics["eval/Qbert-v5/human_normalized_score"] == pytest.approx(0.45)
    # The lowest and the highest of the four are left out.
    assert iqm == metrics["eval/iqm"] == pytest.approx((0.2 + 0.5) / 2)
    assert metrics["eval/iqm_lo"] < iqm < metrics["eval/iqm_hi"]
    metrics, iqm = validation.score_rows([*published[:3], result("Qbert-v5", 2, None)])
    assert iqm is None
    assert metrics == {
        "eval/Pong-v5/human_normalized_score": pytest.approx(0.3),
        "eval/Qbert-v5/human_normalized_score": pytest.approx(0.2),
    }


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_return_that_is_no_number_is_no_score(value: float) -> None:
    found = [result("Catch-v0", 1, 0.5), result("Catch-v0", 2, value)]
    metrics, iqm = validation.score_rows(found)
    assert (metrics, iqm) == ({"eval/Catch-v0/episodic_return": 0.5}, None)
    assert validation.why_unscored(found) == (
        f"the agent of Catch-v0, seed 2, has the mean return {value}"
    )
    found = [result("Catch-v0", 1, None)]
    assert validation.why_unscored(found) == (
        "the agent of Catch-v0, seed 1, finished no episode (validation.env_steps is "
        "too small)"
    )


def test_scores_without_human_ones_by_hand() -> None:
    assert validation.score_rows([result("Catch-v0", 1, -0.5)]) == (
        {"eval/Catch-v0/episodic_return": -0.5, "eval/iqm": -0.5},
        -0.5,
    )
    # From the least to the highest: 3.5 to 10 at Heist, 5 to 10 at Coinrun.
    metrics, iqm = validation.score_rows(
        [result("HeistEasy-v0", 1, 5.7), result("CoinrunEasy-v0", 1, 9.5)]
    )
    assert metrics["eval/CoinrunEasy-v0/episodic_return"] == 9.5
    assert iqm == pytest.approx(((5.7 - 3.5) / 6.5 + (9.5 - 5) / 5) / 2)
    # The highest there is, 1 for both, is all that is known.
    metrics, iqm = validation.score_rows(
        [result("Catch-v0", 1, -0.5), result("FrozenLake-v1", 1, 0.25)]
    )
    assert iqm == pytest.approx(-0.125)
