"""The learning-rate grid: what is tried, what is chosen, and that it is recorded."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from metarl.errors import UserError
from metarl.evaluation import evaluate, tuning
from metarl.evaluation.cell_records import (
    Result,
    make_result,
)
from metarl.evaluation.cells import Tuned, plan
from metarl.evaluation.jobs import Jobs
from metarl.evaluation.results import (
    read_cells,
    write_cell,
)
from metarl.evaluation.tuning_grid import Grid, plan_grids

TINY = [
    "environment.num_envs=4",
    "rollout_length=6",
    "agent.network.torso.hidden=[8]",
    "env_steps=200",
    "curve_points=2",
    "seeds=[1, 2]",
]
TRIED = ["tuning.games=[CartPole-v1]", "tuning.seeds=[7]", "tuning.env_steps=100"]
CATCH = "environment.suite=catch_5x5"
RATES = "tuning.learning_rates=[1e-3, 1e-2]"


def grids(rules: list[str], *overrides: str) -> list[Grid]:
    return plan_grids(plan(rules, overrides=overrides), (), overrides)


def rates_of(grid: Grid) -> list[set[float]]:
    return [
        {cell.settings.agent.optimizer.learning_rate for cell in option}
        for option in grid.tries
    ]


def rows(grid: Grid, *returns: list[float | None]) -> list[list[Result]]:
    return [
        [
            make_result(
                cell,
                env_steps=1,
                episodes=1,
                last_returns=[] if value is None else [value],
            )
            for cell, value in zip(option, values, strict=True)
        ]
        for option, values in zip(grid.tries, returns, strict=True)
    ]


def test_it_is_off_unless_rates_are_given():
    assert grids(["actor_critic"], CATCH) == []


def test_every_rule_that_learns_gets_the_same_grid():
    found = grids(
        ["actor_critic", "random", "policy_gradient"],
        "environment.suite=atari5",
        "tuning.learning_rates=[1e-4, 1e-3]",
        "tuning.seeds=[3, 4]",
        "env_steps=100000",
    )
    assert [grid.rule.name for grid in found] == ["actor_critic", "policy_gradient"]
    for grid in found:
        assert grid.rates == (1e-4, 1e-3)
        assert rates_of(grid) == [{1e-4}, {1e-3}]
        for option in grid.tries:
            assert [(cell.game, cell.seed) for cell in option] == [
                (game, seed)
                for game in ("Assault-v5", "MsPacman-v5", "YarsRevenge-v5")
                for seed in (3, 4)
            ]
            assert {cell.env_steps for cell in option} == {100_000}


def test_factors_multiply_the_rate_that_each_game_has():
    (grid,) = grids(["ppo"], CATCH, "tuning.factors=[0.5, 2]", *TRIED)
    # 1e-3 on toys, which Catch is, and 2.5e-4 on classic control.
    assert grid.rates == (5e-4, 2e-3)
    assert rates_of(grid) == [{1.25e-4}, {5e-4}]


def test_games_of_the_same_family_come_first():
    named = "tuning.games=[CartPole-v1, Assault-v5]"
    first, second = grids(
        ["actor_critic"],
        "environment.games=[Pong, Catch-v0]",
        RATES,
        named,
        "tuning.env_steps=1e5",
    )
    assert [cell.game for cell in first.tries[0]] == ["Assault-v5"]
    assert [cell.game for cell in second.tries[0]] == ["CartPole-v1", "Assault-v5"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([CATCH, RATES], r"tuning\.games: needed to tune for Catch-v0"),
        ([CATCH, RATES, "tuning.games=[Catch-v0]"], "'Catch-v0' is one"),
        ([CATCH, RATES, "tuning.games=[CartPole-v1, Catch]"], "'Catch-v0' is one"),
        (["environment.suite=atari57", RATES], "'Assault-v5' is one"),
        (
            [
                "environment.games=[CartPole-v1]",
                RATES,
                "tuning.games=[gym:CartPole-v0]",
            ],
            "'CartPole-v1' is one",
        ),
        ([CATCH, RATES, "tuning.factors=[2]", *TRIED], "both given"),
        ([CATCH, "tuning.factors=[2, 2]", *TRIED], r"tuning\.factors: .*each once"),
        ([CATCH, RATES, *TRIED, "tuning.seeds=[]"], r"tuning\.seeds: \[\]"),
        ([CATCH, RATES, "tuning.games=[Pogn]"], "unknown game 'Pogn'"),
        (
            [CATCH, "tuning.games=[CartPole-v1]"],
            r"tuning\.games: \['CartPole-v1'\] is for a grid, .*learning_rates or",
        ),
        (
            [CATCH, "tuning.factors=[1e38]", "agent.optimizer.learning_rate=9", *TRIED],
            r"tuning: a learning rate of 9e\+38 must be a number that 32 bits hold",
        ),
        ([CATCH, "tuning.seeds=[1, 2]"], r"tuning\.seeds: \[1, 2\] is for a grid"),
        ([CATCH, "tuning.env_steps=9"], r"tuning\.env_steps: 9 is for a grid"),
        (
            [
                "environment.games=[Catch-v0, MiniGrid-Unlock-v0]",
                RATES,
                "tuning.games=[CartPole-v1]",
            ],
            r"tuning\.env_steps: needed here.*of 200,000 and 2,000,000 steps",
        ),
    ],
)
def test_mistakes_are_named(overrides, message):
    with pytest.raises(UserError, match=message):
        grids(["actor_critic"], *overrides)


def test_the_best_mean_normalized_score_is_chosen_where_all_games_have_one():
    (grid,) = grids(
        ["actor_critic"],
        "environment.suite=atari5",
        "tuning.learning_rates=[1e-5, 1e-4, 1e-3]",
        "tuning.games=[Pong, Boxing]",
        "env_steps=100000",
    )
    # Pong: -20.7 to 14.6. Boxing: 0.1 to 12.1. So 0 + 1, 1 + 0.5 and 0.5 + 0.
    returns = [[-20.7, 12.1], [14.6, 6.1], [-3.05, 0.1]]
    tuned = tuning.choose(grid, rows(grid, *returns))
    assert tuned.chosen == 1e-4
    assert tuned.score == "normalized_score"
    assert tuned.scores == pytest.approx((0.5, 0.75, 0.25))
    assert (tuned.games, tuned.seeds) == (("Pong-v5", "Boxing-v5"), (1,))


def test_else_ranks_count_so_that_no_game_outweighs_another():
    (grid,) = grids(
        ["actor_critic"],
        CATCH,
        "tuning.learning_rates=[1e-5, 1e-4, 1e-3]",
        "tuning.games=[CartPole-v1, Acrobot-v1]",
        "tuning.seeds=[1, 2]",
    )
    returns = [
        [500.0, 20.0, -400.0, None],  # ranks 2, 0.5, 0, 0.5: the best mean return
        [100.0, 20.0, -300.0, -90.0],  # 1, 0.5, 1, 2
        [50.0, 30.0, -80.0, None],  # 0, 2, 2, 0.5
    ]
    tuned = tuning.choose(grid, rows(grid, *returns))
    assert tuned.score == "rank"
    assert tuned.scores == pytest.approx((3 / 4, 4.5 / 4, 4.5 / 4))
    assert tuned.chosen == 1e-4  # of equals the first


def test_without_an_episode_nothing_is_chosen():
    (grid,) = grids(["actor_critic"], CATCH, RATES, *TRIED)
    with pytest.raises(
        UserError, match=r"has no score on CartPole-v1.*env_steps, 100 now"
    ):
        tuning.choose(grid, rows(grid, [None], [None]))


def test_tries_are_resumed_and_the_choice_is_recorded(tmp_path):
    settings = [CATCH, *TINY, RATES, *TRIED, f"results_dir={tmp_path}"]
    # Stopped before the first rollout of the second rate.
    place = tmp_path / "tuning" / "learning_rate=0.01"
    first = tmp_path / "tuning" / "learning_rate=0.001"
    stopped = evaluate(
        ["policy_gradient", "random"],
        overrides=settings,
        told_to_stop=lambda: (first / "results.csv").exists(),
    )
    assert stopped == []
    (tried,) = (first / "cells").iterdir()
    before = tried.stat().st_mtime_ns
    found = evaluate(["policy_gradient", "random"], overrides=settings)
    assert tried.stat().st_mtime_ns == before
    assert {row.rule: row.tuned for row in found} == {
        "policy_gradient": True,
        "random": False,
    }
    scores = {
        rate: read_cells(folder)[0].result.mean_return
        for rate, folder in ((1e-3, first), (1e-2, place))
    }
    best = max(scores, key=scores.get)
    (record, _) = (r for r in read_cells(tmp_path) if r.result.tuned)
    assert record.result.learning_rate == best
    assert record.settings["agent"]["optimizer"]["learning_rate"] == best
    assert record.settings["tuning"] == {
        "learning_rates": [1e-3, 1e-2],
        "games": ["CartPole-v1"],
        "seeds": [7],
        "env_steps": 100,
        "chosen": best,
        "score": "rank",
    }
    assert sum(record.about["tuning_scores"]) == 1.0
    # Done, with everything; and other settings are refused.
    assert evaluate(["policy_gradient"], overrides=settings) == found[:2]
    message = r"tuning\.learning_rates = \[0\.001, 0\.01\], not nothing"
    untuned = [o for o in settings if o not in (RATES, *TRIED)]
    with pytest.raises(UserError, match=message):
        evaluate(["policy_gradient"], overrides=untuned)


def test_parts_begin_with_different_tries(tmp_path):
    order: list[str] = []

    def train(cells, folder: Path) -> bool:
        order.append(f"{cells[0].rule.name} {folder.name}")
        return False

    settings = [CATCH, *TINY, RATES, *TRIED]
    cells = plan(["policy_gradient", "actor_critic"], overrides=settings)
    planned = plan_grids(cells, (), settings)
    for job in (Jobs(1, 2), Jobs(2, 2)):
        begin = (job.index - 1) / job.count
        assert (
            tuning.tuned_cells(cells, planned, tmp_path, train, begin_at=begin) is None
        )
    assert order == [
        "policy_gradient learning_rate=0.001",
        "actor_critic learning_rate=0.001",
    ]


def test_a_tuned_cell_differs_from_an_untuned_one_of_the_same_rate():
    (cell, _) = plan(["actor_critic"], overrides=[CATCH, *TINY])
    assert "tuning" not in cell.identity()
    rate = cell.settings.agent.optimizer.learning_rate
    tuned = Tuned((rate,), ("CartPole-v1",), (1,), 100, rate, "rank", (0.0,))
    identity = dataclasses.replace(cell, tuning=tuned).identity()
    assert json.loads(json.dumps(identity)) == identity
    assert {k: v for k, v in identity.items() if k != "tuning"} == cell.identity()


def store(cell, folder: Path) -> None:
    done = make_result(cell, env_steps=200, episodes=1, last_returns=[1.0])
    write_cell(folder, cell, done, [], {})


@pytest.mark.parametrize(
    ("stored_with", "message"),
    [
        ([], r"tuning\.learning_rates = nothing, not \[0\.001, 0\.01\]"),
        (
            ["tuning.learning_rates=[1e-3]", *TRIED],
            r"tuning\.learning_rates = \[0\.001\], not \[0\.001, 0\.01\]",
        ),
        ([RATES, *TRIED, "tuning.seeds=[8]"], r"tuning\.seeds = \[8\], not \[7\]"),
        ([RATES, *TRIED, "rollout_length=5"], "rollout_length = 5, not 6"),
    ],
)
def test_another_grid_is_refused_before_any_try(tmp_path, stored_with, message):
    before = [CATCH, *TINY, *stored_with]
    (cell, _) = plan(["actor_critic"], overrides=before)
    for grid in grids(["actor_critic"], *before):
        tuned = tuning.choose(grid, rows(grid, *[[1.0]] * len(grid.rates)))
        cell = dataclasses.replace(cell, tuning=tuned)
    store(cell, tmp_path)
    with pytest.raises(UserError, match=message):
        evaluate(
            ["actor_critic"],
            overrides=[CATCH, *TINY, RATES, *TRIED, f"results_dir={tmp_path}"],
        )
    assert not (tmp_path / "tuning").exists()


def test_a_try_of_other_settings_is_refused_before_any_try(tmp_path):
    (grid,) = grids(
        ["actor_critic"], CATCH, *TINY, RATES, *TRIED, "tuning.env_steps=90"
    )
    (tried,) = grid.tries[1]
    last = tmp_path / "tuning" / "learning_rate=0.01"
    store(tried, last)
    with pytest.raises(UserError, match="env_steps = 90, not 100"):
        evaluate(
            ["actor_critic"],
            overrides=[CATCH, *TINY, RATES, *TRIED, f"results_dir={tmp_path}"],
        )
    assert list((tmp_path / "tuning").iterdir()) == [last]


def test_a_finished_tuned_cell_is_accepted_whatever_was_chosen(tmp_path):
    settings = [CATCH, *TINY, RATES, *TRIED]
    (grid,) = grids(["actor_critic"], *settings)
    cells = plan(["actor_critic"], overrides=settings)
    best = grid.chosen(1, score="rank", scores=(0.0, 1.0))
    for cell in tuning.tuned_cells(cells, [grid], tmp_path, train_as(best)):
        store(cell, tmp_path)
    again = tuning.tuned_cells(cells, [grid], tmp_path, train_as(best))
    assert [cell.tuning.chosen for cell in again] == [1e-2, 1e-2]


def train_as(best: Tuned):
    """Return a training by which one rate is the best."""

    def train(cells, folder: Path) -> bool:
        for cell in cells:
            rate = cell.settings.agent.optimizer.learning_rate
            good = float(rate == best.chosen)
            done = make_result(cell, env_steps=9, episodes=1, last_returns=[good])
            write_cell(folder, cell, done, [], {})
        return True

    return train


def test_what_is_said_names_what_was_tried(tmp_path, capsys):
    factors = "tuning.factors=[0.5, 1, 2]"
    settings = ["environment.suite=catch_5x5", factors, *TRIED]
    (grid,) = grids(["ppo"], *settings)
    cells = plan(["ppo"], overrides=settings)
    # PPO's rate is 1e-3 on Catch, and 2.5e-4 on what it was tried on.
    tried = grid.chosen(1, score="rank", scores=(0.0, 1.0, 0.0))
    assert tried.chosen == 1e-3
    train = train_as(dataclasses.replace(tried, chosen=2.5e-4))
    (tuned, *_) = tuning.tuned_cells(cells, [grid], tmp_path, train)
    assert capsys.readouterr().out.splitlines() == [
        "tuned: ppo on CartPole-v1: factor 1, learning rate 0.001 where it is scored "
        "(mean rank of 0.5: 0.5, 1: 2, 2: 0.5)"
    ]
    assert tuned.tuning.factors == (0.5, 1.0, 2.0)
    assert "factors" not in tuned.identity()["tuning"]


def test_a_factor_multiplies_the_own_rate_of_every_game_of_a_family(tmp_path, capsys):
    # Of PPO's: 2.5e-4 on the one, like all vectors of numbers, and 1e-3 on the other.
    names = ["gym:CartPole-v1", "gym:FrozenLake-v1"]
    settings = [
        f"environment.games={json.dumps(names)}",
        "tuning.factors=[0.5, 2]",
        "tuning.games=[Acrobot-v1]",
        "env_steps=10000",
        "seeds=[1]",
    ]
    cells = plan(["ppo"], overrides=settings)
    own = {cell.game: cell.settings.agent.optimizer.learning_rate for cell in cells}
    assert own == {names[0]: 2.5e-4, names[1]: 1e-3}
    for order in (cells, cells[::-1]):
        (grid,) = plan_grids(order, (), settings)
        assert rates_of(grid) == [{1.25e-4}, {5e-4}]
        best = grid.chosen(1, score="rank", scores=(0.0, 1.0))
        folder = tmp_path / order[0].name
        train = train_as(dataclasses.replace(best, chosen=5e-4))
        tuned = tuning.tuned_cells(order, [grid], folder, train)
        assert {
            cell.game: cell.settings.agent.optimizer.learning_rate for cell in tuned
        } == {names[0]: 5e-4, names[1]: 2e-3}
        records = {cell.game: cell.identity()["tuning"] for cell in tuned}
        assert records[names[0]]["learning_rates"] == [1.25e-4, 5e-4]
        assert records[names[1]]["learning_rates"] == [5e-4, 2e-3]
        assert [records[name]["chosen"] for name in names] == [5e-4, 2e-3]
        for cell in tuned:
            store(cell, folder)
        again = tuning.tuned_cells(order, [grid], folder, train)
        assert [cell.tuning for cell in again] == [cell.tuning for cell in tuned]
    assert capsys.readouterr().out.splitlines()[0] == (
        "tuned: ppo on Acrobot-v1: factor 2, learning rate 0.0005 or 0.002 where it is "
        "scored, at the edge of the grid (mean rank of 0.5: 0, 2: 1)"
    )
