"""How returns become scores, and what may be compared with what."""

from __future__ import annotations

import json

import pytest
from report_cells import make_cell, spoil, store, store_all

from metarl.envs import availability
from metarl.errors import UserError
from metarl.report import compare, evaluation_tables, scores
from metarl.report.inputs import read_inputs
from metarl.report.scores import Evaluation, Task
from metarl.statistics import Estimate


def read(*folders, baseline=None) -> Evaluation:
    return scores.gather(read_inputs(folders).records, baseline)


def scale(evaluation: Evaluation, game: str):
    return evaluation.scales[Task(game)]


def group(evaluation: Evaluation, name: str) -> compare.Group:
    (found,) = [g for g in compare.make_groups(evaluation) if g.name == name]
    return found


# --- Scores -----------------------------------------------------------------------


def test_a_published_human_score_is_the_reference_where_there_is_one(tmp_path):
    # Pong: random -20.7, human 14.6. What the rule `random` got is not used.
    store_all(
        tmp_path,
        {("actor_critic", "Pong-v5"): [-20.7, 14.6], ("random", "Pong-v5"): [-19.0]},
    )
    evaluation = read(tmp_path)
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
    evaluation = read(tmp_path)
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
    evaluation = read(tmp_path)
    found = scale(evaluation, game)
    assert (found.kind, found.random, found.reference) == ("best", 1.5, 35.0)
    assert not found.random_is_measured
    assert evaluation.scores("actor_critic", Task(game)) == [1.0, 0.5]


def test_without_a_random_score_returns_stay_raw(tmp_path):
    store_all(tmp_path, {("actor_critic", "Catch-v0"): [1.0, 0.1]})
    found = scale(read(tmp_path), "Catch-v0")
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
    found = scale(read(tmp_path), "AirRaid-v5")
    assert (found.kind, found.random, found.reference) == ("baseline", 100.0, 400.0)
    assert found.score(700.0) == 2.0
    other = scale(read(tmp_path, baseline="mine"), "AirRaid-v5")
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
    found = scale(read(tmp_path), "AirRaid-v5")
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
    assert compare.evidence(read(tmp_path), Task("Catch-v0")) == expected


def test_without_a_random_score_nobody_can_tell(tmp_path):
    store_all(tmp_path, {("actor_critic", "Catch-v0"): [1.0, 1.0]})
    assert compare.evidence(read(tmp_path), Task("Catch-v0")) == "undecided"


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
    alone, both = read(tmp_path / "a"), read(tmp_path / "a", tmp_path / "b")
    assert compare.evidence(both, Task("Boxing-v5")) == "uninformative"
    before, after = (group(e, "held_out-human") for e in (alone, both))
    assert before.common == after.common == (Task("Pong-v5"),)
    (lone,) = compare.aggregates(alone, before)
    found = {a.rule: a for a in compare.aggregates(both, after)}
    assert found["actor_critic"] == lone
    # Nobody can tell where it is alone: such games are aggregated.
    only = read(tmp_path / "b")
    assert compare.evidence(only, Task("Boxing-v5")) == "undecided"
    assert len(group(only, "held_out-human").common) == 2


# --- Groups -----------------------------------------------------------------------


def store_two(folder, seen: tuple[str, ...], **more) -> None:
    """Two Atari games, each by a discovered and a hand-written rule."""
    for game, scored in (("Pong-v5", [0.0, 5.0]), ("Boxing-v5", [40.0, 60.0])):
        for seed, final in enumerate(scored, start=1):
            mine = make_cell(
                "mine", game, seed, sha256="a" * 64, games_seen=seen, **more
            )
            store(folder, mine, final)
            store(folder, make_cell("actor_critic", game, seed), final - 5)


def test_statuses_are_never_aggregated_together(tmp_path):
    store_two(tmp_path, seen=("Pong-v5",))
    groups = compare.make_groups(read(tmp_path))
    assert [g.name for g in groups] == ["held_out-human", "seen-human"]
    assert groups[0].common == (Task("Boxing-v5"),)
    assert groups[1].common == (Task("Pong-v5"),)
    # The hand-written rule has seen nothing: it is the comparison in both.
    assert groups[1].rules == ("mine", "actor_critic")


def test_a_game_that_validated_the_rule_between_two_seeds_is_not_held_out(tmp_path):
    for seed, used in ((1, ()), (2, ("Pong-v5",))):
        rule = {"sha256": "a" * 64, "games_validation": used}
        store(tmp_path, make_cell("mine", "Pong-v5", seed, **rule), 5.0 * seed)
    evaluation = read(tmp_path)
    assert evaluation.status("mine", Task("Pong-v5")) == "validation"
    (found,) = compare.make_groups(evaluation)
    assert found.status == "validation"
    (row,) = evaluation_tables.score_table(evaluation).rows
    assert row[2] == "validation"


def test_an_unknown_origin_is_a_group_of_its_own(tmp_path):
    store_two(tmp_path, seen=("Pong-v5",), seen_is_complete=False)
    names = [g.name for g in compare.make_groups(read(tmp_path))]
    assert names == ["unknown-human", "seen-human"]


def test_games_that_one_of_two_rules_has_seen_are_apart(tmp_path):
    store_two(tmp_path, seen=("Pong-v5",))
    for game in ("Pong-v5", "Boxing-v5"):
        store(tmp_path, make_cell("other", game, 1, sha256="b" * 64), 30.0)
    groups = compare.make_groups(read(tmp_path))
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
    names = [g.name for g in compare.make_groups(read(tmp_path))]
    assert names == ["held_out-human", "held_out-best", "held_out-raw"]


def test_aggregates_are_of_games_that_every_rule_has(tmp_path):
    store_two(tmp_path, seen=())
    store(tmp_path, make_cell("third", "Boxing-v5", 1), 12.0)
    found = group(read(tmp_path), "held_out-human")
    assert found.common == (Task("Boxing-v5"),)
    assert found.rules == ("mine", "third", "actor_critic")


def test_the_floor_takes_no_game_away(tmp_path):
    store_two(tmp_path, seen=())
    store(tmp_path, make_cell("random", "Boxing-v5", 1), 0.0)
    found = group(read(tmp_path), "held_out-human")
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
    evaluation = read(tmp_path)
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
    evaluation = read(tmp_path)
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
    store_two(tmp_path, seen=())
    evaluation = read(tmp_path)
    found = compare.improvements(evaluation, group(evaluation, "held_out-human"))
    assert list(found) == ["mine"]
    # Pong: 0, 5 against -5, 0: 3.5 of 4. Boxing: 40, 60 against 35, 55: 3 of 4.
    assert found["mine"].value == pytest.approx((3.5 / 4 + 3 / 4) / 2)


def test_curves_carry_the_newest_return_on(tmp_path):
    cells = [make_cell("actor_critic", "Pong-v5", seed) for seed in (1, 2)]
    # Rows at 250, 500, 750 and 1,000 steps are 1,000 to 4,000 frames.
    store(tmp_path, cells[0], 14.6, curve=[None, -20.7, None, 14.6])
    store(tmp_path, cells[1], 14.6, curve=[-20.7, -20.7, -20.7, 14.6])
    evaluation = read(tmp_path)
    (curve,) = compare.curves(evaluation, group(evaluation, "held_out-human"))
    assert curve.frames[-1] == 4000
    values = dict(zip(curve.frames.tolist(), curve.estimates, strict=True))
    assert values[1800.0] is None  # a run has not finished an episode yet
    assert values[2000.0].value == pytest.approx(0)
    assert values[3800.0].value == pytest.approx(0)
    assert values[4000.0].value == pytest.approx(1)


# --- Several folders --------------------------------------------------------------


def test_boards_of_one_game_are_different_games(tmp_path):
    for size in ("catch_5x5", "catch_8x8"):
        store(tmp_path / size, make_cell("actor_critic", size, 1), 0.5)
    tasks = read(tmp_path / "catch_5x5", tmp_path / "catch_8x8").tasks
    assert [task.name for task in tasks] == [
        "Catch-v0 (height 5, width 5)",
        "Catch-v0 (height 8, width 8)",
    ]


def test_seeds_of_two_folders_come_together_and_equal_cells_once(tmp_path):
    for folder, seeds in (("a", (1, 2)), ("b", (2, 3))):
        for seed in seeds:
            cell = make_cell("actor_critic", "Pong-v5", seed)
            store(tmp_path / folder, cell, float(seed))
    evaluation = read(tmp_path / "a", tmp_path / "b")
    assert evaluation.returns("actor_critic", Task("Pong-v5")) == [1.0, 2.0, 3.0]


def test_other_returns_for_the_same_cell_are_refused(tmp_path):
    for folder, final in (("a", 1.0), ("b", 2.0)):
        store(tmp_path / folder, make_cell("actor_critic", "Pong-v5", 1), final)
    with pytest.raises(UserError, match="with other returns; give one of the two"):
        read(tmp_path / "a", tmp_path / "b")


def test_seeds_with_other_settings_are_refused(tmp_path):
    store(tmp_path / "a", make_cell("actor_critic", "Pong-v5", 1), 1.0)
    cell = make_cell("actor_critic", "Pong-v5", 2, "env_steps=2000")
    store(tmp_path / "b", cell, 1.0)
    with pytest.raises(UserError, match="env_steps = 1000 and 2000; report them apart"):
        read(tmp_path / "a", tmp_path / "b")


def rewrite(folder, **settings) -> None:
    """Change settings of the one cell of a folder, or drop them where None."""
    (path,) = (folder / "cells").iterdir()
    tree = json.loads(path.read_text())
    for name, value in settings.items():
        tree["settings"][name] = value
        if value is None:
            del tree["settings"][name]
    path.write_text(json.dumps(tree))


def test_a_setting_of_a_later_version_is_at_its_default_before(tmp_path):
    share = "final_score.last_share=0.1"
    for folder, seed, given in (("a", 1, ()), ("b", 2, ()), ("c", 3, (share,))):
        cell = make_cell("actor_critic", "Pong-v5", seed, *given)
        store(tmp_path / folder, cell, 1.0)
    rewrite(tmp_path / "a", final_score=None)
    assert len(list(read(tmp_path / "a", tmp_path / "b").records())) == 2
    with pytest.raises(UserError, match=r"final_score\.last_share = None and 0\.1"):
        read(tmp_path / "a", tmp_path / "c")


def test_tuned_and_untuned_seeds_are_refused(tmp_path):
    for folder, seed in (("a", 1), ("b", 2)):
        store(tmp_path / folder, make_cell("actor_critic", "Pong-v5", seed), 1.0)
    rewrite(tmp_path / "a", tuning={"chosen": 5e-4})
    with pytest.raises(UserError, match=r"tuning\.chosen = 0\.0005 and nothing"):
        read(tmp_path / "a", tmp_path / "b")


def test_two_rules_of_one_name_are_refused(tmp_path):
    store(tmp_path / "a", make_cell("mine", "Pong-v5", 1, sha256="a"), 1.0)
    store(tmp_path / "b", make_cell("mine", "Boxing-v5", 1, sha256="b"), 1.0)
    with pytest.raises(UserError, match=r"'mine' of .*b is another one than that of"):
        read(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize(
    ("part", "name", "value", "needed"),
    [
        ("result", "mean_return", "high", "'high' (a number is needed)"),
        ("result", "mean_return", True, "True (a number is needed)"),
        ("result", "frames", None, "None (a number is needed)"),
        ("result", "protocol", 3, "3 (text is needed)"),
        ("curve", "mean_return", [1], "[1] (a number is needed)"),
    ],
)
def test_what_is_no_number_is_one_line(tmp_path, part, name, value, needed):
    store(tmp_path, make_cell("actor_critic", "Pong-v5", 4), 1.0)
    (path,) = (tmp_path / "cells").iterdir()
    tree = json.loads(path.read_text())
    changed = tree["result"] if part == "result" else tree["curve"][1]
    changed[name] = value
    path.write_text(json.dumps(tree))
    with pytest.raises(UserError) as error:
        read(tmp_path)
    assert str(error.value) == (
        f"report: {tmp_path} has actor_critic on Pong-v5 with seed 4, whose {name} is "
        f"{needed}"
    )


def test_equal_cells_that_are_not_finite_count_once(tmp_path):
    for folder in ("a", "b"):
        cell = make_cell("actor_critic", "Pong-v5", 1)
        store(tmp_path / folder, cell, 1.0)
        spoil(tmp_path / folder, cell, float("nan"))
    evaluation = read(tmp_path / "a", tmp_path / "b")
    assert len(list(evaluation.records())) == 1
    assert evaluation.returns("actor_critic", Task("Pong-v5")) == []


def test_an_unknown_baseline_is_named_with_the_nearest(tmp_path):
    store(tmp_path, make_cell("actor_critic", "Pong-v5", 1), 1.0)
    with pytest.raises(UserError, match="did you mean 'actor_critic'"):
        read(tmp_path, baseline="actor_critc")


def test_what_was_not_run_is_the_rest_of_the_grid(tmp_path):
    store_two(tmp_path, seen=())
    store(tmp_path, make_cell("third", "Pong-v5", 3), 1.0)
    assert compare.missing_seeds(read(tmp_path)) == {
        ("mine", Task("Boxing-v5")): (3,),
        ("mine", Task("Pong-v5")): (3,),
        ("actor_critic", Task("Boxing-v5")): (3,),
        ("actor_critic", Task("Pong-v5")): (3,),
        ("third", Task("Boxing-v5")): (1, 2, 3),
        ("third", Task("Pong-v5")): (1, 2),
    }


def test_rules_keep_their_colours_and_random_is_grey(tmp_path):
    store_two(tmp_path, seen=())
    store(tmp_path, make_cell("random", "Pong-v5", 1), -20.0)
    rules = read(tmp_path).rules
    assert [(r.name, r.color_index) for r in rules] == [
        ("mine", 0),
        ("actor_critic", 1),
        ("random", -1),
    ]
