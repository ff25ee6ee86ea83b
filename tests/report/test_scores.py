"""How returns become scores, and which games are evidence."""

from __future__ import annotations

import pytest
from report_cells import make_cell, store, store_all
from report_evaluations import read_folders, store_two_games

from metarl.envs import availability
from metarl.report import compare
from metarl.report.scores import Evaluation, Task


def scale(evaluation: Evaluation, game: str):
    return evaluation.scales[Task(game)]


# --- Scores -----------------------------------------------------------------------


def test_a_published_human_score_is_the_reference_where_there_is_one(tmp_path):
    # Pong: random -20.7, human 14.6. What the rule `random` got is not used.
    store_all(
        tmp_path,
        {("actor_critic", "Pong-v5"): [-20.7, 14.6], ("random", "Pong-v5"): [-19.0]},
    )
    evaluation = read_folders(tmp_path)
    assert scale(evaluation, "Pong-v5").kind == "human"
    found = evaluation.scores("actor_critic", Task("Pong-v5"))
    assert found == [pytest.approx(0), pytest.approx(1)]


def test_else_the_best_return_with_random_measured(tmp_path):
    store_all(
        tmp_path,
        {
            ("actor_critic", "Catch-v0"): [1.0, 0.1],
            ("random", "Catch-v0"): [-0.9, -0.7],
        },
    )
    evaluation = read_folders(tmp_path)
    found = scale(evaluation, "Catch-v0")
    assert (found.kind, found.random, found.reference) == (
        "best",
        pytest.approx(-0.8),
        1.0,
    )
    assert found.random_is_measured
    values = evaluation.scores("actor_critic", Task("Catch-v0"))
    assert values == [pytest.approx(1.0), pytest.approx(0.9 / 1.8)]


def test_procgen_keeps_its_published_range(tmp_path, monkeypatch):
    # Whether this machine can play it or not.
    monkeypatch.setattr(availability, "require", lambda *_: None)
    game = "StarpilotHard-v0"  # 1.5 to 35
    store_all(
        tmp_path, {("actor_critic", game): [35.0, 18.25], ("random", game): [3.0]}
    )
    evaluation = read_folders(tmp_path)
    found = scale(evaluation, game)
    assert (found.kind, found.random, found.reference) == ("best", 1.5, 35.0)
    assert not found.random_is_measured
    assert evaluation.scores("actor_critic", Task(game)) == [1.0, 0.5]


def test_without_a_random_score_returns_stay_raw(tmp_path):
    store_all(tmp_path, {("actor_critic", "Catch-v0"): [1.0, 0.1]})
    found = scale(read_folders(tmp_path), "Catch-v0")
    assert found.kind == "raw"
    assert "evaluate the rule `random` too" in found.why_raw


def test_else_the_baselines_mean(tmp_path):
    store_all(
        tmp_path,
        {
            ("mine", "AirRaid-v5"): [500.0, 700.0],
            ("actor_critic", "AirRaid-v5"): [300.0, 500.0],
            ("random", "AirRaid-v5"): [0.0, 200.0],
        },
    )
    found = scale(read_folders(tmp_path), "AirRaid-v5")
    assert (found.kind, found.random, found.reference) == ("baseline", 100.0, 400.0)
    assert found.score(700.0) == 2.0
    other = scale(read_folders(tmp_path, baseline="mine"), "AirRaid-v5")
    assert other.reference == 600.0


def test_a_baseline_no_better_than_random_is_no_reference(tmp_path):
    store_all(
        tmp_path,
        {
            ("mine", "AirRaid-v5"): [500.0, 700.0],
            ("actor_critic", "AirRaid-v5"): [90.0, 300.0],
            ("random", "AirRaid-v5"): [0.0, 100.0],
        },
    )
    found = scale(read_folders(tmp_path), "AirRaid-v5")
    assert found.kind == "raw"
    assert found.why_raw == "the baseline actor_critic does not end above random"


# --- Evidence ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("finals", "expected"),
    [
        ([0.5, 0.9], "informative"),
        # Two seeds: the interval goes from one to the other.
        ([-0.75, 0.9], "uninformative"),
        ([0.9], "undecided"),  # one seed has no interval
    ],
)
def test_a_game_is_evidence_where_an_interval_lies_above_randoms(
    tmp_path, finals, expected
):
    store_all(
        tmp_path,
        {
            ("actor_critic", "Catch-v0"): finals,
            ("random", "Catch-v0"): [-0.9, -0.7],
        },
    )
    assert compare.evidence(read_folders(tmp_path), Task("Catch-v0")) == expected


def test_without_a_random_score_nobody_can_tell(tmp_path):
    store_all(tmp_path, {("actor_critic", "Catch-v0"): [1.0, 1.0]})
    assert compare.evidence(read_folders(tmp_path), Task("Catch-v0")) == "undecided"


# --- Colours ----------------------------------------------------------------------


def test_rules_keep_their_colours_and_random_is_grey(tmp_path):
    store_two_games(tmp_path, seen=())
    store(tmp_path, make_cell("random", "Pong-v5", 1), -20.0)
    rules = read_folders(tmp_path).rules
    assert [(r.name, r.color_index) for r in rules] == [
        ("mine", 0),
        ("actor_critic", 1),
        ("random", -1),
    ]
