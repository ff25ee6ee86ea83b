"""Whole evaluations, of agents so small that compiling them takes most of the time."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metarl import provenance
from metarl.config import ActorCriticConfig, PolicyGradientConfig
from metarl.errors import UserError
from metarl.evaluation import cell_run, evaluate, main, results_tables, runner
from metarl.evaluation.cell_records import (
    Result,
)
from metarl.evaluation.cells import plan
from metarl.evaluation.runner import BatchRun
from metarl.rollout import actor
from metarl.rule_files import LoadedRule, load_rule, new_manifest, save_rule
from metarl.rules import make_rule
from metarl.rules.policy_gradient import PolicyGradient

TINY = [
    "environment.suite=catch_5x5",
    "environment.num_envs=4",
    "rollout_length=6",
    "agent.network.torso.hidden=[8]",
    "env_steps=300",
    "curve_points=3",
]
REPLAY = ["replay.capacity=24", "replay.ratio=2"]


def small_rule(name: str = "small", num_bins: int = 5, **manifest) -> LoadedRule:
    """Return an actor-critic with few bins."""
    config = ActorCriticConfig(num_bins=num_bins, max_abs_value=2.0)
    made = new_manifest(config).model_copy(update=manifest)
    return LoadedRule(make_rule(config), {}, made, name)


def run(folder: Path, *overrides: str, rule: LoadedRule | None = None) -> list[Result]:
    return evaluate(
        [rule or small_rule()], overrides=[*TINY, *overrides, f"results_dir={folder}"]
    )


def cell_file(folder: Path, seed: int, rule: str = "small") -> Path:
    return folder / "cells" / f"{rule}__Catch-v0__seed{seed}.json"


def learned(folder: Path, seed: int) -> dict[str, object]:
    stored = json.loads(cell_file(folder, seed).read_text())
    assert stored["result"].pop("wall_s") > 0
    return {"result": stored["result"], "curve": stored["curve"]}


def tracked(folder: Path, seed: int) -> list[dict[str, float | None]]:
    path = folder / "tracking" / f"small__Catch-v0__seed{seed}" / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


class DivergingRule(PolicyGradient):
    def loss(self, *arguments):
        loss, metrics = super().loss(*arguments)
        return jnp.nan * loss, metrics


def test_an_agent_that_diverges_is_told_and_stored(tmp_path, capsys):
    config = PolicyGradientConfig()
    rule = LoadedRule(DivergingRule(config), {}, new_manifest(config), "small")
    run(tmp_path, "seeds=[1]", rule=rule)
    about = json.loads(cell_file(tmp_path, 1).read_text())["about"]
    at = about["diverged_at_env_steps"]
    assert 0 < at < 300
    (line,) = (x for x in capsys.readouterr().out.splitlines() if "warning" in x)
    assert line == (
        f"warning: small__Catch-v0__seed1: the loss is not finite at {at} env steps; "
        "its agent may learn no more"
    )


def test_an_environment_that_pays_nan_is_told_and_stored_as_json(
    tmp_path, monkeypatch, capsys
):
    drain = actor.Actor.drain_episodes

    def paid_nan(self):
        return [
            [dataclasses.replace(e, returns=e.returns * np.nan) for e in of_cell]
            for of_cell in drain(self)
        ]

    monkeypatch.setattr(actor.Actor, "drain_episodes", paid_nan)
    (result,) = run(tmp_path, "seeds=[1]")
    assert (result.mean_return, result.scored_episodes) == (None, 0)
    (line,) = (x for x in capsys.readouterr().out.splitlines() if "warning" in x)
    assert line.startswith("warning: small__Catch-v0__seed1: the return of ")
    assert line.endswith("; means with such a return are left out")
    for path in (cell_file(tmp_path, 1), tmp_path / "results.json"):
        json.loads(path.read_text(), parse_constant=pytest.fail)
    stored = json.loads(cell_file(tmp_path, 1).read_text())
    assert stored["about"]["nonfinite_return"] == result.episodes > 0
    assert [row["mean_return"] for row in stored["curve"]] == [None] * 3
    assert tracked(tmp_path, 1)[-1]["charts/episodic_return"] is None


@pytest.mark.parametrize("replay", [[], REPLAY])
def test_a_cell_does_not_depend_on_the_cells_beside_it(tmp_path, replay):
    run(tmp_path / "alone", "seeds=[2]", *replay)
    run(tmp_path / "beside", "seeds=[1, 2, 3]", *replay)
    run(tmp_path / "split", "seeds=[3, 1, 2]", "cells_at_once=2", *replay)
    alone = learned(tmp_path / "alone", 2)
    assert learned(tmp_path / "beside", 2) == alone
    assert learned(tmp_path / "split", 2) == alone
    assert learned(tmp_path / "beside", 1) != learned(tmp_path / "beside", 3)


def test_parameters_do_not_depend_on_the_cells_beside_it():
    def trained(seeds: list[int]):
        cells = plan([small_rule()], overrides=[*TINY, *REPLAY, f"seeds={seeds}"])
        batch = BatchRun(cells)
        batch.run(lambda *_: None, lambda *_: None)
        return batch

    alone = trained([2])
    beside = trained([1, 2])
    for a, b in zip(
        jax.tree.leaves(alone.agents_of(0)),
        jax.tree.leaves(beside.agents_of(1)),
        strict=True,
    ):
        assert (a == b).all()
    assert int(alone.agents_of(0).agent_updates) > 5


def test_budget_counts_the_transitions_that_exist(tmp_path):
    (result,) = run(tmp_path, "seeds=[1]")
    # 24 calls a rollout, of which 19 or 20 exist where episodes have 4 steps.
    assert 300 <= result.env_steps < 300 + 24
    assert result.episodes == pytest.approx(result.env_steps / 4, abs=4)
    curve = learned(tmp_path, 1)["curve"]
    assert curve[-1]["env_steps"] == result.env_steps
    assert sum(row["episodes"] for row in curve) == result.episodes
    assert len(curve) == 3


def test_updates_begin_when_the_replay_holds_a_batch(tmp_path):
    run(tmp_path / "none", "seeds=[1]")
    run(tmp_path / "full", "seeds=[1]", "replay.capacity=40", "replay.ratio=5")
    without, with_replay = (
        learned(tmp_path / name, 1)["curve"][-1] for name in ("none", "full")
    )
    # Batches of 20, 4 trajectories a rollout: the first 4 rollouts update nothing.
    assert without["env_steps"] == with_replay["env_steps"]
    assert with_replay["agent_updates"] == without["agent_updates"] - 4


@pytest.mark.parametrize("replay", [[], REPLAY])
def test_one_program_serves_all_steps_and_batches(tmp_path, replay):
    # Bins that no other test has, so that nothing is compiled before.
    rule = small_rule(num_bins=8 + len(replay))
    programs = [runner._update, runner._init, actor._act]
    before = [program._cache_size() for program in programs]
    run(tmp_path, "seeds=[2, 3, 4]", "cells_at_once=2", *replay, rule=rule)
    assert [program._cache_size() for program in programs] == [n + 1 for n in before]


@pytest.mark.parametrize("replay", [[], REPLAY])
def test_nothing_moves_to_or_from_the_host_unasked(replay):
    cells = plan([small_rule()], overrides=[*TINY, *replay, "seeds=[1, 2]"])
    batch = BatchRun(cells)
    batch._actor.start()
    for _ in range(4):
        batch._record(batch._iterate(), lambda *_: None, lambda *_: None)
    with jax.transfer_guard("disallow"):
        for _ in range(3):
            metrics = batch._iterate()
            batch._record(metrics, lambda *_: None, lambda *_: None)
    batch._actor.close()
    assert len(metrics) == 2
    assert batch._updates >= 3


def test_cells_mapped_together_learn_the_same(monkeypatch):
    cells = plan([small_rule()], overrides=[*TINY, "seeds=[1, 2]", "env_steps=100"])
    apart = BatchRun(cells)
    apart.run(lambda *_: None, lambda *_: None)
    monkeypatch.setattr(runner, "_cells_per_call", len)  # as on a GPU
    together = BatchRun(cells)
    together.run(lambda *_: None, lambda *_: None)
    assert together.num_parameters == apart.num_parameters
    for i in range(2):
        assert together.runs[i].curve == apart.runs[i].curve
        for a, b in zip(
            jax.tree.leaves(together.agents_of(i).params),
            jax.tree.leaves(apart.agents_of(i).params),
            strict=True,
        ):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_a_finished_cell_is_left_alone_and_rules_may_join(tmp_path):
    run(tmp_path, "seeds=[1]")
    first = cell_file(tmp_path, 1)
    stored = first.read_bytes(), first.stat().st_mtime_ns
    rows = run(tmp_path, "seeds=[1, 2]")
    assert (first.read_bytes(), first.stat().st_mtime_ns) == stored
    assert [row.seed for row in rows] == [1, 2]
    other = small_rule("other", games_seen=("Catch-v0",))
    rows = run(tmp_path, "seeds=[1]", rule=other)
    assert [(row.rule, row.status) for row in rows] == [("other", "seen")]
    with (tmp_path / "results.csv").open(newline="") as file:
        table = [(r["rule"], r["seed"], r["status"]) for r in csv.DictReader(file)]
    assert table == [
        ("other", "1", "seen"),
        ("small", "1", "held_out"),
        ("small", "2", "held_out"),
    ]


def test_the_status_follows_what_is_known_of_the_rule(tmp_path, capsys):
    (before,) = run(tmp_path, "seeds=[1]")
    assert before.status == "held_out"
    stored = json.loads(cell_file(tmp_path, 1).read_text())
    capsys.readouterr()
    # Of a seed that is not asked for too, but no other rule of the name.
    (row,) = run(tmp_path, "seeds=[2]", rule=small_rule(games_seen=("Catch-v0",)))
    assert row.status == "seen"
    assert [line for line in capsys.readouterr().out.splitlines() if "status" in line]
    with (tmp_path / "results.csv").open(newline="") as file:
        table = [(r["seed"], r["status"]) for r in csv.DictReader(file)]
    assert table == [("1", "seen"), ("2", "seen")]
    now = json.loads(cell_file(tmp_path, 1).read_text())
    assert now["result"].pop("status") == "seen"
    assert stored["result"].pop("status") == "held_out"
    assert now == stored


def test_killed_between_cells_it_goes_on_with_the_missing_ones(tmp_path, monkeypatch):
    write_cell = cell_run.make_result
    made = []

    def die_at_the_second(*args, **kwargs):
        made.append(args)
        if len(made) == 2:
            raise KeyboardInterrupt
        return write_cell(*args, **kwargs)

    monkeypatch.setattr(cell_run, "make_result", die_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "seeds=[1, 2]", "cells_at_once=1")
    assert cell_file(tmp_path, 1).is_file()
    assert not cell_file(tmp_path, 2).exists()
    monkeypatch.undo()
    rows = run(tmp_path, "seeds=[1, 2]", "cells_at_once=1")
    assert [row.seed for row in rows] == [1, 2]
    run(tmp_path / "whole", "seeds=[2]")
    assert learned(tmp_path, 2) == learned(tmp_path / "whole", 2)


def test_an_error_of_the_users_code_says_in_which_cells(tmp_path, monkeypatch):
    run(tmp_path, "seeds=[1]")

    def broken(*_):
        raise ZeroDivisionError("in a user's environment")

    monkeypatch.setattr(BatchRun, "_iterate", broken)
    with pytest.raises(ZeroDivisionError) as info:
        run(tmp_path, "seeds=[1, 2]")
    (note,) = info.value.__notes__
    assert note.startswith("While training small__Catch-v0__seed2 in ")
    assert note.endswith("the same command goes on with the others.")


def test_a_strange_file_in_the_folder_costs_no_cell(tmp_path, monkeypatch, capsys):
    merges = []
    merge_cells = results_tables.merge_cells
    monkeypatch.setattr(
        results_tables,
        "merge_cells",
        lambda place: merges.append(1) or merge_cells(place),
    )
    make_result = cell_run.make_result

    def beside_a_stranger(*args, **kwargs):
        (tmp_path / "cells").mkdir(exist_ok=True)
        (tmp_path / "cells" / "strange.json").write_text("{")
        return make_result(*args, **kwargs)

    monkeypatch.setattr(cell_run, "make_result", beside_a_stranger)
    for seeds in ([1, 2, 3], [1, 2, 3, 4]):  # it is there at the start, too
        del merges[:]
        rows = run(tmp_path, f"seeds={seeds}", "cells_at_once=3")
        assert [row.seed for row in rows] == seeds
        assert len(merges) == 2  # after the batch, and at the end
    lines = [x for x in capsys.readouterr().out.splitlines() if "warning" in x]
    assert [line.rpartition("; ")[2] for line in lines] == ["the tables are without it"]


def test_other_settings_are_refused_before_anything_runs(tmp_path):
    run(tmp_path, "seeds=[1]")
    with pytest.raises(UserError, match="rollout_length = 6, not 5"):
        run(tmp_path, "seeds=[7, 1]", "rollout_length=5")
    assert not cell_file(tmp_path, 7).exists()


def test_results_need_a_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"results_dir: .*file: File exists"):
        run(tmp_path / "file", "seeds=[1]")


def test_curves_are_tracked_by_cell(tmp_path):
    (result,) = run(tmp_path, "seeds=[1]")
    rows = tracked(tmp_path, 1)
    assert [row["global_step"] for row in rows] == [
        row["env_steps"] for row in learned(tmp_path, 1)["curve"]
    ]
    assert rows[-1]["global_step"] == result.env_steps
    assert rows[-1]["charts/episodic_length"] == 4
    assert -1 <= rows[-1]["charts/episodic_return"] <= 1
    assert rows[-1]["charts/learning_rate"] == pytest.approx(1e-3)
    assert rows[-1]["losses/entropy"] > 0


def test_main_prints_a_table_and_where_the_results_are(tmp_path, capsys):
    rules, suite = ["policy_gradient"], "catch_5x5"
    overrides = [*TINY[1:], "seeds=[1, 2]", f"results_dir={tmp_path}"]
    assert main(rules, suite, [], overrides) == 0
    printed = capsys.readouterr().out
    assert str(tmp_path / "results.csv") in printed
    lines = [line.split() for line in printed.splitlines() if "Catch-v0" in line]
    assert lines[-1][:4] == ["Catch-v0", "held_out", "policy_gradient", "2"]
    assert "agent_updates=" in printed


def test_the_resolved_settings_are_kept_with_each_cell(tmp_path):
    run(tmp_path, "seeds=[1]")
    stored = json.loads(cell_file(tmp_path, 1).read_text())
    assert stored["settings"]["agent"]["optimizer"]["learning_rate"] == 1e-3
    assert stored["settings"]["environment"]["options"] == {"height": 5, "width": 5}
    assert stored["settings"]["update_rule"]["num_bins"] == 5
    assert stored["about"]["versions"]["jax"] == jax.__version__
    assert stored["about"]["versions"]["gymnasium"] == version("gymnasium")
    assert stored["about"]["machine"]["cores"] == f"{os.cpu_count()} cores"


@pytest.mark.skipif(provenance.git_commit() is None, reason="needs a checkout")
def test_a_cell_says_whether_the_code_was_modified_when_it_began(tmp_path, monkeypatch):
    asked = []

    def git(folder, *arguments):
        del folder
        asked.append(arguments)
        return "M a.py" if len(asked) == 1 else ""  # edited back in the meantime

    provenance.is_modified.cache_clear()
    monkeypatch.setattr(provenance, "_git", git)
    run(tmp_path, "seeds=[1, 2]", "cells_at_once=1")
    provenance.is_modified.cache_clear()
    abouts = [json.loads(cell_file(tmp_path, i).read_text())["about"] for i in (1, 2)]
    assert [about["modified"] for about in abouts] == [True, True]
    assert len(asked) == 1


def test_a_cell_says_where_its_rule_was_read_from(tmp_path):
    place = tmp_path / "runs" / "a" / "rule"
    built_in = load_rule("policy_gradient")
    save_rule(place, {}, built_in.manifest)
    results_dir = tmp_path / "results" / "deep"
    overrides = [*TINY, "seeds=[1]", f"results_dir={results_dir}"]
    evaluate([place, built_in], overrides=overrides)
    said = {
        path.name.partition("__")[0]: json.loads(path.read_text())["about"]
        for path in (results_dir / "cells").iterdir()
    }
    assert said["rule"]["rule_path"] == "../../runs/a/rule"
    assert "rule_path" not in said["policy_gradient"]
