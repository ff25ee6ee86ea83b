"""The command on a card plans cells with the settings that the results have."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

import pytest
from report_cells import store

from metarl import cli
from metarl.evaluation.cell_records import (
    CellRecord,
)
from metarl.evaluation.cells import Cell, plan
from metarl.evaluation.results import (
    read_cells,
)
from metarl.evaluation.tuning_grid import plan_grids, rated_cell
from metarl.rule_files import load_rule
from metarl.shipping.recipes import command, recipe

CATCH = "environment.suite=catch_5x5"


def _records(
    folder: Path, cells: list[Cell], suite: str | None = None
) -> list[CellRecord]:
    for cell in cells:
        about = {"suite": suite, "device": "cpu"}
        store(folder, cell, 0.5, about=about)
    return read_cells(folder)


def _words(line: str) -> list[str]:
    """Return what a shell makes of a command line."""
    return shlex.split(line.replace("\\\n", ""))


@pytest.mark.parametrize(
    ("rule", "given", "found"),
    [
        ("actor_critic", [CATCH], ["--suite catch_5x5"]),
        (
            "ppo",
            [CATCH, "seeds=[4, 5]", "agent.optimizer.learning_rate=0.02"],
            ["--suite catch_5x5", "seeds=[4, 5]", "agent.optimizer.learning_rate=0.02"],
        ),
        (
            "random",
            ["environment.games=[gym:CartPole-v1]", "seeds=[0]", "env_steps=3000"],
            ["environment.games=[gym:CartPole-v1]", "seeds=[0]", "env_steps=3000"],
        ),
        # What has a kind is given as a whole.
        (
            "actor_critic",
            [
                "environment.games=[Pong-v5]",
                "agent.network.torso={kind: mlp, hidden: [8]}",
            ],
            [
                "environment.games=[Pong-v5]",
                "agent.network.torso={kind: mlp, hidden: [8], activate_final: false}",
            ],
        ),
        (
            "actor_critic",
            [
                "environment.games=[Pong-v5]",
                "agent.network.torso={kind: nature, channels: [4, 8], kernels: [8, 4], "
                "strides: [4, 2], dense: 256}",
            ],
            [
                "environment.games=[Pong-v5]",
                "agent.network.torso={kind: nature, channels: [4, 8], kernels: [8, 4], "
                "strides: [4, 2], dense: 256}",
            ],
        ),
        # A preset is named, not what it sets.
        (
            "ppo",
            ["environment.games=[Pong-v5]", "environment.atari.protocol=machado"],
            ["environment.games=[Pong-v5]", "environment.atari.protocol=machado"],
        ),
    ],
)
def test_it_is_what_was_typed(
    tmp_path: Path, rule: str, given: list[str], found: list[str]
) -> None:
    suite = "catch_5x5" if CATCH in given else None
    loaded = load_rule(rule)
    records = _records(tmp_path, plan([loaded], overrides=given), suite)
    words = recipe(loaded, records)
    assert words is not None
    assert list(words) == found
    # And it plans these very cells.
    typed = cli.parse(_words(command([rule], words, "results"))[1:])
    played = [] if typed.suite is None else [f"environment.suite={typed.suite}"]
    cells = plan(typed.rules, overrides=[*played, *typed.overrides])
    again = {(c.game, c.seed): c for c in cells}
    assert len(again) == len(records)
    for record in records:
        cell = again[record.result.game, record.result.seed]
        assert cell.identity() == record.settings


def test_a_grid_of_rates_is_given_again(tmp_path: Path) -> None:
    grid = ["tuning.learning_rates=[0.001, 0.01]", "tuning.games=[CartPole-v1]"]
    given = [CATCH, "env_steps=3000", *grid, "tuning.env_steps=2600"]
    loaded = load_rule("actor_critic")
    cells = plan([loaded], overrides=given)
    (planned,) = plan_grids(cells, (), given)
    chosen = planned.chosen(1, score="rank", scores=(0.0, 1.0))
    records = _records(tmp_path, [rated_cell(c, chosen) for c in cells], "catch_5x5")
    words = recipe(loaded, records)
    assert words is not None
    assert set(words) == {"--suite catch_5x5", "env_steps=3000", *given[2:]}


def test_rates_for_several_kinds_of_games_are_given_with_a_budget(
    tmp_path: Path,
) -> None:
    games = "environment.games=[CartPole-v1, Catch-v0]"
    grid = ["tuning.learning_rates=[0.001, 0.01]", "tuning.games=[Acrobot-v1]"]
    given = [games, "env_steps=3000", *grid]
    loaded = load_rule("ppo")
    cells = plan([loaded], overrides=given)
    grids = {x.family: x for x in plan_grids(cells, (), given)}
    assert len(grids) == 2
    rated = [
        rated_cell(
            cell, grids[cell.task.game.family].chosen(1, score="rank", scores=())
        )
        for cell in cells
    ]
    words = recipe(loaded, _records(tmp_path, rated))
    assert words is not None
    assert set(words) == set(given)


def test_none_is_made_up(tmp_path: Path) -> None:
    loaded = load_rule("actor_critic")
    first, second = _records(tmp_path, plan([loaded], overrides=[CATCH, "seeds=[1,2]"]))
    assert recipe(loaded, [first, second]) is None  # this board has no other name
    settings = {**first.settings, "unheard_of": 2}
    odd = dataclasses.replace(first, settings=settings)
    assert recipe(loaded, [odd]) is None
    # Two commands, of which neither gives both.
    slow = {**second.settings, "rollout_length": 7}
    mixed = [first, dataclasses.replace(second, settings=slow)]
    about = {"suite": "catch_5x5"}
    mixed = [dataclasses.replace(record, about=about) for record in mixed]
    assert recipe(loaded, mixed) is None
    assert recipe(loaded, mixed[1:]) == (
        "--suite catch_5x5",
        "seeds=[2]",
        "rollout_length=7",
    )


def test_a_long_command_is_broken_where_a_shell_reads_on() -> None:
    words = ["--suite atari5", "seeds=[1, 2]", *(f"field_{i}=value" for i in range(9))]
    text = command(["mine", "ppo"], words, "results/mine")
    assert max(map(len, text.splitlines())) <= 108
    assert _words(text) == [
        *("metarl", "evaluate", "mine", "ppo", "--suite", "atari5", "seeds=[1, 2]"),
        *(f"field_{i}=value" for i in range(9)),
        "results_dir=results/mine",
    ]
