"""`metarl rules ship`: a folder with all that is on record, of one rule, repeatable."""

from __future__ import annotations

import csv
import json
import shlex
import struct
from pathlib import Path

import pytest
import yaml
from report_runs import row
from tiny_ship import store_cells, write_rule, write_shippable_run

from metarl import cli, config_loader
from metarl.config import TrainConfig
from metarl.errors import UserError
from metarl.rule_files import Parent, load_rule
from metarl.shipping import ship_rule
from metarl.shipping.card import MARK, NO_LIMITS
from metarl.shipping.record import MachineTime, machine_time


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that is done and did not validate, begun on a known machine."""
    folder = write_shippable_run(
        tmp_path / "run", seed=7, tracking="{project: mine, log_every: 10}"
    )
    machine = {"system": "x", "processor": "A Chip", "cores": "2 cores"}
    versions = {"machine": machine, "modified": True}
    (folder / "versions.json").write_text(json.dumps(versions))
    return folder


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    """Where it ships to."""
    return tmp_path / "checkpoints" / "tiny_lpg"


@pytest.fixture
def results(tmp_path: Path, run: Path) -> Path:
    """Three seeds of the rule, of the one it began as, and of actor_critic."""
    folder = tmp_path / "evaluated"
    steps = "env_steps=2000"
    store_cells(folder, run, [0.8, 0.9, 1.0], steps, suite="catch_5x5")
    start = run / "initial_rule"
    store_cells(folder, start, [-0.5, -0.6, -0.7], steps, suite="catch_5x5")
    store_cells(folder, "actor_critic", [0.0, 0.1, 0.2], steps, suite="catch_5x5")
    return folder


def facts(card: str) -> dict[str, str]:
    """Return the two columns of the card's first table."""
    rows = [
        line.strip("| ").split(" | ") for line in card.splitlines() if " | " in line
    ]
    return {cells[0]: cells[1] for cells in rows if len(cells) == 2}


def text_of(folder: Path) -> str:
    return (folder / "README.md").read_text()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- What is in the folder --------------------------------------------------------


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


# --- Which rule -------------------------------------------------------------------


@pytest.fixture
def validated(tmp_path: Path) -> Path:
    """A run that was best at meta-step 10, by what its metrics say."""
    scores = {10: 0.6, 20: 0.4}
    rows = [
        row(
            step,
            **{
                "charts/SPS": 10.0,
                "eval/iqm": iqm,
                "eval/iqm_lo": iqm - 0.1,
                "eval/iqm_hi": iqm + 0.1,
                "eval/FrozenLake-v1/episodic_return": iqm,
                "stats/validation_time": 30.0,
            },
        )
        for step, iqm in scores.items()
    ]
    validation = "{every: 10, games: [FrozenLake-v1]}"
    run = write_shippable_run(tmp_path / "run", rows, validation=validation)
    games = ("FrozenLake-v1",)
    best = run / "rule_best"
    write_rule(best, run, value=0.3, meta_steps=10, games_validation=games)
    return run


def test_the_best_by_validation_ships(validated: Path, shipped: Path) -> None:
    ship_rule(validated, shipped)
    arrays = (shipped / "rule.npz").read_bytes()
    assert arrays == (validated / "rule_best" / "rule.npz").read_bytes()
    card = text_of(shipped)
    told = facts(card)
    assert told["which rule of its run"] == (
        "the best by its 2 validations (meta-step 10 of 20)"
    )
    assert told["games for validation"] == "FrozenLake-v1"
    assert told["machine time"].startswith(
        "1m20s of meta-training and 1m00s of validations, for the whole run, by"
    )
    assert "judge it on held-out games" in card
    with (shipped / "curves.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(r["eval/iqm"]) for r in rows] == [0.6, 0.4]
    assert [float(r["eval/iqm_hi"]) for r in rows] == [0.7, 0.5]


def test_another_rule_of_the_run_ships_where_it_is_named(
    validated: Path, shipped: Path
) -> None:
    ship_rule(validated / "rule", shipped)
    arrays = (shipped / "rule.npz").read_bytes()
    assert arrays == (validated / "rule" / "rule.npz").read_bytes()
    card = text_of(shipped)
    assert facts(card)["which rule of its run"] == (
        "the one that the author named (meta-step 20 of 20)"
    )
    assert "metarl rules ship runs/tiny_lpg/RULE -o" in card


def test_an_unfinished_run_says_so(run: Path, shipped: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(config | {"meta_steps": 50}))
    ship_rule(run, shipped)
    told = facts(text_of(shipped))["which rule of its run"]
    assert told.endswith("; the run was planned for 50 meta-steps")


def test_a_finetuned_rule_is_not_called_discovered(run: Path, shipped: Path) -> None:
    parents = (Parent(name="disco103", sha256="ab" * 32),)
    write_rule(run / "rule", run, value=0.2, meta_steps=20, parents=parents)
    ship_rule(run, shipped)
    card = text_of(shipped)
    assert "finetuned on Catch-v0 (height 5, width 5) from disco103 (sha256 ab" in card
    assert "random meta-parameters" not in card
    assert ", discovered" not in card


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


# --- Again, and not over something else -------------------------------------------


def test_again_gives_the_same_bytes(run: Path, shipped: Path, results: Path) -> None:
    notes = run.parent / "limits.md"
    notes.write_text("Continuous actions, $pixels$ | tables.\n")
    assert ship_rule(run, shipped, results=[results], notes=notes) == []
    first = contents(shipped)
    assert "notes.md" in first
    limits = "## What it is not good for\n\nContinuous actions, $pixels$ | tables.\n\n"
    assert limits in text_of(shipped)
    # What the author said stays, and needs not be said again.
    assert ship_rule(run, shipped, results=[results]) == []
    assert contents(shipped) == first
    # Without results there are no scores, old ones neither.
    assert len(ship_rule(run, shipped)) == 1
    assert set(first) - set(contents(shipped)) == {"scores.csv"}


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        ("another", "tiny_lpg holds another rule; name a new folder"),
        ("by hand", "README.md was not written by this command; move what it says"),
        ("foreign", r"holds more than a rule \('thesis.tex'\)"),
    ],
)
def test_nothing_else_is_overwritten(
    run: Path, shipped: Path, spoil: str, line: str
) -> None:
    ship_rule(run, shipped)
    if spoil == "another":
        write_rule(run / "rule", run, value=0.7, meta_steps=30)
    elif spoil == "by hand":
        (shipped / "README.md").write_text("# My rule\n")
    else:
        (shipped / "thesis.tex").write_text("x")
    before = contents(shipped)
    with pytest.raises(UserError, match=line):
        ship_rule(run, shipped)
    assert contents(shipped) == before


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("{run} -o {out}/ppo", "'ppo' means something else"),
        ("{run} -o {out}/a.yaml", "'a.yaml' means something else"),
        ("{run} -o '{out}/my rule'", "'my rule' is no name for a rule"),
        ("{run}/checkpoints -o {out}/x", "there is no such folder"),
        ("{out} -o {out}/x", "not a run (allowed: the folder of a run"),
        ("{run} -o {out}/x --notes {out}/none.md", "No such file or directory"),
        ("{run} -o {out}/x --notes {out}/empty.md", "is empty; leave it out"),
        ("{run} -o {out}/x --results {out}", "holds no finished cell"),
        ("{run} -o {out}/x --results {other}", "none of its cells is of this rule"),
        ("{run}", "-o/--output"),
    ],
)
def test_mistakes_are_one_line(
    capsys: pytest.CaptureFixture[str], run: Path, tmp_path: Path, words: str, line: str
) -> None:
    out, other = tmp_path / "out", tmp_path / "other"
    out.mkdir()
    (out / "empty.md").write_text("\n")
    store_cells(other, "random", [0.0], suite="catch_5x5")
    given = shlex.split(words.format(run=run, out=out, other=other))
    assert cli.main(["rules", "ship", *given]) == 2
    error = capsys.readouterr().err
    assert line in error
    assert error.count("\n") == 1
    assert sorted(path.name for path in out.iterdir()) == ["empty.md"]


def test_the_command(
    capsys: pytest.CaptureFixture[str], run: Path, shipped: Path, results: Path
) -> None:
    words = [str(run), "-o", str(shipped), "--results", str(results)]
    assert cli.main(["rules", "ship", *words]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"wrote {shipped}"
    assert said[1].startswith(f"warning: the card says '{NO_LIMITS}'")
    assert len(said) == 2


def test_a_rule_that_ships_is_no_run_to_go_on_with(
    capsys: pytest.CaptureFixture[str], run: Path, shipped: Path
) -> None:
    ship_rule(run, shipped)
    before = contents(shipped)
    assert cli.main(["train", "--resume", str(shipped)]) == 2
    assert "a rule that ships, not a run" in capsys.readouterr().err
    assert contents(shipped) == before
