"""Results of several folders come together, or are refused in one line."""

from __future__ import annotations

import json

import pytest
from report_cells import make_cell, spoil, store
from report_evaluations import read_folders, store_two_games

from metarl.errors import UserError
from metarl.report import compare
from metarl.report.scores import Task


def test_boards_of_one_game_are_different_games(tmp_path):
    for size in ("catch_5x5", "catch_8x8"):
        store(tmp_path / size, make_cell("actor_critic", size, 1), 0.5)
    tasks = read_folders(tmp_path / "catch_5x5", tmp_path / "catch_8x8").tasks
    assert [task.name for task in tasks] == [
        "Catch-v0 (height 5, width 5)",
        "Catch-v0 (height 8, width 8)",
    ]


def test_seeds_of_two_folders_come_together_and_equal_cells_once(tmp_path):
    for folder, seeds in (("a", (1, 2)), ("b", (2, 3))):
        for seed in seeds:
            cell = make_cell("actor_critic", "Pong-v5", seed)
            store(tmp_path / folder, cell, float(seed))
    evaluation = read_folders(tmp_path / "a", tmp_path / "b")
    assert evaluation.returns("actor_critic", Task("Pong-v5")) == [1.0, 2.0, 3.0]


def test_other_returns_for_the_same_cell_are_refused(tmp_path):
    for folder, final in (("a", 1.0), ("b", 2.0)):
        store(tmp_path / folder, make_cell("actor_critic", "Pong-v5", 1), final)
    with pytest.raises(UserError, match="with other returns; give one of the two"):
        read_folders(tmp_path / "a", tmp_path / "b")


def test_seeds_with_other_settings_are_refused(tmp_path):
    store(tmp_path / "a", make_cell("actor_critic", "Pong-v5", 1), 1.0)
    cell = make_cell("actor_critic", "Pong-v5", 2, "env_steps=2000")
    store(tmp_path / "b", cell, 1.0)
    with pytest.raises(UserError, match="env_steps = 1000 and 2000; report them apart"):
        read_folders(tmp_path / "a", tmp_path / "b")


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
    assert len(list(read_folders(tmp_path / "a", tmp_path / "b").records())) == 2
    with pytest.raises(UserError, match=r"final_score\.last_share = None and 0\.1"):
        read_folders(tmp_path / "a", tmp_path / "c")


def test_tuned_and_untuned_seeds_are_refused(tmp_path):
    for folder, seed in (("a", 1), ("b", 2)):
        store(tmp_path / folder, make_cell("actor_critic", "Pong-v5", seed), 1.0)
    rewrite(tmp_path / "a", tuning={"chosen": 5e-4})
    with pytest.raises(UserError, match=r"tuning\.chosen = 0\.0005 and nothing"):
        read_folders(tmp_path / "a", tmp_path / "b")


def test_two_rules_of_one_name_are_refused(tmp_path):
    store(tmp_path / "a", make_cell("mine", "Pong-v5", 1, sha256="a"), 1.0)
    store(tmp_path / "b", make_cell("mine", "Boxing-v5", 1, sha256="b"), 1.0)
    with pytest.raises(UserError, match=r"'mine' of .*b is another one than that of"):
        read_folders(tmp_path / "a", tmp_path / "b")


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
        read_folders(tmp_path)
    assert str(error.value) == (
        f"report: {tmp_path} has actor_critic on Pong-v5 with seed 4, whose {name} is "
        f"{needed}"
    )


def test_equal_cells_that_are_not_finite_count_once(tmp_path):
    for folder in ("a", "b"):
        cell = make_cell("actor_critic", "Pong-v5", 1)
        store(tmp_path / folder, cell, 1.0)
        spoil(tmp_path / folder, cell, float("nan"))
    evaluation = read_folders(tmp_path / "a", tmp_path / "b")
    assert len(list(evaluation.records())) == 1
    assert evaluation.returns("actor_critic", Task("Pong-v5")) == []


def test_an_unknown_baseline_is_named_with_the_nearest(tmp_path):
    store(tmp_path, make_cell("actor_critic", "Pong-v5", 1), 1.0)
    with pytest.raises(UserError, match="did you mean 'actor_critic'"):
        read_folders(tmp_path, baseline="actor_critc")


def test_what_was_not_run_is_the_rest_of_the_grid(tmp_path):
    store_two_games(tmp_path, seen=())
    store(tmp_path, make_cell("third", "Pong-v5", 3), 1.0)
    assert compare.missing_seeds(read_folders(tmp_path)) == {
        ("mine", Task("Boxing-v5")): (3,),
        ("mine", Task("Pong-v5")): (3,),
        ("actor_critic", Task("Boxing-v5")): (3,),
        ("actor_critic", Task("Pong-v5")): (3,),
        ("third", Task("Boxing-v5")): (1, 2, 3),
        ("third", Task("Pong-v5")): (1, 2),
    }
