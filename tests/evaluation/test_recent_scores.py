from __future__ import annotations

import numpy as np

from metarl.envs.pool import Episodes
from metarl.evaluation.recent_scores import SCORE_EPISODES, RecentScores


def finished(*returns: float) -> Episodes:
    return Episodes(np.array(returns), np.ones(len(returns), np.int64))


def test_a_score_is_the_mean_of_the_newest_returns_of_one_agent():
    scores = RecentScores(2, 2)
    np.testing.assert_array_equal(scores.scores(), np.full((2, 2), np.nan))
    scores.add([[finished(1, 3), finished()], [finished(5), finished(-1)]])
    np.testing.assert_array_equal(scores.scores(), [[2, np.nan], [5, -1]])
    scores.add([[finished(*[7.0] * SCORE_EPISODES), finished(0)], [finished()] * 2])
    np.testing.assert_array_equal(scores.scores(), [[7, 0], [5, -1]])
    assert scores.scores().dtype == np.float32


def test_a_return_that_is_not_finite_makes_no_score():
    scores = RecentScores(1, 1)
    scores.add([[finished(1.0, np.inf)]])
    assert not np.isfinite(scores.scores()).any()
