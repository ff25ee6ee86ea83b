"""What is said of an evaluation: cautions, the headline, what was tried and not run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from report_cells import ABOUT, make_cell, spoil, store, store_all

from metarl.evaluation import results, tuning
from metarl.evaluation.cells import Tuned
from metarl.report import evaluation_tables
from metarl.report.cautions import cautions, finding
from metarl.report.compare import Aggregate
from metarl.report.game_cards import game_card
from metarl.report.inputs import read_inputs
from metarl.report.scores import Evaluation, gather
from metarl.statistics import Estimate


def read(folder: Path) -> Evaluation:
    return gather(read_inputs([folder]).records, None)


def test_games_of_one_iqm_with_unequal_budgets_are_told(tmp_path):
    for game, frames in (("Pong-v5", 4000), ("Boxing-v5", 4100), ("Qbert-v5", 9000)):
        for rule in ("actor_critic", "mine"):
            for seed in (1, 2):
                cell = make_cell(rule, game, seed)
                store(tmp_path, cell, 14_000.0 + seed, frames=frames)
    evaluation = read(tmp_path)
    (said,) = [text for text in cautions(evaluation) if "budgets" in text]
    assert said == (
        "Held-out games: human-normalised scores (0 = random, 1 = human): one IQM is "
        "over games of unequal budgets, from 4,000 frames (Pong-v5) to 9,000 "
        "(Qbert-v5). Curves end at the smallest."
    )


def test_rules_with_unequal_budgets_on_one_game_are_told(tmp_path):
    for rule, frames in (("actor_critic", 4000), ("mine", 8000)):
        store(tmp_path, make_cell(rule, "Pong-v5", 1), 1.0, frames=frames)
    evaluation = read(tmp_path)
    said = "Pong-v5: some agents learned from 4,000 frames, others from 8,000."
    assert sum(text.startswith(said) for text in cautions(evaluation)) == 1


def test_random_may_play_for_another_time(tmp_path):
    for rule, frames in (("actor_critic", 4000), ("random", 400)):
        store(tmp_path, make_cell(rule, "Pong-v5", 1), 1.0, frames=frames)
    store(tmp_path, make_cell("random", "Boxing-v5", 1), 1.0, frames=40_000)
    assert not any("frames" in text for text in cautions(read(tmp_path)))


def test_few_seeds_are_told(tmp_path):
    store_all(tmp_path, {("actor_critic", "Pong-v5"): [1.0, 2.0]})
    evaluation = read(tmp_path)
    assert cautions(evaluation)[0].startswith("There are 2 seeds per rule and game.")
    store_all(tmp_path, {("mine", "Pong-v5"): [1.0, 2.0, 3.0]})
    evaluation = read(tmp_path)
    assert cautions(evaluation)[0].startswith("There are as few as 2 seeds per rule")


def test_one_budget_is_one_however_far_rollouts_went_past_it(tmp_path):
    def lived(rule, env_steps, budget):
        cell = make_cell(rule, "Pong-v5", 1, "env_steps=3000")
        store(tmp_path, cell, 1.0)
        path = results.cell_path(tmp_path, cell)
        tree = json.loads(path.read_text())
        tree["result"] |= {"env_steps": env_steps, "frames": 4 * env_steps}
        tree["settings"]["env_steps"] = budget
        path.write_text(json.dumps(tree))

    def said():
        return [text for text in cautions(read(tmp_path)) if "frames" in text]

    lived("actor_critic", 3054, 3000)
    lived("mine", 3696, 3000)
    assert said() == []
    lived("mine", 3696, 3600)
    (unequal,) = said()
    assert "learned from 12,000 frames, others from 14,400." in unequal
    lived("actor_critic", 3054, None)
    lived("mine", 3696, None)
    (unequal,) = said()
    assert "learned from 12,216 frames, others from 14,784." in unequal


def test_a_single_seed_hides_no_few_seeds(tmp_path):
    store_all(
        tmp_path, {("actor_critic", "Pong-v5"): [1.0], ("mine", "Pong-v5"): [1.0, 2.0]}
    )
    single, few, *_ = cautions(read(tmp_path))
    assert single.startswith("1 of 2 pairs of rule and game has a single seed")
    assert few.startswith("There are 2 seeds per other rule and game. Bootstrap")
    alone = tmp_path / "alone"
    store_all(alone, {("actor_critic", "Pong-v5"): [1.0]})
    assert not any("Bootstrap" in text for text in cautions(read(alone)))


def test_games_of_a_suite_that_no_rule_was_run_on_are_listed(tmp_path):
    about = {**ABOUT, "suite": "atari3_val", "machine": {"cpu": "8 x Z80"}}
    store(tmp_path, make_cell("random", "MsPacman-v5", 1), 300.0, about=about)
    evaluation = read(tmp_path)
    assert evaluation_tables.games_not_run(evaluation) == {
        "atari3_val": ["Assault-v5", "YarsRevenge-v5"]
    }
    (row,) = evaluation_tables.origin_table(evaluation).rows
    assert "cpu, 8 x Z80" in row
    assert "0123456789ab" in row
    changed = {**about, "modified": True}
    store(tmp_path, make_cell("random", "MsPacman-v5", 2), 300.0, about=changed)
    (row,) = evaluation_tables.origin_table(read(tmp_path)).rows
    assert row[-1] == "0123456789ab, 0123456789ab + changes"


def test_the_best_rule_is_said_with_whom_it_overlaps():
    def rule(name, value, low=None, high=None):
        return Aggregate(name, Estimate(value, low, high), *[Estimate(0.0)] * 3)

    far, near = rule("far", 0.1, 0.0, 0.2), rule("near", 0.4, 0.3, 0.6)
    best = rule("best", 0.7, 0.5, 0.9)
    said = "Highest IQM: best, 0.700 [0.500, 0.900] (95 % interval in brackets)"
    assert finding([best]) == f"{said}."
    assert finding([best, near, far]) == f"{said}; its interval overlaps that of near."
    assert finding([best, far]) == (
        f"{said}; its interval lies above those of all other rules."
    )
    assert finding([rule("one", 0.7), far]) == (
        "Highest IQM: one, 0.700. It has no interval, since it has a single seed on "
        "some game, and shows no difference."
    )
    thin = rule("thin", 0.2)
    none = "thin has none (a single seed on some game)"
    assert finding([best, thin]) == f"{said}; {none}."
    assert finding([best, near, thin]) == (
        f"{said}; its interval overlaps that of near; {none}."
    )
    assert finding([best, thin, far]) == (
        f"{said}; its interval lies above those of the others that have one; {none}."
    )


def test_a_games_figure_says_where_its_bars_begin(tmp_path):
    finals = {("mine", "Catch-v0"): [1.0], ("mine", "Pong-v5"): [1.0]}
    store_all(tmp_path, finals)  # a random score is known of Pong alone
    evaluation = read(tmp_path)
    begins = {
        task.name: game_card(evaluation, task, "").caption.partition("bars: from ")[2]
        for task in evaluation.tasks
    }
    assert begins["Catch-v0"].startswith("0 to the mean")
    assert begins["Pong-v5"].startswith("random to the mean")


def test_learning_rates_that_were_tried_are_in_a_table(tmp_path):
    cell = make_cell("mine", "Pong-v5", 1)
    games, rates, scores = ("MsPacman-v5",), (1e-4, 1e-3), (0.5, 1.5)
    tuned = Tuned(rates, games, (1, 2), 1000, 1e-3, "rank", scores)
    for seed in (1, 2):
        again = dataclasses.replace(cell, seed=seed, tuning=tuned)
        about = {**ABOUT, "tuning_scores": list(scores)}
        store(tmp_path, again, 1.0, about=about)
    evaluation = read(tmp_path)
    assert evaluation_tables.tuning_table(evaluation).rows == (
        ("mine", 1e-4, 0.5, "rank among the rates", "MsPacman-v5", 2, 1000, False),
        ("mine", 1e-3, 1.5, "rank among the rates", "MsPacman-v5", 2, 1000, True),
    )


def test_games_that_chose_the_learning_rate_are_no_test_of_it(tmp_path):
    tuned = Tuned((1e-4, 1e-3), ("Pong-v5",), (1, 2), 1000, 1e-3, "rank", (0.5, 1.5))
    for game in ("Boxing-v5", "Pong-v5"):
        cell = make_cell("mine", game, 1)
        is_tuned = game == "Boxing-v5"  # Pong was scored by another evaluation
        store(
            tmp_path, dataclasses.replace(cell, tuning=tuned if is_tuned else None), 1
        )
        store(tmp_path, make_cell("other", game, 1), 1.0)
    (said,) = [text for text in cautions(read(tmp_path)) if "chosen on" in text]
    assert said == (
        "The learning rate of mine was chosen on games that it is scored on here: "
        "Pong-v5. These scores are no test of it."
    )


def test_tries_of_a_grid_are_told(tmp_path):
    tries = tmp_path / tuning.FOLDER / "learning_rate=0.001"
    for folder in (tries, tmp_path):
        store(folder, make_cell("mine", "Pong-v5", 1), 1.0)
    assert not any("Tries" in text for text in cautions(read(tmp_path)))
    (said,) = [text for text in cautions(read(tries)) if text.startswith("Tries")]
    assert said.endswith(f"got: {tries}.")


def test_a_return_that_no_axis_can_hold_counts_as_infinite(tmp_path):
    cell = make_cell("mine", "Pong-v5", 1)
    store(tmp_path, cell, 1.0)
    spoil(tmp_path, cell, 1e308)
    evaluation = read(tmp_path)
    assert evaluation.returns("mine", evaluation.tasks[0]) == []
    said = "The return is not finite in 1 cell, whose game is in no aggregate"
    assert sum(text.startswith(said) for text in cautions(evaluation)) == 1
    assert game_card(evaluation, evaluation.tasks[0], "").alt == "no final return"
