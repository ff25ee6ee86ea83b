"""A results folder never mixes two rules, budgets or roles under one name."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from metarl.errors import UserError
from metarl.evaluation import evaluate
from metarl.evaluation.cell_records import (
    make_result,
)
from metarl.evaluation.cells import Cell, Tuned, plan
from metarl.evaluation.jobs import Jobs
from metarl.evaluation.mixing import require_one_of_a_name
from metarl.evaluation.results import (
    is_finished,
    write_cell,
)
from metarl.rule_files import load_rule
from metarl.validation_plan import drop_other_cells

GRID = ["tuning.learning_rates=[1e-3, 1e-2]", "tuning.games=[CartPole-v1]"]


def cell(
    game: str = "Catch-v0",
    seed: int = 1,
    *overrides: str,
    rule: str = "actor_critic",
    tuning: Tuned | None = None,
    **manifest,
) -> Cell:
    loaded = load_rule(rule)
    loaded = dataclasses.replace(
        loaded, manifest=loaded.manifest.model_copy(update=manifest)
    )
    settings = [f"environment.games=[{game}]", f"seeds=[{seed}]", *overrides]
    (found,) = plan([loaded], overrides=settings)
    return dataclasses.replace(found, tuning=tuning)


def tuned(*games: str, chosen: float = 1e-3, rates=(1e-3, 1e-2)) -> Tuned:
    return Tuned(rates, games, (7,), 100, chosen, "rank", (1.0, 0.0))


def store(folder: Path, one: Cell) -> Path:
    done = make_result(one, env_steps=200, episodes=1, last_returns=[1.0])
    write_cell(folder, one, done, [], {})
    return folder / "cells" / f"{one.name}.json"


def refusal(folder: Path, one: Cell) -> str:
    with pytest.raises(UserError) as error:
        require_one_of_a_name(folder, [one])
    assert "\n" not in str(error.value)
    return str(error.value)


def test_another_budget_for_another_seed_is_refused(tmp_path):
    store(tmp_path, cell())
    assert refusal(tmp_path, cell("Catch-v0", 2, "env_steps=9000")) == (
        f"results_dir: {tmp_path} has actor_critic__Catch-v0__seed1 with env_steps = "
        "200000, not 9000 as actor_critic__Catch-v0__seed2 has it now, and tables take "
        "all of 'actor_critic' together (choose another results_dir)"
    )


def test_another_rule_of_the_name_is_refused_for_another_game(tmp_path):
    store(tmp_path, cell())
    for other, field in (
        ({"sha256": "abc"}, 'rule_sha256 = "", not "abc"'),
        ({"source": {"module_sha256": "d"}}, 'rule_module_sha256 = nothing, not "d"'),
    ):
        said = refusal(tmp_path, cell("CartPole-v1", 1, **other))
        assert f"actor_critic__Catch-v0__seed1 with {field} as" in said
        assert "actor_critic__CartPole-v1__seed1" in said
    config = load_rule("actor_critic").manifest.config
    bins = config.model_copy(update={"num_bins": 7})
    said = refusal(tmp_path, cell("CartPole-v1", 1, config=bins))
    assert "update_rule.num_bins = 101, not 7" in said


def test_what_follows_from_the_game_and_other_rules_may_differ(tmp_path):
    # Another budget, torso, learning rate and, of PPO, clip.
    store(tmp_path, cell(rule="ppo"))
    atari = cell("Pong-v5", rule="ppo")
    require_one_of_a_name(tmp_path, [atari, cell("Catch-v0", 2, rule="ppo")])
    assert atari.rule.manifest.config != load_rule("ppo").manifest.config
    other = cell("Catch-v0", 2, "env_steps=9000", sha256="abc")
    require_one_of_a_name(tmp_path, [other])
    # What is there already is compared with its own file alone.
    require_one_of_a_name(tmp_path, [cell("Catch-v0", 1, "env_steps=9", rule="ppo")])
    # A file that is not understood is passed over.
    (tmp_path / "cells" / "strange.json").write_text("[]")
    require_one_of_a_name(tmp_path, [other])


def test_of_one_grid_any_choice_may_stand_beside_another(tmp_path):
    store(tmp_path, cell(tuning=tuned("CartPole-v1")))
    again = cell("Catch-v0", 2, tuning=tuned("CartPole-v1", chosen=1e-2))
    require_one_of_a_name(tmp_path, [again])
    untuned = cell("Catch-v0", 2)
    assert "tuning.learning_rates = [0.001, 0.01], not nothing" in refusal(
        tmp_path, untuned
    )


def test_no_game_is_scored_and_tuned_on_by_two_commands(tmp_path):
    for_catch = cell(tuning=tuned("CartPole-v1"))
    cartpole = cell("gym:CartPole-v0")
    others = [cell("Acrobot-v1"), cell("gym:CartPole-v0", rule="ppo")]
    for name, first, second in (("a", for_catch, cartpole), ("b", cartpole, for_catch)):
        store(tmp_path / name, first)
        assert refusal(tmp_path / name, second) == (
            f"results_dir: {tmp_path / name} has {first.name}, and now comes "
            f"{second.name}: actor_critic__gym-CartPole-v0__seed1 is scored on a game "
            "that the learning rate of actor_critic__Catch-v0__seed1 was chosen on "
            "(choose another results_dir)"
        )
        require_one_of_a_name(tmp_path / name, others)


@pytest.mark.parametrize("jobs", [Jobs(), Jobs(1, 2), Jobs(2, 2)])
def test_nothing_is_trained_before_a_refusal(tmp_path, jobs):
    path = store(tmp_path, cell())
    settings = [
        "environment.games=[Catch-v0, Acrobot-v1]",
        "seeds=[2]",
        "env_steps=9000",
        f"results_dir={tmp_path}",
    ]
    with pytest.raises(UserError, match="env_steps = 200000, not 9000"):
        evaluate(["actor_critic"], overrides=settings, jobs=jobs)
    assert list((tmp_path / "cells").iterdir()) == [path]


def test_a_try_of_another_seed_and_budget_is_refused(tmp_path):
    folder = tmp_path / "tuning" / "learning_rate=0.01"
    rate = "agent.optimizer.learning_rate=0.01"
    store(folder, cell("CartPole-v1", 8, rate, "env_steps=9000"))
    settings = ["environment.games=[Catch-v0]", f"results_dir={tmp_path}", *GRID]
    with pytest.raises(UserError, match=r"CartPole-v1__seed8 with env_steps = 9000"):
        evaluate(["actor_critic"], overrides=settings)
    assert [path.name for path in (tmp_path / "tuning").iterdir()] == [folder.name]


def test_a_grid_in_another_order_is_the_same(tmp_path):
    path = store(tmp_path, cell(tuning=tuned("CartPole-v1", "Acrobot-v1")))
    other = tuned("Acrobot-v1", "CartPole-v1", rates=(1e-2, 1e-3))
    assert is_finished(tmp_path, cell(tuning=other))
    require_one_of_a_name(tmp_path, [cell("Catch-v0", 2, tuning=other)])
    assert json.loads(path.read_text())["settings"]["tuning"]["games"] == [
        "CartPole-v1",
        "Acrobot-v1",
    ]
    more = tuned("Acrobot-v1", "CartPole-v1", rates=(1e-2, 1e-3, 1e-4))
    with pytest.raises(UserError, match=r"tuning\.learning_rates = "):
        is_finished(tmp_path, cell(tuning=more))


def test_a_validation_begins_anew_where_it_would_be_refused(tmp_path):
    path = store(tmp_path, cell())
    drop_other_cells(tmp_path, [cell("Catch-v0", 2)])
    assert path.exists()
    drop_other_cells(tmp_path, [cell("Catch-v0", 2, "env_steps=9000")])
    assert not path.exists()
