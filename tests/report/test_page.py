"""What the page says, and its files."""

from __future__ import annotations

import csv
import json

import pytest
from report_cells import ABOUT, make_cell, spoil, store, store_all
from report_pages import report

from metarl.evaluation import results
from metarl.report import figures, write_report


def test_the_sections_in_their_order(tmp_path):
    for game, seen in (("Pong-v5", ("Pong-v5",)), ("Boxing-v5", ("Pong-v5",))):
        for seed in (1, 2):
            cell = make_cell("mine", game, seed, sha256="a" * 64, games_seen=seen)
            store(tmp_path, cell, 10.0 + seed)
            store(tmp_path, make_cell("actor_critic", game, seed), 4.0 + seed)
    text, elements = report(tmp_path)
    assert [s["id"] for s in elements.named("section")] == [
        "headline",
        "games",
        "scores",
        "not-run",
        "settings",
        "origin",
        "methods",
    ]
    assert text.index("Held-out games") < text.index("meta-trained on (seen)")
    names = {p.stem for p in (tmp_path / figures.FOLDER).glob("*.png")}
    kinds = ("iqm", "improvement", "efficiency", "profile")
    assert names == {
        *(
            f"{kind}_{status}-human"
            for kind in kinds
            for status in ("held_out", "seen")
        ),
        "game_Boxing-v5",
        "game_Pong-v5",
    }
    assert "seeds that are in these results, no combination is missing." in text
    methods = text[text.index('id="methods"') :]
    assert "Intervals treat both as exact, also where they were measured" in methods
    # 8 cells of 36 s.
    assert "machine time</dt><dd>4m48s</dd>" in text
    for value in ("0123456789ab", "0.10.2", "cpu"):
        assert value in text


def test_cautions_name_what_is_amiss(tmp_path):
    store(tmp_path, make_cell("actor_critic", "Pong-v5", 1), 1.0, episodes=7)
    other = make_cell("mine", "Pong-v5", 2)
    about = {**ABOUT, "commit": "fedcba", "diverged_at_env_steps": 500}
    store(tmp_path, other, None, about=about)
    text, _ = report(tmp_path)
    cautions = text[text.index("Before you read") : text.index("</aside>")]
    for sentence in (
        "2 of 2 pairs of rule and game have a single seed",
        "Cells come from 2 commits.",
        "Not run, of the rules, games and seeds that are in these results: 2 cells.",
        "Scored on fewer than 100 episodes: 2 cells.",
        "Losses became infinite or NaN in 1 cell: mine on Pong-v5, seed 2.",
    ):
        assert sentence in cautions
    assert "no episode finished" in text


def test_a_grid_that_is_half_done_has_no_interval_yet(tmp_path):
    finals = {"Pong-v5": [1.0, 2.0], "Boxing-v5": [40.0, 60.0]}
    store_all(tmp_path, {("actor_critic", game): x for game, x in finals.items()})
    finals = {"Pong-v5": [10.0], "Boxing-v5": [90.0, 99.0]}
    store_all(tmp_path, {("mine", game): x for game, x in finals.items()})
    text, _ = report(tmp_path)
    assert "1 of 4 pairs of rule and game has a single seed" in text
    assert "It has no interval, since it has a single seed on some game" in text
    with (tmp_path / figures.FOLDER / "iqm_held_out-human.csv").open() as file:
        ends = {row["rule"]: bool(row["low"]) for row in csv.DictReader(file)}
    assert ends == {"mine": False, "actor_critic": True}
    for kind in ("improvement", "profile", "efficiency"):
        path = tmp_path / figures.FOLDER / f"{kind}_held_out-human.csv"
        rows = list(csv.DictReader(path.open()))
        assert any(row["rule"] == "mine" for row in rows)
        assert not any(row["low"] for row in rows if row["rule"] == "mine")


def test_rules_that_played_other_games_by_one_name_are_told(tmp_path):
    sticky = "environment.atari.sticky_actions=0.25"
    colour = "environment.atari.grayscale=false"  # what is seen, not what is played
    for game, given in (("Pong-v5", sticky), ("Boxing-v5", colour)):
        store(tmp_path, make_cell("actor_critic", game, 1), 1.0)
        store(tmp_path, make_cell("mine", game, 1, given), 1.0)
    # Options of Atari that a rule brings are with its other games too, for nothing.
    for rule in ("random", "mine"):
        store(tmp_path, make_cell(rule, "Catch-v0", 1), 0.0)
    path = results.cell_path(tmp_path, make_cell("random", "Catch-v0", 1))
    tree = json.loads(path.read_text())
    tree["settings"]["environment"]["atari"]["sticky_actions"] = 0.25
    path.write_text(json.dumps(tree))
    text, _ = report(tmp_path)
    said = "rules: Pong-v5 (sticky_actions = 0.25 and 0.0)."
    assert text.count("Not the same game to all rules") == text.count(said) == 1


def test_where_no_episode_finished_there_is_a_page_all_the_same(tmp_path):
    store(tmp_path, make_cell("random", "Pong-v5", 1), None)
    text, elements = report(tmp_path)
    assert "<title>random on 1 game</title>" in text
    assert '<th scope="row" data-value="Pong-v5">Pong-v5</th>' in text
    assert "no agent finished an episode" in text
    assert "Every game has normalised scores." not in text
    assert "Left out: Pong-v5 (no return of any rule)." in text
    assert len(elements.named("img")) == 1


def test_uninformative_games_are_listed(tmp_path):
    store_all(
        tmp_path,
        {
            ("actor_critic", "Pong-v5"): [1.0, 2.0],
            ("actor_critic", "Boxing-v5"): [-1.0, 2.0],
        },
    )
    text, _ = report(tmp_path)
    assert "<b>Uninformative</b>: Boxing-v5 (no compared rule" in text
    assert "Left out: Boxing-v5 (uninformative" in text


def test_a_game_with_a_seed_that_finished_no_episode_is_not_aggregated(tmp_path):
    store_all(
        tmp_path,
        {
            ("actor_critic", "Pong-v5"): [1.0, 2.0],
            ("actor_critic", "Boxing-v5"): [90.0, 91.0],
        },
    )
    store(tmp_path, make_cell("actor_critic", "Boxing-v5", 3), None)
    text, _ = report(tmp_path)
    assert "Aggregated over 1 game: Pong-v5." in text
    why = "in some seeds no episode finished: actor_critic"
    assert f"Left out: Boxing-v5 ({why})." in text


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_game_with_a_return_that_is_not_finite_is_not_aggregated(tmp_path, bad):
    store_all(
        tmp_path,
        {
            ("actor_critic", "Pong-v5"): [1.0, 2.0],
            ("actor_critic", "Boxing-v5"): [90.0, 91.0],
            ("actor_critic", "Breakout-v5"): [20.0, 21.0],
            ("actor_critic", "Qbert-v5"): [5.0],
        },
    )
    for game, seed in (("Boxing-v5", 2), ("Qbert-v5", 1)):
        spoil(tmp_path, make_cell("actor_critic", game, seed), bad)
    text, _ = report(tmp_path)
    cautions = text[text.index("Before you read") : text.index("</aside>")]
    assert (
        "The return is not finite in 2 cells, whose game is in no aggregate: "
        "actor_critic on Boxing-v5, seed 2, actor_critic on Qbert-v5, seed 1."
    ) in cautions
    assert "Aggregated over 2 games: Breakout-v5, Pong-v5." in text
    why = "in some seeds the return is not finite: actor_critic"
    assert f"Left out: Boxing-v5 ({why})." in text
    assert "no agent has a finite return" in text
    assert "finished an episode" not in text
    card = (tmp_path / figures.FOLDER / "game_Qbert-v5.csv").read_text()
    assert card.count("actor_critic,1,") == 2


def test_a_rule_with_less_than_half_of_the_games_is_told(tmp_path):
    games = ("Boxing-v5", "Breakout-v5", "Pong-v5")
    store_all(tmp_path, {("mine", game): [90.0, 91.0] for game in games})
    for game in games[:2]:
        store(tmp_path, make_cell("mine", game, 3), None)
    text, _ = report(tmp_path)
    assert "Left out: Pong-v5 (no rule has scores on half of these games)." in text


def test_a_rule_with_few_of_the_games_takes_none_from_the_others(tmp_path):
    store_all(
        tmp_path,
        {("actor_critic", game): [90.0, 91.0] for game in ("Boxing-v5", "Catch-v0")}
        | {("actor_critic", game): [20.0, 21.0] for game in ("Pong-v5",)}
        | {("actor_critic", "Breakout-v5"): [20.0, 21.0]}
        | {("mine", "Pong-v5"): [20.0, 21.0]},
    )
    text, _ = report(tmp_path)
    assert "Aggregated over 3 games: Boxing-v5, Breakout-v5, Pong-v5." in text
    assert "Not compared here: mine, which lacks scores on some of them." in text


def test_figures_of_an_earlier_report_go_and_other_files_stay(tmp_path):
    old = tmp_path / figures.FOLDER
    old.mkdir()
    (old / "iqm_old.png").write_bytes(b"x")
    (old / "notes.txt").write_text("mine")
    store_all(tmp_path, {("actor_critic", "Pong-v5"): [1.0, 2.0]})
    report(tmp_path)
    assert not (old / "iqm_old.png").exists()
    assert (old / "notes.txt").read_text() == "mine"


def test_equal_results_give_equal_figures(tmp_path):
    store_all(tmp_path / "a", {("actor_critic", "Pong-v5"): [1.0, 2.0]})
    _, first = write_report([tmp_path / "a"])
    _, second = write_report([tmp_path / "a"], tmp_path / "b")
    assert [f.png for f in first.figures] == [f.png for f in second.figures]
    assert [f.rows for f in first.figures] == [f.rows for f in second.figures]
