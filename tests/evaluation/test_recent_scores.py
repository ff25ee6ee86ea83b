from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np

from metarl.envs.pool import Episodes
from metarl.evaluation.cells import plan
from metarl.evaluation.recent_scores import SCORE_EPISODES, RecentScores
from metarl.evaluation.runner import BatchRun, CellRun
from metarl.rule_files import load_rule
from metarl.rules.policy_gradient import PolicyGradient


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


@dataclasses.dataclass(frozen=True)
class TellsScore(PolicyGradient):
    """Logs its agent's score, and reads peers, of whom there are none."""

    def spec(self, num_actions):
        return dataclasses.replace(super().spec(num_actions), reads="peers")

    def targets(self, meta_params, rule_state, experience, key):
        targets, state, metrics = super().targets(
            meta_params, rule_state, experience, key
        )
        scores = experience.scores
        score = jnp.full((), jnp.nan) if scores is None else scores[0]
        return targets, state, {**metrics, "score": score}


def test_an_evaluations_rollouts_tell_the_score_before_them():
    rule = load_rule("policy_gradient")
    rule = dataclasses.replace(rule, rule=TellsScore(rule.rule.config))
    (cell,) = plan(
        [rule],
        overrides=[
            "environment.suite=catch_5x5",
            "environment.num_envs=4",
            "rollout_length=3",
            "agent.network.torso={kind: mlp, hidden: [4]}",
            "seeds=[1]",
            "env_steps=120",
            "curve_points=1000",  # a row of each rollout
        ],
    )
    told, returns = [], [[]]

    def on_row(run: CellRun, metrics: dict[str, float]) -> None:
        told.append(float(np.ravel(metrics["score"])[0]))
        returns.append(list(run.newest_returns))

    BatchRun([cell]).run(on_row, lambda _: None)
    assert len(told) >= 10
    before = [np.mean(x[-SCORE_EPISODES:]) if x else np.nan for x in returns[:-1]]
    np.testing.assert_allclose(told, before, rtol=1e-6)
    assert len(returns[-1]) > SCORE_EPISODES
