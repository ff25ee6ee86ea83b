"""Validation while meta-training: what it finds, and what it and a stop leave alone."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny_run

import metarl
from metarl import config_loader, tracking, train, validation
from metarl.config import TrainConfig
from metarl.errors import UserError
from metarl.evaluation.results import Result
from metarl.evaluation.runner import BatchRun
from metarl.run_folder import RunFolder

# Rules and agents move so far in few steps that no two rules score the same.
ON = (
    "meta_steps=5",
    "checkpoint.every=100",
    "meta.optimizer.learning_rate=0.1",
    "validation={every: 2, suite: catch_5x5, seeds: [1, 2], env_steps: 400, "
    "allow_seen: true, overrides: [agent.optimizer.learning_rate=0.3]}",
)
STEPS = (2, 4, 5)


@pytest.fixture(autouse=True, scope="module")
def _no_wandb() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "disabled")
        yield


def run(folder: Path, *overrides: str) -> int:
    return train.main(tiny_run.config(folder, *ON, *overrides))


def resume(folder: Path, *overrides: str) -> int:
    return train.main(tiny_run.resumed(folder, *overrides), resume=folder)


def rows(folder: Path) -> list[dict[str, float]]:
    """Return the metrics but for times."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if k[:6] not in ("stats/", "charts")}
        for line in lines
    ]


def is_eval(row: dict[str, float]) -> bool:
    return any(key.startswith("eval/") for key in row)


def arrays(rule: Path) -> dict[str, np.ndarray]:
    with np.load(rule / "rule.npz") as file:
        return dict(file)


def place(folder: Path, step: int) -> Path:
    return folder / "validation" / f"meta_step_{step:06d}"


def cells(folder: Path, step: int) -> list[dict]:
    files = sorted((place(folder, step) / "cells").glob("*.json"))
    return [json.loads(file.read_text()) for file in files]


def assert_same_run(one: Path, other: Path) -> None:
    assert rows(one) == rows(other)
    for name in ("rule", "rule_best"):
        first, second = arrays(one / name), arrays(other / name)
        assert first.keys() == second.keys()
        for key, value in first.items():
            np.testing.assert_array_equal(value, second[key], err_msg=key)
        manifests = [metarl.load_rule(run / name).manifest for run in (one, other)]
        assert manifests[0] == manifests[1]
    for step in STEPS:
        curves = [[c["curve"] for c in cells(run, step)] for run in (one, other)]
        assert curves[0] == curves[1]
        assert curves[0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 5 meta-steps, validated after 2, 4 and 5."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert run(folder) == 0
    return folder


def test_scores_are_those_of_the_cells(whole: Path) -> None:
    found = [row for row in rows(whole) if is_eval(row)]
    assert tuple(row["meta_step"] for row in found) == STEPS
    for row in found:
        results = [cell["result"] for cell in cells(whole, row["meta_step"])]
        assert [(r["game"], r["seed"], r["status"]) for r in results] == [
            ("Catch-v0", 1, "seen"),
            ("Catch-v0", 2, "seen"),
        ]
        returns = [r["mean_return"] for r in results]
        assert row["eval/Catch-v0/episodic_return"] == pytest.approx(np.mean(returns))
        # Of two runs none is left out; resampled, their mean is between the two.
        assert row["eval/iqm"] == pytest.approx(np.mean(returns))
        assert row["eval/iqm_lo"] == pytest.approx(min(returns))
        assert row["eval/iqm_hi"] == pytest.approx(max(returns))
        training = [r for r in rows(whole) if not is_eval(r)]
        at_step = {r["meta_step"]: r["global_step"] for r in training}
        assert row["global_step"] == at_step[row["meta_step"]]


def test_agents_are_those_that_evaluate_would_train(whole: Path) -> None:
    (cell, _) = cells(whole, 2)
    settings, config = cell["settings"], tiny_run.resumed(whole)
    agent = config.agent.model_dump(mode="json")
    agent["optimizer"]["learning_rate"] = 0.3
    assert settings["agent"] == agent
    assert settings["rollout_length"] == 5
    assert settings["environment"]["num_envs"] == 4
    assert settings["env_steps"] == 400
    assert settings["rule_sha256"] == metarl.load_rule(place(whole, 2)).manifest.sha256


def test_the_best_rule_is_the_one_that_scored_best(whole: Path) -> None:
    scores = {row["meta_step"]: row["eval/iqm"] for row in rows(whole) if is_eval(row)}
    best = max(STEPS, key=lambda step: scores[step])
    assert len(set(scores.values())) == len(STEPS)
    loaded = metarl.load_rule(whole / "rule_best")
    assert (loaded.name, loaded.manifest.meta_steps) == ("whole__best", best)
    for name, value in arrays(whole / "rule_best").items():
        np.testing.assert_array_equal(value, arrays(place(whole, best) / "rule")[name])
    for rule in (loaded, metarl.load_rule(whole)):
        assert rule.manifest.games_validation == ("Catch-v0",)
        assert rule.status("Catch-v0") == "seen"
    assert metarl.load_rule(whole / "initial_rule").manifest.games_validation == ()
    assert metarl.load_rule(whole).manifest.meta_steps == 5


def test_validation_changes_nothing_of_the_training(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "off"
    assert run(folder, "validation.every=0") == 0
    assert rows(folder) == [row for row in rows(whole) if not is_eval(row)]
    for name, value in arrays(folder / "rule").items():
        np.testing.assert_array_equal(value, arrays(whole / "rule")[name])
    assert metarl.load_rule(folder).manifest.games_validation == ()
    assert not (folder / "rule_best").exists()
    assert not (folder / "validation").exists()
    assert "validation:" not in capsys.readouterr().out


class Killed(BaseException):
    """No code catches it, as none would a kill."""


def test_a_kill_within_a_validation_loses_no_cell(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "killed"
    one_by_one = (
        "validation.overrides=[agent.optimizer.learning_rate=0.3, cells_at_once=1]"
    )
    trained: list[str] = []
    real = BatchRun.run

    def die_at_the_fourth(self, *args, **kwargs):
        trained.append(self.runs[0].cell.name)
        if len(trained) == 4:
            raise Killed
        real(self, *args, **kwargs)

    monkeypatch.setattr(BatchRun, "run", die_at_the_fourth)
    with pytest.raises(Killed):
        run(folder, one_by_one)
    assert len(cells(folder, 4)) == 1
    # The checkpoint that was being written is lost, and its meta-steps are done again.
    shutil.rmtree(folder / "checkpoints" / "4")
    assert resume(folder) == 0
    in_all = ["2__seed1", "2__seed2", "4__seed1", "4__seed2"]
    in_all += ["4__seed2", "5__seed1", "5__seed2"]
    short = [name.replace("Catch-v0__", "") for name in trained]
    assert short == [f"killed__meta_step_{name}" for name in in_all]
    assert_same_run(whole, folder)


def test_told_to_stop_within_a_validation_it_goes_on_there(
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "stopped"
    rollouts: list[object] = []
    real = BatchRun._iterate

    def counted(self):
        rollouts.append(self)
        return real(self)

    monkeypatch.setattr(BatchRun, "_iterate", counted)
    config = tiny_run.config(folder, *ON)
    with train.TrainingRun(config, RunFolder.create(config)) as begun:
        begun.begin()
        assert begun.run(lambda: len(rollouts) >= 2) == 75
    assert len(rollouts) == 2
    said = capsys.readouterr().out
    assert "stopped: 0 of 2 cells of the validation done" in said
    assert f"metarl train --resume {folder}" in said
    assert [row["meta_step"] for row in rows(folder)] == [1, 2]
    assert not (folder / "rule_best").exists()
    assert resume(folder) == 0
    assert_same_run(whole, folder)


def test_a_kill_before_the_score_is_stored_leaves_no_row_twice(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "killed"
    store = validation.Validation.store

    def die_at_the_last(self, score):
        if score.meta_step == 5:
            raise Killed
        store(self, score)

    monkeypatch.setattr(validation.Validation, "store", die_at_the_last)
    with pytest.raises(Killed):
        run(folder)
    monkeypatch.undo()
    assert resume(folder) == 0
    assert_same_run(whole, folder)


def test_a_run_that_lost_checkpoints_comes_to_the_same(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "whole"  # its name is in those of the cells
    shutil.copytree(whole, folder)
    for step in (4, 5):
        shutil.rmtree(folder / "checkpoints" / str(step), ignore_errors=True)
    (folder / "config.yaml").write_text(
        (whole / "config.yaml").read_text().replace(str(whole), str(folder))
    )

    def never(*_: object) -> None:
        raise AssertionError("a cell was trained again")

    monkeypatch.setattr(BatchRun, "run", never)
    assert resume(folder) == 0
    assert_same_run(whole, folder)


def test_a_finished_run_has_nothing_to_do(
    whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (whole / "metrics.jsonl").read_bytes()
    assert resume(whole) == 0
    assert "finished already" in capsys.readouterr().out
    assert (whole / "metrics.jsonl").read_bytes() == before


def test_what_it_costs_and_where_the_best_rule_is_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert run(folder, "meta_steps=1") == 0
    said = capsys.readouterr().out
    assert (
        "validation: every 2 meta-steps and after the last, 2 fresh agents on "
        "Catch-v0, 800 env steps in all, by raw returns; 1 to come, 800 env steps"
    ) in said
    assert f"metarl evaluate {folder / 'rule_best'} --suite SUITE" in said


def test_a_validation_that_fails_is_a_line_and_meta_training_goes_on(
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "whole"
    real = validation.evaluation.evaluate
    called: list[object] = []

    def evaluate(*args, **kwargs):
        called.append(args)
        if len(called) == 1:
            raise RuntimeError("the emulator\nbroke")
        found = real(*args, **kwargs)
        if len(called) == 2:
            return [found[0], dataclasses.replace(found[1], mean_return=float("nan"))]
        return found

    monkeypatch.setattr(validation.evaluation, "evaluate", evaluate)
    assert run(folder) == 0
    training = [[r for r in rows(f) if "meta/grad_norm" in r] for f in (folder, whole)]
    assert training[0] == training[1]
    assert len(training[0]) == 5
    said = [x for x in capsys.readouterr().out.splitlines() if "has no score" in x]
    assert said == [
        "warning: validation at meta_step=2 has no score: it failed (RuntimeError: the "
        "emulator broke)",
        "warning: validation at meta_step=4 has no score: the agent of Catch-v0, seed "
        "2, has the mean return nan",
    ]
    trace = (place(folder, 2) / "failure.txt").read_text()
    assert trace.splitlines()[-2:] == ["RuntimeError: the emulator", "broke"]
    assert metarl.load_rule(folder / "rule_best").manifest.meta_steps == 5
    assert [r["meta_step"] for r in rows(folder) if "eval/iqm" in r] == [5]
    monkeypatch.setattr(validation.evaluation, "evaluate", None)
    assert resume(folder) == 0  # it is over


def test_other_settings_make_a_new_best(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "whole"
    shutil.copytree(whole, folder)
    score = place(folder, 2) / "score.json"
    stored = json.loads(score.read_text())
    # As good as can be: no other rule would be better by the same settings.
    score.write_text(json.dumps({**stored, "iqm": 1.0}))
    assert resume(folder, "meta_steps=6") == 0
    assert metarl.load_rule(folder / "rule_best").manifest.meta_steps == 2
    assert resume(folder, "meta_steps=8", "validation.seeds=[3]") == 0
    assert metarl.load_rule(folder / "rule_best").manifest.meta_steps in (6, 8)
    found = [row["meta_step"] for row in rows(folder) if is_eval(row)]
    assert found == [*STEPS, 6, 8]


def test_games_that_scored_the_rule_once_stay_in_its_manifest(
    whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "whole"
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "validation")
    assert resume(folder, "meta_steps=6", "validation.every=0") == 0
    assert metarl.load_rule(folder).manifest.meta_steps == 6
    assert metarl.load_rule(folder).manifest.games_validation == ("Catch-v0",)
    assert not place(folder, 6).exists()


def test_a_validation_has_no_wandb_runs_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setattr(
        tracking.Tracker, "_init", lambda self, *_: opened.append(self._labels.name)
    )
    assert run(tmp_path / "run", "meta_steps=1") == 0
    assert set(opened) == {"run"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["validation.allow_seen=false"], "the rule sees Catch-v0 in meta-training"),
        (["validation.suite=null"], "one of suite and games is needed, neither"),
        (["validation.suite=catsh"], "validation.suite: unknown suite 'catsh'"),
        (["validation.games=[Pongg]"], "validation.games: unknown game 'Pongg'"),
        (
            ["validation.games=[Pong, AirRaid]"],
            "no common scale is known for the returns of Pong-v5 and AirRaid-v5",
        ),
        (["validation.seeds=[1, 1]"], r"validation: seeds: \[1, 1\]"),
        (
            ["validation.overrides=[seeds=7]"],
            "validation.overrides: 'seeds=7' is not for them",
        ),
        (["validation.overrides=[nonsense=7]"], "validation: nonsense=7: unknown key"),
        (
            ["validation.suite=cartpole"],
            "validation.env_steps: 400 is less than what the first update",
        ),
    ],
)
def test_what_cannot_validate_leaves_no_run(
    tmp_path: Path, changes: list[str], said: str
) -> None:
    folder, stored = tmp_path / "run", tmp_path / "stored.yaml"
    stored.write_text(config_loader.dump(tiny_run.config(folder, *ON)))
    changed = config_loader.load(TrainConfig, [stored], changes)
    with pytest.raises(UserError, match=said):
        train.main(changed)
    assert not folder.exists()


def result(game: str, seed: int, mean: float | None) -> Result:
    return Result("r", game, "validation", seed, 1, 60, 9, mean, None)


def test_score_rows_by_hand() -> None:
    # Random and human players: -20.7 and 14.6 at Pong, 163.9 and 13,455.0 at Qbert.
    published = [
        result("Pong-v5", 1, -20.7 + 0.1 * 35.3),
        result("Pong-v5", 2, -20.7 + 0.5 * 35.3),
        result("Qbert-v5", 1, 163.9 + 0.2 * 13291.1),
        result("Qbert-v5", 2, 163.9 + 0.7 * 13291.1),
    ]
    metrics, iqm = validation.score_rows(published)
    assert metrics["eval/Pong-v5/human_normalized_score"] == pytest.approx(0.3)
    assert metrics["eval/Qbert-v5/human_normalized_score"] == pytest.approx(0.45)
    # The lowest and the highest of the four are left out.
    assert iqm == metrics["eval/iqm"] == pytest.approx((0.2 + 0.5) / 2)
    assert metrics["eval/iqm_lo"] < iqm < metrics["eval/iqm_hi"]
    metrics, iqm = validation.score_rows([*published[:3], result("Qbert-v5", 2, None)])
    assert iqm is None
    assert metrics == {
        "eval/Pong-v5/human_normalized_score": pytest.approx(0.3),
        "eval/Qbert-v5/human_normalized_score": pytest.approx(0.2),
    }


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_return_that_is_no_number_is_no_score(value: float) -> None:
    found = [result("Catch-v0", 1, 0.5), result("Catch-v0", 2, value)]
    metrics, iqm = validation.score_rows(found)
    assert (metrics, iqm) == ({"eval/Catch-v0/episodic_return": 0.5}, None)
    assert validation.why_unscored(found) == (
        f"the agent of Catch-v0, seed 2, has the mean return {value}"
    )
    found = [result("Catch-v0", 1, None)]
    assert validation.why_unscored(found) == (
        "the agent of Catch-v0, seed 1, finished no episode (validation.env_steps is "
        "too small)"
    )


def test_scores_without_human_ones_by_hand() -> None:
    assert validation.score_rows([result("Catch-v0", 1, -0.5)]) == (
        {"eval/Catch-v0/episodic_return": -0.5, "eval/iqm": -0.5},
        -0.5,
    )
    # From the least to the highest: 3.5 to 10 at Heist, 5 to 10 at Coinrun.
    metrics, iqm = validation.score_rows(
        [result("HeistEasy-v0", 1, 5.7), result("CoinrunEasy-v0", 1, 9.5)]
    )
    assert metrics["eval/CoinrunEasy-v0/episodic_return"] == 9.5
    assert iqm == pytest.approx(((5.7 - 3.5) / 6.5 + (9.5 - 5) / 5) / 2)
    # The highest there is, 1 for both, is all that is known.
    metrics, iqm = validation.score_rows(
        [result("Catch-v0", 1, -0.5), result("FrozenLake-v1", 1, 0.25)]
    )
    assert iqm == pytest.approx(-0.125)
