"""`metarl rules ship`: a folder with all that is on record of a rule."""

from __future__ import annotations

import csv
import struct
from pathlib import Path

import pytest
from report_runs import row
from shipped_folder import contents, facts, text_of
from tiny_ship import store_cells, write_rule, write_shippable_run

from metarl import config_loader
from metarl.config import TrainConfig
from metarl.rule_files import load_rule
from metarl.shipping import ship_rule
from metarl.shipping.card import MARK, NO_LIMITS
from metarl.shipping.record import MachineTime, machine_time


def test_it_holds_the_rule_as_the_run_wrote_it(run: Path, shipped: Path) -> None:
    missing = ship_rule(run, shipped)
    assert set(contents(shipped)) == {
        *("rule.npz", "manifest.json", "README.md"),
        *("config.yaml", "curves.png", "curves.csv"),
    }
    for name in ("rule.npz", "manifest.json"):
        assert (shipped / name).read_bytes() == (run / "rule" / name).read_bytes()
    assert load_rule(shipped).name == "tiny_lpg"
    assert len(missing) == 2
    assert "--notes" in missing[0]
    assert "--results" in missing[1]


def test_its_configuration_is_the_runs_without_folder_and_account(
    run: Path, shipped: Path
) -> None:
    ship_rule(run, shipped)
    theirs, ours = (
        config_loader.load(TrainConfig, [folder / "config.yaml"])
        for folder in (run, shipped)
    )
    assert (theirs.run_dir, theirs.tracking.project) == (run, "mine")
    assert (ours.run_dir, ours.tracking.project) == (None, "metarl")
    update = {"run_dir": theirs.run_dir, "tracking": theirs.tracking}
    assert ours.model_copy(update=update) == theirs
    assert ours.tracking.log_every == 10


def test_the_numbers_of_the_figure(run: Path, shipped: Path) -> None:
    ship_rule(run, shipped)
    with (shipped / "curves.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["meta_step", "global_step", "agents/Catch-v0/episodic_return", "meta/loss"],
        ["10", "400", "-0.5", "0.1"],
        ["20", "800", "0.5", "0.05"],
    ]
    png = (shipped / "curves.png").read_bytes()
    width, height = struct.unpack(">II", png[16:24])
    assert (width, height) == (1760, 520)
    assert b"Software" not in png


def test_the_card_tells_what_is_on_record(run: Path, shipped: Path) -> None:
    ship_rule(run, shipped)
    card = text_of(shipped)
    told = facts(card)
    manifest = load_rule(shipped).manifest
    assert card.startswith(f"{MARK}\n\n# tiny_lpg\n")
    start = "An update rule of kind `lpg` (Learned Policy Gradient, Oh et al. 2020), "
    board = "discovered on Catch-v0 (height 5, width 5) from random meta-parameters."
    assert start + board in card
    assert told["sha256 of `rule.npz`"] == f"`{manifest.sha256}`"
    assert told["meta-parameters"] == str(manifest.num_parameters)
    assert told["meta-steps"] == "20"
    assert told["environment steps"] == "800"
    assert told["seed"] == "7"
    assert told["games seen"] == "Catch-v0"
    assert told["games for validation"] == "none"
    # 400 steps at 10 and 400 at 20 per second.
    assert told["machine time"].startswith("1m00s of meta-training, by")
    assert told["machine"] == "A Chip, 2 cores"
    assert told["commit"].endswith("with changes that were not committed")
    assert told["which rule of its run"] == (
        "the newest (meta-step 20 of 20); the run did not validate"
    )
    assert "metarl train checkpoints/tiny_lpg/config.yaml run_dir=runs/tiny_lpg" in card
    assert "metarl rules ship runs/tiny_lpg -o checkpoints/tiny_lpg\n" in card
    assert f"## What it is not good for\n\n{NO_LIMITS}\n" in card
    assert "No results were given." in card
    assert str(run.parent) not in card


def test_scores_are_those_of_the_cells(run: Path, shipped: Path, results: Path) -> None:
    missing = ship_rule(run, shipped, results=[results])
    assert len(missing) == 1
    card = text_of(shipped)
    (line,) = (x for x in card.splitlines() if x.startswith("| Catch-v0 (height 5"))
    cells = line.strip("| ").split(" | ")
    columns = next(x for x in card.splitlines() if x.startswith("| game |"))
    found = dict(zip(columns.strip("| ").split(" | "), cells, strict=True))
    assert found["status"] == "seen"
    assert found["seeds"] == "3"
    assert found["env steps"] == "1,000"
    assert found["tiny_lpg"].startswith("0.90 [0.8")
    assert found["at meta-step 0"].startswith("−0.600 [−0.")
    assert found["actor_critic"].startswith("0.100 [0.")
    assert (
        "metarl evaluate tiny_lpg runs/tiny_lpg/initial_rule actor_critic "
        "--suite catch_5x5 env_steps=2000 \\\n    results_dir=results/tiny_lpg\n"
        in card
    )
    assert "9 cells of commit 0123456789ab, device cpu" in card
    assert "-o checkpoints/tiny_lpg --results results/tiny_lpg\n" in card
    with (shipped / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 9
    own = [float(r["mean_return"]) for r in rows if r["rule"] == "tiny_lpg"]
    assert own == pytest.approx([0.8, 0.9, 1.0])


def test_several_results_and_what_can_be_aggregated(
    run: Path, shipped: Path, results: Path, tmp_path: Path
) -> None:
    games = "environment.games=[Catch-v0, FrozenLake-v1]"
    more = tmp_path / "more"
    store_cells(more, run, [0.5, 0.6], games, "env_steps=2000")
    store_cells(more, "random", [0.0, 0.01], games, "env_steps=2000")
    ship_rule(run, shipped, results=[results, more])
    card = text_of(shipped)
    lines = {x.split(" | ")[0].strip("| "): x for x in card.splitlines()}
    assert "| held out | 2 |" in lines["FrozenLake-v1"]
    assert "| seen | 2 |" in lines["Catch-v0"]
    assert "results_dir=results/tiny_lpg_2\n" in card
    assert "--results results/tiny_lpg --results results/tiny_lpg_2\n" in card


def test_a_rule_that_is_gone_has_no_command(
    run: Path, shipped: Path, results: Path
) -> None:
    other = run.parent / "other"
    write_rule(other, run, value=0.9, meta_steps=3)
    store_cells(results, other, [0.1] * 3, "env_steps=2000", suite="catch_5x5")
    ship_rule(run, shipped, results=[results])
    assert "No command is known for all cells of other: the rule" in text_of(shipped)
    # A cell says where its rule was; there, it is looked for.
    for path in (results / "cells").glob("other__*"):
        path.unlink()
    about = {"suite": "catch_5x5", "rule_path": "../other"}
    store_cells(results, other, [0.1] * 3, "env_steps=2000", **about)
    ship_rule(run, shipped, results=[results])
    assert "No command" not in text_of(shipped)
    assert " rules/other " in text_of(shipped)


def test_machine_time_spans_resumes() -> None:
    rows = [
        {"global_step": 100.0, "charts/SPS": 10.0},
        # Resumed at step 150: the 100 steps since the row before at its speed.
        {"global_step": 200.0, "charts/SPS": 5.0, "stats/validation_time": 7.0},
        # A validation's own row, and a speed that was not finite.
        {"global_step": 200.0, "stats/validation_time": 3.0},
        {"global_step": 300.0, "charts/SPS": None},
        {"global_step": 400.0, "charts/SPS": 20.0},
    ]
    assert machine_time(rows) == MachineTime(10.0 + 20.0 + 10.0, 10.0)


def test_many_games_are_all_in_the_csv(tmp_path: Path, shipped: Path) -> None:
    names = [f"agents/Game{i:02d}-v5/episodic_return" for i in range(12)]
    rows = [row(step, **dict.fromkeys(names, 1.0)) for step in (10, 20)]
    ship_rule(write_shippable_run(tmp_path / "run", rows), shipped)
    assert "the first 10 games, all others are in the CSV" in text_of(shipped)
    with (shipped / "curves.csv").open(newline="") as file:
        assert set(names) <= set(next(csv.reader(file)))
