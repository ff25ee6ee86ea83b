"""What becomes of the episodes of a cell: its score, its curve, its speed."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from stored_cells import cell, episodes, rows_of

from metarl.evaluation import results, results_tables, training
from metarl.evaluation.cell_records import (
    CurveRow,
    make_result,
)
from metarl.evaluation.cell_run import CellRun


def test_the_result_is_the_mean_of_the_last_100_episodes():
    run = CellRun(cell("Catch-v0", 1, "env_steps=30"))
    run.record(env_steps=10, agent_updates=1, episodes=episodes(*[9.0] * 60))
    run.record(env_steps=10, agent_updates=2, episodes=episodes(*[1.0] * 60))
    assert run.result is None
    run.record(env_steps=10, agent_updates=3, episodes=episodes(*[2.0] * 30))
    # The last 100: 10 of 9, 60 of 1 and 30 of 2.
    assert run.result.mean_return == pytest.approx((90 + 60 + 60) / 100)
    assert run.result.episodes == 150
    assert run.result.env_steps == 30


def test_the_result_may_be_of_the_last_share_of_the_budget():
    run = CellRun(cell("Catch-v0", 1, "env_steps=100", "final_score.last_share=0.25"))
    for i in range(10):
        run.record(env_steps=10, agent_updates=i, episodes=episodes(*[float(i)] * 40))
    # What finished after step 75: of the rollouts that ended at 80, 90 and 100.
    assert run.result.scored_episodes == 120
    assert run.result.mean_return == pytest.approx((7 + 8 + 9) / 3)
    assert run.result.episodes == 400


def test_the_result_may_be_of_another_number_of_episodes():
    run = CellRun(cell("Catch-v0", 1, "env_steps=10", "final_score.episodes=2"))
    run.record(env_steps=10, agent_updates=1, episodes=episodes(9.0, 1.0, 2.0))
    assert (run.result.mean_return, run.result.scored_episodes) == (1.5, 2)


def test_of_fewer_episodes_all_count_and_none_is_no_number():
    run = CellRun(cell("Catch-v0", 1, "env_steps=10"))
    run.record(env_steps=10, agent_updates=1, episodes=episodes(1.0, 0.0, -0.5))
    assert run.result.mean_return == pytest.approx(0.5 / 3)
    run = CellRun(cell("Pong-v5", 1, "env_steps=10"))
    run.record(env_steps=10, agent_updates=1, episodes=episodes())
    assert run.result.mean_return is None
    assert run.result.human_normalized_score is None


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_returns_that_are_not_finite_are_nothing_in_json(tmp_path, odd):
    one = cell("Pong-v5", 1, "env_steps=20", "curve_points=2", "final_score.episodes=3")
    run = CellRun(one)
    run.record(env_steps=10, agent_updates=1, episodes=episodes(odd, 1.0, 2.0, 3.0))
    assert (run.nonfinite_returns, run.curve[0].episodes) == (1, 4)
    # The score is of the newest alone, so it may be finite again.
    run.record(env_steps=10, agent_updates=2, episodes=episodes(4.0))
    assert [row.mean_return for row in run.curve] == [None, 4.0]
    assert (run.result.mean_return, run.result.scored_episodes) == (3.0, 3)

    result = make_result(one, env_steps=20, episodes=2, last_returns=[1, odd])
    assert result.mean_return is result.human_normalized_score is None
    assert (result.episodes, result.scored_episodes) == (2, 0)
    results.write_cell(tmp_path, one, result, run.curve, {})
    results_tables.merge_cells(tmp_path)
    for path in (*(tmp_path / "cells").iterdir(), tmp_path / "results.json"):
        json.loads(path.read_text(), parse_constant=pytest.fail)
    (row,) = rows_of(tmp_path / "results.csv")
    assert (row["mean_return"], row["human_normalized_score"]) == ("", "")
    with pytest.raises(ValueError, match="not JSON compliant"):
        results.write_tree(tmp_path / "other.json", {"a": odd})


def test_a_curve_has_a_row_per_part_of_the_budget():
    run = CellRun(cell("Catch-v0", 1, "env_steps=100", "curve_points=4"))
    due = [
        run.record(env_steps=10, agent_updates=i + 1, episodes=episodes(float(i)))
        for i in range(10)
    ]
    assert [i for i, is_due in enumerate(due) if is_due] == [2, 4, 7, 9]
    assert run.curve == [
        CurveRow(30, 3, 3, 1.0),  # of 0, 1, 2
        CurveRow(50, 5, 2, 3.5),
        CurveRow(80, 8, 3, 6.0),
        CurveRow(100, 10, 2, 8.5),
    ]


def test_speed_is_since_the_row_before(monkeypatch):
    clock = iter([10.0, 14.0, 15.0])  # compiling takes most of the first row
    monkeypatch.setattr(training, "time", SimpleNamespace(perf_counter=clock.__next__))
    rows = []
    log = training._CellLog(SimpleNamespace(log=lambda row, **_: rows.append(row)))
    run = CellRun(cell("Catch-v0", 1, "env_steps=20", "curve_points=2"))
    for _ in range(2):
        run.record(env_steps=10, agent_updates=1, episodes=episodes(0.5))
        log.add_row(run, {})
    assert [row["charts/SPS"] for row in rows] == [2.5, 10.0]
