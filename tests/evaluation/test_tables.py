"""Tables of results: what they hold, and that whoever merges last has all of it."""

from __future__ import annotations

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from stored_cells import COLUMNS, cell, rows_of, store

from metarl.evaluation import results, results_tables
from metarl.evaluation.cell_records import make_result
from metarl.evaluation.cells import Cell
from metarl.evaluation.summary import summary


def test_tables_have_the_columns_that_were_agreed(tmp_path):
    store(tmp_path, cell("Catch-v0", 2))
    store(tmp_path, cell("Catch-v0", 1), None)
    merged = results_tables.merge_cells(tmp_path)
    text = (tmp_path / "results.csv").read_text()
    assert text.splitlines() == [
        COLUMNS,
        "actor_critic,Catch-v0,held_out,1,1,100,3,,,0,100,,0.001,False,,,",
        "actor_critic,Catch-v0,held_out,2,1,100,3,0.5,,1,100,,0.001,False,,0.5,0.5",
    ]
    rows = json.loads((tmp_path / "results.json").read_text())
    assert rows == [dataclasses.asdict(result) for result in merged]
    assert rows[0]["mean_return"] is None
    assert list(rows[0]) == COLUMNS.split(",")
    curves = (tmp_path / "curves.csv").read_text().splitlines()
    assert curves[:3] == [
        "rule,game,seed,env_steps,agent_updates,episodes,mean_return,group_size,peer,"
        "greedy_agreement,js_divergence",
        "actor_critic,Catch-v0,1,50,2,1,,1,,,",
        "actor_critic,Catch-v0,1,100,4,2,0.25,1,,,",
    ]
    assert len(curves) == 5


@pytest.mark.parametrize("name", ["=1+1", "+a", "-a", "@a", "\ta", "a=1"])
def test_no_name_is_a_formula_and_numbers_stay_numbers(tmp_path, name):
    one = cell()
    store(tmp_path, one, -0.5)
    (path,) = (tmp_path / "cells").iterdir()
    tree = json.loads(path.read_text())
    tree["result"]["rule"] = name
    path.write_text(json.dumps(tree))
    (row,) = results_tables.merge_cells(tmp_path)
    assert row.rule == name
    disarmed = name if name == "a=1" else f"'{name}"
    (written,) = rows_of(tmp_path / "results.csv")
    assert (written["rule"], written["mean_return"]) == (disarmed, "-0.5")
    assert rows_of(tmp_path / "curves.csv")[0]["rule"] == disarmed
    assert json.loads((tmp_path / "results.json").read_text())[0]["rule"] == name


def test_frames_and_protocol_of_atari(tmp_path):
    store(tmp_path, cell("Pong", 1, "environment.atari.protocol=machado"))
    (record,) = results.read_cells(tmp_path)
    assert (record.result.frames, record.result.protocol) == (400, "machado")
    assert record.result.learning_rate == 5e-4


def test_human_normalized_score(tmp_path):
    # Pong: random -20.7, human 14.6.
    store(tmp_path, cell("Pong-v5"), -3.05)
    store(tmp_path, cell("Kaboom-v5"), 7.0)
    results_tables.merge_cells(tmp_path)
    by_game = {row["game"]: row for row in rows_of(tmp_path / "results.csv")}
    score = float(by_game["Pong-v5"]["human_normalized_score"])
    assert score == pytest.approx(0.5)
    assert by_game["Kaboom-v5"]["human_normalized_score"] == ""


def test_files_appear_whole(tmp_path):
    store(tmp_path, cell())
    results_tables.merge_cells(tmp_path)
    files = sorted(p.name for p in tmp_path.rglob("*") if p.is_file())
    assert files == [
        ".merge.lock",
        "actor_critic__Catch-v0__seed1.json",
        "curves.csv",
        "results.csv",
        "results.json",
    ]


def test_whoever_merges_last_has_all_cells(tmp_path):
    planned = [cell("Catch-v0", seed) for seed in range(1, 13)]

    def finish(one: Cell) -> None:
        store(tmp_path, one)
        results_tables.merge_cells(tmp_path)

    with ThreadPoolExecutor(12) as threads:
        list(threads.map(finish, planned))
    seeds = [int(row["seed"]) for row in rows_of(tmp_path / "results.csv")]
    assert seeds == list(range(1, 13))
    assert len(rows_of(tmp_path / "curves.csv")) == 24


def test_summary_is_a_mean_over_seeds():
    def result(seed: int, mean: float | None):
        returns = [] if mean is None else [mean]
        return make_result(
            cell("Pong-v5", seed), env_steps=1, episodes=1, last_returns=returns
        )

    head, row = summary([result(1, -20.7), result(2, 14.6)])
    assert head[:3] == ["game", "status", "rule"]
    assert row == ["Pong-v5", "held_out", "actor_critic", "2", "1", "-3.050", "0.500"]
    assert summary([result(1, None)])[1][3:] == ["0 of 1", "0", "-", "-"]


def test_summary_tells_of_how_many_seeds_the_mean_is():
    def result(seed: int, *returns: float):
        return make_result(
            cell("Catch-v0", seed), env_steps=1, episodes=1, last_returns=returns
        )

    _, row = summary([result(1), result(2, 0.5, 1.0), result(3)])
    assert row[3:] == ["1 of 3", "2", "0.750", "-"]
