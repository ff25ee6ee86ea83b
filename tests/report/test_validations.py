"""What a run's page says of its validations, from their cells or from the metrics."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from report_cells import make_cell, store
from report_runs import row, write_run

from metarl import rule_files
from metarl.evaluation.cell_records import (
    Result,
)
from metarl.evaluation.cells import Cell
from metarl.evaluation.results import (
    read_cells,
)
from metarl.report import figures, run_page, write_report
from metarl.report.inputs import read_inputs, read_run
from metarl.report.scores import gather
from metarl.report.validation_figures import (
    sentences,
    validation_figures,
    validation_table,
)
from metarl.rule_files import Manifest
from metarl.statistics import Estimate, Runs, interval, iqm, mean
from metarl.validation import score_rows, why_unscored

PONG = -20.7, 14.6  # random and human
SETTINGS = {"suite": None, "games": ["Pong-v5"], "seeds": [1, 2, 3], "env_steps": 1000}


def validate(
    run: Path,
    step: int,
    returns: Mapping[str, Sequence[float | None]],
    **settings: object,
) -> None:
    """Write what `metarl train` leaves of a validation."""
    place = run / "validation" / f"meta_step_{step:06d}"
    rows = []
    for game, finals in returns.items():
        for seed, final in enumerate(finals, start=1):
            cell = make_cell(f"run__meta_step_{step}", game, seed)
            store(place, cell, final)
            rows.append(dataclasses.replace(_result(place, cell), mean_return=final))
    metrics, score = score_rows(rows)
    tree = {
        "meta_step": step,
        "games": list(returns),
        "settings": {**SETTINGS, "games": list(returns), **settings},
        "metrics": metrics,
        "iqm": score,
        "failure": "" if score is not None else why_unscored(rows),
    }
    (place / "score.json").write_text(json.dumps(tree))


def _result(place: Path, cell: Cell) -> Result:
    return next(r.result for r in read_cells(place) if r.result.seed == cell.seed)


def numbers(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / figures.FOLDER / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def scores(returns: Sequence[float]) -> list[float]:
    return [(x - PONG[0]) / (PONG[1] - PONG[0]) for x in returns]


@pytest.fixture
def run(tmp_path) -> Path:
    """A run whose rule is best in its second of three validations, and kept it."""
    folder = write_run(tmp_path / "run", [row(1), row(100)], seed=7)
    for step, finals in ((10, [-19, -18, -17]), (20, [1, 2, 6]), (30, [-3, -2, 0])):
        validate(folder, step, {"Pong-v5": finals})
    manifest = Manifest(config={"kind": "random"}, meta_steps=20)
    rule_files.save_rule(folder / "rule_best", {}, manifest)
    return folder


def test_a_run_brings_its_validations_by_itself(run):
    page, contents = write_report([run])
    assert [f.name for f in contents.figures[:2]] == ["validation", "eval_Pong-v5"]
    rows = numbers(run, "validation")
    assert [r["meta_step"] for r in rows] == ["10", "20", "30"]
    assert [r["is_best"] for r in rows] == ["False", "True", "False"]
    expected = interval(iqm, Runs.of([scores([1, 2, 6])]))
    found = [float(rows[1][name]) for name in ("iqm", "low", "high")]
    assert found == pytest.approx([expected.value, expected.low, expected.high])
    games = numbers(run, "eval_Pong-v5")
    assert [float(r["value"]) for r in games[3:6]] == pytest.approx(scores([1, 2, 6]))
    of_game = interval(mean, Runs.of([scores([1, 2, 6])]))
    assert float(games[4]["low"]) == pytest.approx(of_game.low)
    text = page.read_text()
    assert "Best of 3 validations: meta-step 20, with an IQM of 0.671 [" in text
    assert "rule_best is the rule of meta-step 20." in text
    assert "1 game (Pong-v5), 3 seeds each, 1,000 environment steps per agent" in text
    assert "IQM of fresh agents (1 game, 3 seeds each)" in text


def test_the_table_marks_the_best_and_the_kept_one(run):
    found = read_run(run).validations
    assert found is not None
    table = validation_table(found)
    assert [r[-1] for r in table.rows] == ["", "best, kept as rule_best", ""]
    assert [r[0] for r in table.rows] == [10, 20, 30]
    other = dataclasses.replace(found, kept=10)
    assert "meta-step 10, which is not the best of these." in " ".join(sentences(other))


def test_the_earliest_of_equal_ones_is_the_best(run):
    validate(run, 40, {"Pong-v5": [1, 2, 6]})
    found = read_run(run).validations
    assert found is not None
    assert found.best is not None
    assert found.best.meta_step == 20


def test_what_does_not_compare_with_the_newest_is_told_and_not_drawn(run):
    validate(run, 40, {"Pong-v5": [0, 0]}, seeds=[1, 2])
    found = read_run(run).validations
    assert found is not None
    assert [point.meta_step for point in found.points] == [40]
    assert found.others == 3
    assert "3 earlier validations with other settings" in " ".join(sentences(found))


def test_agents_without_an_episode_leave_a_gap(run):
    validate(run, 40, {"Pong-v5": [5, 5, None]})
    cell = make_cell("run__meta_step_50", "Pong-v5", 1)
    store(run / "validation" / "meta_step_000050", cell, 1.0)
    found = read_run(run).validations
    assert found is not None
    said = " ".join(sentences(found))
    assert "No IQM at meta-step 40: " in said
    assert "finished no episode (validation.env_steps is too small)." in said
    assert "Not finished: the validation at 50." in said
    whole, game = validation_figures(found)
    assert [values[0] for values in whole.rows] == [10, 20, 30]
    assert validation_table(found).rows[3][1] is None
    # Two seeds are there, and no third.
    assert [values[1] for values in game.rows].count(40) == 2


def test_returns_on_one_scale_of_their_own_are_raw(tmp_path):
    folder = write_run(tmp_path, [row(1)])
    validate(folder, 10, {"Catch-v0": [-0.5, 0.5, 1.0]})
    found = read_run(folder).validations
    assert found is not None
    assert found.unit == found.game_unit == "raw return"
    assert found.points[0].games == {"Catch-v0": (-0.5, 0.5, 1.0)}
    assert "The run has no rule_best." in sentences(found)


def test_where_the_folder_is_gone_the_metrics_remain(tmp_path):
    logged = {"eval/iqm": 0.4, "eval/iqm_lo": 0.3, "eval/iqm_hi": 0.5}
    logged["eval/Pong-v5/human_normalized_score"] = 0.2
    write_run(tmp_path, [row(1), row(10), {"meta_step": 10, **logged}])
    found = read_run(tmp_path).validations
    assert found is not None
    (point,) = found.points
    assert point.iqm == Estimate(0.4, 0.3, 0.5)
    assert found.unit == "score (0 = random, 1 = human)"
    assert not found.has_seeds
    _, game = validation_figures(found)
    assert game.rows == (("Pong-v5", 10, 0.2, 0.2, None, None),)


def test_a_run_without_validations_says_nothing_of_them(tmp_path):
    folder = write_run(tmp_path, [{"meta_step": 1, "meta/loss": 1.0}])
    assert read_run(folder).validations is None
    contents = run_page.run_section(read_run(folder), None, is_only=True)
    assert "alidation: fresh" not in contents.sections[0].content


@pytest.mark.parametrize(
    "text", ["{}", "", "[1]", '{"meta_step": 10, "games": [], "metrics": 3}']
)
def test_a_broken_score_is_a_line_on_the_page(run, text):
    broken = run / "validation" / "meta_step_000010" / "score.json"
    broken.write_text(text)
    page, contents = write_report([run])
    said = f"Left out: {broken} is not a validation&#x27;s score."
    assert said.replace("&#x27;", "'") in page.read_text().replace("&#x27;", "'")
    # The others are shown as they were.
    assert [r["meta_step"] for r in numbers(run, "validation")] == ["20", "30"]
    assert contents.figures[0].name == "validation"


def test_a_score_that_is_no_number_is_broken(run):
    place = run / "validation" / "meta_step_000020" / "score.json"
    tree = json.loads(place.read_text())
    tree["metrics"]["eval/iqm"] = "high"
    place.write_text(json.dumps(tree))
    found = read_run(run).validations
    assert found is not None
    assert found.damaged == (f"{place} is not a validation's score",)
    assert [point.meta_step for point in found.points] == [10, 30]


def test_a_broken_cell_takes_its_validation_with_it(run):
    cell = next((run / "validation" / "meta_step_000030" / "cells").glob("*.json"))
    cell.write_text("{")
    found = read_run(run).validations
    assert found is not None
    assert [point.meta_step for point in found.points] == [10, 20]
    (said,) = found.damaged
    assert str(cell) in said
    assert "\n" not in said


def test_where_all_scores_are_broken_the_page_names_them(tmp_path):
    folder = write_run(tmp_path, [row(1)])
    for step in (10, 20):
        validate(folder, step, {"Pong-v5": [1, 2, 3]})
        path = folder / "validation" / f"meta_step_{step:06d}" / "score.json"
        path.write_text("{")
    found = read_run(folder).validations
    assert found is not None
    assert found.points == ()
    assert len(sentences(found)) == 2
    text = write_report([folder])[0].read_text()
    assert "meta_step_000010/score.json is not a validation" in text
    assert "meta_step_000020/score.json is not a validation" in text


def test_the_rule_best_of_a_run_is_found_in_results(tmp_path):
    folder = write_run(tmp_path / "run", [{"meta_step": 1, "meta/loss": 1.0}])
    given = Manifest(config={"kind": "random"})
    sha256 = rule_files.save_rule(folder / "rule_best", {}, given).sha256
    store(tmp_path / "results", make_cell("best", "Pong-v5", 1, sha256=sha256), 1.0)
    inputs = read_inputs([tmp_path / "results", folder])
    evaluation = gather(inputs.records, None)
    contents = run_page.run_section(inputs.runs[0], evaluation, is_only=True)
    said = contents.sections[0].content
    assert "Its rule_best is best of this evaluation." in said
