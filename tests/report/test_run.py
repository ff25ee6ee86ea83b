"""Reports of training runs: finished, going on, resumed, or hardly begun."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
import tiny_run
from report_cells import ABOUT, make_cell, store
from report_runs import row, write_run

from metarl import rule_files
from metarl.errors import UserError
from metarl.report import figures, inputs, run_figures, write_report
from metarl.report.inputs import read_run
from metarl.rule_files import Manifest


def numbers(folder: Path, name: str) -> list[dict[str, str]]:
    path = folder / figures.FOLDER / f"{name}.csv"
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_shows_what_happened_meta_step_by_meta_step(tmp_path):
    write_run(tmp_path, [row(step) for step in range(1, 101)])
    (tmp_path / "versions.json").write_text(json.dumps({"commit": "abc123"}))
    page, contents = write_report([tmp_path])
    assert page == tmp_path / "report.html"
    assert [figure.name for figure in contents.figures] == [
        "meta_loss",
        "gradient_norms",
        "rule_entropy",
        "stage_times",
        "agents_Catch-v0",
    ]
    losses = numbers(tmp_path, "meta_loss")
    assert losses[3] == {"series": "meta-loss", "meta_step": "4.0", "loss": "0.25"}
    assert numbers(tmp_path, "stage_times") == [
        {"stage": "meta", "seconds": "600.0"},
        {"stage": "env", "seconds": "200.0"},
    ]
    text = page.read_text()
    assert "100 of 100" in text
    assert "abc123" in text
    assert "trajectory_lstm: 4" in text
    (metrics,) = contents.tables
    assert metrics.rows[1][:3] == ("global_step", 40, 4000)


def test_one_row_is_enough(tmp_path):
    write_run(tmp_path, [row(1)])
    page, contents = write_report([tmp_path])
    assert "1 of 100" in page.read_text()
    assert "Not finished" in page.read_text()
    assert len(contents.figures) == 5


def test_a_run_that_writes_its_next_row_is_read_up_to_it(tmp_path):
    write_run(tmp_path, [row(1), row(2)])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"meta_step": 3, "meta/lo')
    assert [r["meta_step"] for r in read_run(tmp_path).rows] == [1, 2]


def test_what_a_resumed_run_wrote_anew_counts_once(tmp_path):
    rows = [row(1), row(2), row(3), row(2, **{"meta/loss": 7.0}), row(3), row(4)]
    run = read_run(write_run(tmp_path, rows))
    x, y = run_figures.series(run, "meta/loss")
    assert x.tolist() == [1, 2, 3, 4]
    assert y.tolist() == [1.0, 7.0, 1 / 3, 0.25]


def test_what_is_not_finite_or_no_number_leaves_a_gap(tmp_path):
    rows = [
        row(1),
        row(2, **{"meta/loss": None}),
        row(3, **{"meta/loss": float("nan")}),
        row(4, **{"meta/loss": "x"}),
        row(5),
    ]
    write_run(tmp_path, rows)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write("[]\nnull\n7\n")
    x, _ = run_figures.series(read_run(tmp_path), "meta/loss")
    assert x.tolist() == [1, 5]
    write_report([tmp_path])


def test_keys_that_no_figure_knows_are_in_the_table(tmp_path):
    write_run(tmp_path, [row(1), row(2, **{"peers/weight": 0.25})])
    page, contents = write_report([tmp_path])
    assert ("peers/weight", 0.25, 0.25, 0.25, 0.25, 1) in contents.tables[0].rows
    assert "peers/weight" in page.read_text()


def test_hostile_games_and_settings_stay_text(tmp_path):
    key = "agents/<script>alert(1)</script>/episodic_return"
    write_run(tmp_path, [row(1, **{key: 1.0})], exp_name="'<img src=x onerror=y>'")
    page, _ = write_report([tmp_path])
    assert "<script>alert" not in page.read_text()
    assert "<img src=x" not in page.read_text()


def test_a_run_beside_results_says_which_rule_it_made(tmp_path):
    folder = write_run(tmp_path / "run", [row(1)])
    given = tiny_run.config(tmp_path / "x").update_rule
    loaded = rule_files.load_rule("actor_critic")
    assert given.kind == "disco"
    manifest = rule_files.save_rule(folder / "rule", {}, loaded.manifest)
    cell = make_cell("run", "Pong-v5", 1, sha256=manifest.sha256)
    store(tmp_path / "results", cell, 1.0)
    page, contents = write_report([tmp_path / "results", folder])
    assert page.parent == tmp_path / "results"
    names = [section.name for section in contents.sections]
    assert names.index("scores") < names.index("run-run") < names.index("not-run")
    assert "Its newest rule is run of this evaluation." in page.read_text()


def a_rule_of_a_run(folder, place: str, name: str, rule_path: str | None) -> None:
    """Write a run, a rule in it, and results of that rule that say where it was."""
    write_run(folder / "runs" / "mine", [row(1), row(2)])
    built_in = rule_files.load_rule("actor_critic").manifest
    manifest = rule_files.save_rule(folder / "runs" / "mine" / place, {}, built_in)
    cell = make_cell(name, "Pong-v5", 1, sha256=manifest.sha256)
    about = ABOUT if rule_path is None else {**ABOUT, "rule_path": rule_path}
    store(folder / "results", cell, 1.0, about=about)


@pytest.mark.parametrize(
    "place", ["rule", "rule_best", "validation/meta_step_000002/rule"]
)
def test_results_bring_the_run_of_their_rule(tmp_path, place):
    a_rule_of_a_run(tmp_path, place, "any", f"../runs/mine/{place}")
    page, contents = write_report([tmp_path / "results"])
    assert "run-mine" in [section.name for section in contents.sections]
    assert page.parent == tmp_path / "results"
    assert "meta_loss" in {figure.name for figure in contents.figures}
    assert "no run was found" not in page.read_text()
    # Named too, it is there once.
    _, contents = write_report([tmp_path / "results", tmp_path / "runs" / "mine"])
    assert [s.name for s in contents.sections].count("run-mine") == 1


def test_a_run_that_went_on_is_known_by_its_name(tmp_path):
    a_rule_of_a_run(tmp_path, "rule", "mine", "../runs/mine/rule")
    other = rule_files.load_rule("policy_gradient").manifest
    folder = tmp_path / "runs" / "mine" / "rule"
    manifest = rule_files.save_rule(folder, {}, other)
    text = manifest.model_copy(update={"sha256": "b" * 64}).to_json()
    (folder / "manifest.json").write_text(text)
    page, _ = write_report([tmp_path / "results"])
    said = "mine of this evaluation is this run&#x27;s rule at another time."
    assert said in page.read_text()


@pytest.mark.parametrize("rule_path", [None, "../runs/gone/rule", "../runs"])
def test_without_its_run_a_line_says_how_to_add_it(tmp_path, rule_path):
    a_rule_of_a_run(tmp_path, "rule", "any", rule_path)
    page, contents = write_report([tmp_path / "results"])
    assert not any(s.name.startswith("run-") for s in contents.sections)
    assert "How any came about is not shown: no run was found" in page.read_text()
    page, _ = write_report([tmp_path / "results", tmp_path / "runs" / "mine"])
    assert "no run was found" not in page.read_text()


def test_another_run_in_the_place_of_a_rules_run_is_not_shown(tmp_path):
    a_rule_of_a_run(tmp_path, "rule", "any", "../runs/mine/rule")
    path = tmp_path / "runs" / "mine" / "rule" / "manifest.json"
    tree = json.loads(path.read_text())
    path.write_text(json.dumps(tree | {"sha256": "b" * 64}))
    _, contents = write_report([tmp_path / "results"])
    assert "run-mine" not in [section.name for section in contents.sections]


def test_a_rule_brings_its_run_and_nothing_is_written_to_it(tmp_path):
    folder = write_run(tmp_path / "run", [row(1)])
    rule_files.save_rule(folder / "rule", {}, Manifest(config={"kind": "random"}))
    before = sorted(os.listdir(folder / "rule"))
    page, contents = write_report([folder / "rule"])
    assert page.parent.resolve() == folder.resolve()
    assert [s.name for s in contents.sections] == ["run-run", "rules"]
    assert sorted(os.listdir(folder / "rule")) == before


def test_two_runs_have_figures_of_their_own(tmp_path):
    for name in ("one", "two"):
        write_run(tmp_path / name, [row(1)])
    page, contents = write_report([tmp_path / "one", tmp_path / "two"])
    assert page.parent == tmp_path / "one"
    names = [figure.name for figure in contents.figures]
    assert len(set(names)) == len(names) == 10
    assert "two_meta_loss" in names
    assert [s.name for s in contents.sections] == ["run-one", "run-two"]


def test_smoothing_keeps_straight_lines_straight():
    line = np.arange(100.0)
    np.testing.assert_allclose(run_figures.smooth(line), line)
    noisy = line + np.resize([1.0, -1.0], 100)
    assert np.abs(run_figures.smooth(noisy) - line)[5:-5].max() < 0.3


@pytest.mark.parametrize("name", ["validation", "run"])
def test_folders_that_are_near_are_named(tmp_path, name):
    write_run(tmp_path / name, [row(1)])
    with pytest.raises(UserError, match=f"did you mean '.*{name}'"):
        inputs.read_inputs([tmp_path])
