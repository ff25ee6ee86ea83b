"""What may be compared with what: groups of games, and what is said of each."""

from __future__ import annotations

import pytest
from report_cells import make_cell, store, store_all
from report_evaluations import read_folders, store_two_games

from metarl.report import compare, evaluation_tables
from metarl.report.scores import Evaluation, Task
from metarl.statistics import Estimate


def group(evaluation: Evaluation, name: str) -> compare.Group:
    (found,) = [g for g in compare.make_groups(evaluation) if g.name == name]
    return found


def test_a_rule_with_one_seed_has_no_say_in_what_is_evidence(tmp_path):
    store_all(
        tmp_path / "a",
        {
            ("actor_critic", "Pong-v5"): [0.0, 5.0],
            ("actor_critic", "Boxing-v5"): [-1.0, 2.0],  # random: 0.1
        },
    )
    store_all(
        tmp_path / "b",
        {("mine", "Pong-v5"): [9.0], ("mine", "Boxing-v5"): [90.0]},
    )
    alone, both = (
        read_folders(tmp_path / "a"),
        read_folders(tmp_path / "a", tmp_path / "b"),
    )
    assert compare.evidence(both, Task("Boxing-v5")) == "uninformative"
    before, after = (group(e, "held_out-human") for e in (alone, both))
    assert before.common == after.common == (Task("Pong-v5"),)
    (lone,) = compare.aggregates(alone, before)
    found = {a.rule: a for a in compare.aggregates(both, after)}
    assert found["actor_critic"] == lone
    # Nobody can tell where it is alone: such games are aggregated.
    only = read_folders(tmp_path / "b")
    assert compare.evidence(only, Task("Boxing-v5")) == "undecided"
    assert len(group(only, "held_out-human").common) == 2


def test_statuses_are_never_aggregated_together(tmp_path):
    store_two_games(tmp_path, seen=("Pong-v5",))
    groups = compare.make_groups(read_folders(tmp_path))
    assert [g.name for g in groups] == ["held_out-human", "seen-human"]
    assert groups[0].common == (Task("Boxing-v5"),)
    assert groups[1].common == (Task("Pong-v5"),)
    # The hand-written rule has seen nothing: it is the comparison in both.
    assert groups[1].rules == ("mine", "actor_critic")


def test_a_game_that_validated_the_rule_between_two_seeds_is_not_held_out(tmp_path):
    for seed, used in ((1, ()), (2, ("Pong-v5",))):
        rule = {"sha256": "a" * 64, "games_validation": used}
        store(tmp_path, make_cell("mine", "Pong-v5", seed, **rule), 5.0 * seed)
    evaluation = read_folders(tmp_path)
    assert evaluation.status("mine", Task("Pong-v5")) == "validation"
    (found,) = compare.make_groups(evaluation)
    assert found.status == "validation"
    (row,) = evaluation_tables.score_table(evaluation).rows
    assert row[2] == "validation"


def test_an_unknown_origin_is_a_group_of_its_own(tmp_path):
    store_two_games(tmp_path, seen=("Pong-v5",), seen_is_complete=False)
    names = [g.name for g in compare.make_groups(read_folders(tmp_path))]
    assert names == ["unknown-human", "seen-human"]


def test_games_that_one_of_two_rules_has_seen_are_apart(tmp_path):
    store_two_games(tmp_path, seen=("Pong-v5",))
    for game in ("Pong-v5", "Boxing-v5"):
        store(tmp_path, make_cell("other", game, 1, sha256="b" * 64), 30.0)
    groups = compare.make_groups(read_folders(tmp_path))
    assert [g.status for g in groups] == ["held_out", "mixed"]
    assert groups[1].statuses == (("mine", "seen"), ("other", "held_out"))
    apart = "Games that only some of the rules have seen (mine: seen, other: held out):"
    assert groups[1].title.startswith(apart)
    assert groups[1].tasks == (Task("Pong-v5"),)


def test_kinds_of_scores_are_apart(tmp_path):
    store_all(
        tmp_path,
        {
            ("actor_critic", "Pong-v5"): [0.0, 5.0],
            ("actor_critic", "Catch-v0"): [0.9, 1.0],
            ("actor_critic", "Kaboom-v5"): [9.0, 10.0],
            ("random", "Catch-v0"): [-0.9, -0.8],
        },
    )
    names = [g.name for g in compare.make_groups(read_folders(tmp_path))]
    assert names == ["held_out-human", "held_out-best", "held_out-raw"]


def test_aggregates_are_of_games_that_every_rule_has(tmp_path):
    store_two_games(tmp_path, seen=())
    store(tmp_path, make_cell("third", "Boxing-v5", 1), 12.0)
    found = group(read_folders(tmp_path), "held_out-human")
    assert found.common == (Task("Boxing-v5"),)
    assert found.rules == ("mine", "third", "actor_critic")


def test_the_floor_takes_no_game_away(tmp_path):
    store_two_games(tmp_path, seen=())
    store(tmp_path, make_cell("random", "Boxing-v5", 1), 0.0)
    found = group(read_folders(tmp_path), "held_out-human")
    assert len(found.common) == 2
    assert "random" not in found.rules


def test_uninformative_games_are_not_aggregated(tmp_path):
    store_all(
        tmp_path,
        {
            ("actor_critic", "Pong-v5"): [0.0, 5.0],
            ("actor_critic", "Boxing-v5"): [-1.0, 2.0],  # random: 0.1
        },
    )
    evaluation = read_folders(tmp_path)
    found = group(evaluation, "held_out-human")
    assert found.common == (Task("Pong-v5"),)
    (aggregate,) = compare.aggregates(evaluation, found)
    assert aggregate.iqm.value == pytest.approx((2.5 + 20.7) / 35.3)
    (every,) = compare.aggregates(evaluation, found, found.tasks)
    assert every.mean.value == pytest.approx((23.2 / 35.3 + 0.4 / 12.0) / 2, abs=1e-3)


def test_a_seed_without_an_episode_leaves_no_score(tmp_path):
    store_all(
        tmp_path,
        {
            ("actor_critic", "Pong-v5"): [0.0, 5.0],
            ("actor_critic", "Boxing-v5"): [-1.0, 2.0],  # random: 0.1
            ("actor_critic", "Qbert-v5"): [-1.0, 2.0],  # random: 163.9
            ("mine", "Pong-v5"): [5.0, 6.0],
            ("mine", "Boxing-v5"): [-2.0],
            ("mine", "Qbert-v5"): [1.0, 1.0],
        },
    )
    store(tmp_path, make_cell("mine", "Boxing-v5", 2), None)
    evaluation = read_folders(tmp_path)
    table = evaluation_tables.score_table(evaluation)
    rows = {
        (row["game"], row["rule"]): row
        for row in (dict(zip(table.columns, r, strict=True)) for r in table.rows)
    }
    partial = rows["Boxing-v5", "mine"]
    assert partial["return"] == Estimate(-2.0)
    assert (partial["score"], partial["P(better than baseline)"]) == (None, None)
    assert partial["seeds"] == "1 of 2"
    assert rows["Qbert-v5", "mine"]["seeds"] == 2
    assert rows["Qbert-v5", "mine"]["score"].value < 0
    # Nor is it among "all" games, of which the others are uninformative.
    found = group(evaluation, "held_out-human")
    assert found.common == (Task("Pong-v5"),)
    numbers = compare.aggregates(evaluation, found)
    table = evaluation_tables.aggregate_table(evaluation, found, numbers, {})
    assert table.columns[-1] == "IQM of all 2 games"
    (mine,) = [row for row in table.rows if row[0] == "mine"]
    pong, qbert = (evaluation.scores("mine", Task(g)) for g in ("Pong-v5", "Qbert-v5"))
    assert mine[-1].value == pytest.approx((pong[0] + qbert[0]) / 2)


def test_improvement_is_over_the_baseline(tmp_path):
    store_two_games(tmp_path, seen=())
    evaluation = read_folders(tmp_path)
    found = compare.improvements(evaluation, group(evaluation, "held_out-human"))
    assert list(found) == ["mine"]
    # Pong: 0, 5 against -5, 0: 3.5 of 4. Boxing: 40, 60 against 35, 55: 3 of 4.
    assert found["mine"].value == pytest.approx((3.5 / 4 + 3 / 4) / 2)


def test_curves_carry_the_newest_return_on(tmp_path):
    cells = [make_cell("actor_critic", "Pong-v5", seed) for seed in (1, 2)]
    # Rows at 250, 500, 750 and 1,000 steps are 1,000 to 4,000 frames.
    store(tmp_path, cells[0], 14.6, curve=[None, -20.7, None, 14.6])
    store(tmp_path, cells[1], 14.6, curve=[-20.7, -20.7, -20.7, 14.6])
    evaluation = read_folders(tmp_path)
    (curve,) = compare.curves(evaluation, group(evaluation, "held_out-human"))
    assert curve.frames[-1] == 4000
    values = dict(zip(curve.frames.tolist(), curve.estimates, strict=True))
    assert values[1800.0] is None  # a run has not finished an episode yet
    assert values[2000.0].value == pytest.approx(0)
    assert values[3800.0].value == pytest.approx(0)
    assert values[4000.0].value == pytest.approx(1)
