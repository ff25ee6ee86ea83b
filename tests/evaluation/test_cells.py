from __future__ import annotations

import dataclasses

import pytest

from metarl.errors import UserError
from metarl.evaluation.batches import batches
from metarl.evaluation.cell_records import (
    make_result,
)
from metarl.evaluation.cells import plan, require_an_update
from metarl.evaluation.results import (
    is_finished,
    write_cell,
)
from metarl.rule_files import load_rule

CATCH = "environment.suite=catch_5x5"


def names(cells) -> list[str]:
    return [cell.name for cell in cells]


def test_rules_by_games_by_seeds():
    cells = plan(
        ["actor_critic", "policy_gradient"],
        overrides=["environment.games=[Catch-v0, CartPole-v1]", "seeds=[1, 4]"],
    )
    assert names(cells) == [
        f"{rule}__{game}__seed{seed}"
        for rule in ("actor_critic", "policy_gradient")
        for game in ("Catch-v0", "CartPole-v1")
        for seed in (1, 4)
    ]


def test_budgets_are_the_suites_and_for_games_their_familys():
    (cell,) = plan(["actor_critic"], overrides=[CATCH, "seeds=[1]"])
    assert cell.env_steps == 100_000
    cells = plan(
        ["actor_critic"],
        overrides=["environment.games=[Pong, Catch-v0]", "seeds=[1]"],
    )
    assert [cell.env_steps for cell in cells] == [50_000_000, 200_000]
    cells = plan(
        ["actor_critic"],
        overrides=["environment.games=[Pong, catch_5x5]", "seeds=[1]"],
    )
    assert [cell.env_steps for cell in cells] == [50_000_000, 100_000]
    assert cells[1].identity()["environment"]["options"] == {"height": 5, "width": 5}
    # Results are told apart by games.
    boards = ["environment.games=[Catch-v0, catch_5x5]", "seeds=[1]"]
    with pytest.raises(UserError, match="evaluate them apart"):
        plan(["actor_critic"], overrides=boards)


def test_seeds_of_a_cell_are_its_own_and_the_same_for_every_rule():
    cells = plan(
        ["actor_critic", "policy_gradient"],
        overrides=["environment.games=[Catch-v0, CartPole-v1]", "seeds=[1, 2]"],
    )
    seeds = [cell.base_seed for cell in cells]
    assert seeds[:4] == seeds[4:]
    assert len(set(seeds)) == 4
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_batches_share_rule_and_shapes_and_are_not_too_large():
    cells = plan(
        ["actor_critic", "policy_gradient"],
        overrides=[
            "environment.games=[Pong, Breakout, Catch-v0]",
            "seeds=[1, 2]",
            "cells_at_once=3",
        ],
    )
    found = [names(batch) for batch in batches(cells)]
    assert [len(batch) for batch in found] == [3, 1, 2, 3, 1, 2]
    assert found[0] == [
        "actor_critic__Pong-v5__seed1",
        "actor_critic__Pong-v5__seed2",
        "actor_critic__Breakout-v5__seed1",
    ]
    assert sorted(name for batch in found for name in batch) == sorted(names(cells))


def test_minimal_action_sets_are_trained_apart():
    cells = plan(
        ["actor_critic"],
        overrides=[
            "environment.games=[Pong, Breakout]",
            "environment.atari.full_action_set=false",
            "seeds=[1]",
        ],
    )
    assert [len(batch) for batch in batches(cells)] == [1, 1]


def test_a_rules_options_may_be_its_familys_and_are_a_part_of_the_cell():
    cells = plan(["ppo"], overrides=["environment.games=[Pong, Catch-v0]", "seeds=[1]"])
    assert [cell.identity()["update_rule"]["clip"] for cell in cells] == [0.1, 0.2]
    assert [cell.rule.rule.config.clip for cell in cells] == [0.1, 0.2]


NAMED = "rules=[{name: mine, update_rule: {kind: ppo, clip: 0.3}}]"


def test_a_configuration_gives_rules_options_and_names():
    given = [CATCH, "seeds=[1]"]
    mine, theirs = plan(["mine", "ppo"], overrides=[*given, NAMED])
    assert (mine.rule.name, mine.name) == ("mine", "mine__Catch-v0__seed1")
    assert mine.identity()["update_rule"]["clip"] == 0.3
    # Settings follow the kind; what a rule is called changes no other one's cells.
    assert mine.settings == theirs.settings
    (same,) = plan(["ppo"], overrides=given)
    assert theirs.identity() == same.identity()
    assert mine.identity() != same.identity()


def test_what_decides_a_result_is_its_identity():
    def identity(*overrides: str) -> dict[str, object]:
        (cell,) = plan(["actor_critic"], overrides=[CATCH, "seeds=[1]", *overrides])
        return cell.identity()

    base = identity()
    assert base["group_size"] == 1
    assert base["environment"]["options"] == {"height": 5, "width": 5}
    for unimportant in (
        "cells_at_once=7",
        "results_dir=elsewhere",
        "environment.num_threads=9",
        "tracking.wandb=disabled",
        "exp_name=x",
    ):
        assert identity(unimportant) == base
    for important in (
        "env_steps=7",
        "rollout_length=3",
        "agent.optimizer.learning_rate=0.5",
        "environment.suite=catch",
        "environment.num_envs=3",
        "replay.capacity=5",
    ):
        assert identity(important) != base


@pytest.mark.parametrize(
    ("rules", "overrides", "message"),
    [
        (
            ["ppo"],
            [CATCH, "rules=[{name: ppo, update_rule: {kind: ppo}}]"],
            r"^rules: 'ppo' is the name of a rule that there is$",
        ),
        (
            ["a"],
            [
                CATCH,
                "rules=[{name: a, update_rule: {kind: ppo}}, "
                "{name: a, update_rule: {kind: random}}]",
            ],
            r"^rules: two are called 'a'$",
        ),
        (
            ["d"],
            [CATCH, "rules=[{name: d, update_rule: {kind: disco}}]"],
            r"^rules: 'd' is of kind disco, which is evaluated by its file",
        ),
        (
            ["b"],
            [CATCH, "rules=[{name: b, update_rule: {kind: ppo, clap: 1}}]"],
            r"^rules\[0\]\.update_rule\.clap=1: unknown key; did you mean 'clip'\? ",
        ),
        (["actor_crit"], [CATCH], "actor_critic"),
        (["actor_critic"], ["environment.suite=catch_5x"], "catch_5x5"),
        (["actor_critic"], [], "suite"),
        (["actor_critic"], [CATCH, "seeds=[1, 1]"], "seeds"),
        (["actor_critic"], [CATCH, "seeds=[]"], "seeds"),
        (["actor_critic", "actor_critic"], [CATCH], "two are called 'actor_critic'"),
    ],
)
def test_mistakes_are_named(rules, overrides, message):
    with pytest.raises(UserError, match=message):
        plan(rules, overrides=overrides)


def test_cells_of_one_file_are_refused(tmp_path):
    rule = load_rule("actor_critic")
    one, two = (dataclasses.replace(rule, name=name) for name in ("a b", "a/b"))
    settings = [CATCH, "seeds=[1]", "env_steps=1000"]
    with pytest.raises(UserError, match="a b on Catch-v0 and a/b on Catch-v0 would"):
        plan([one, two], overrides=settings)
    # Nor is the one taken for the other later.
    (cell,), (other,) = (plan([r], overrides=settings) for r in (one, two))
    done = make_result(cell, env_steps=1000, episodes=1, last_returns=[1.0])
    write_cell(tmp_path, cell, done, [], {})
    assert is_finished(tmp_path, cell)
    with pytest.raises(UserError, match='with rule = "a b", not "a/b"'):
        is_finished(tmp_path, other)


def test_names_are_safe_for_files():
    rule = dataclasses.replace(load_rule("actor_critic"), name="my rule/β")
    (cell,) = plan([rule], overrides=[CATCH, "seeds=[1]"])
    assert cell.name == "my-rule--__Catch-v0__seed1"


def test_a_budget_without_an_update_is_refused():
    settings = ["replay={capacity: 8, ratio: 2}", "environment.num_envs=2"]
    few, enough = (
        plan(["actor_critic"], overrides=[CATCH, "rollout_length=5", *settings, steps])
        for steps in ("env_steps=19", "env_steps=20")
    )
    require_an_update(enough[0])
    with pytest.raises(UserError, match=r"env_steps: 19 is less .* waits for .20: "):
        require_an_update(few[0])
