"""Validation while meta-training: what it finds, and what cannot validate."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny_run
from validated_runs import ON, STEPS, arrays, cells, is_eval, place, resume, rows, run

import metarl
from metarl import config_loader, tracking, train, validation
from metarl.config import TrainConfig
from metarl.errors import UserError

pytestmark = pytest.mark.usefixtures("no_wandb")


def test_scores_are_those_of_the_cells(validated: Path) -> None:
    found = [row for row in rows(validated) if is_eval(row)]
    assert tuple(row["meta_step"] for row in found) == STEPS
    for row in found:
        results = [cell["result"] for cell in cells(validated, row["meta_step"])]
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
        training = [r for r in rows(validated) if not is_eval(r)]
        at_step = {r["meta_step"]: r["global_step"] for r in training}
        assert row["global_step"] == at_step[row["meta_step"]]


def test_agents_are_those_that_evaluate_would_train(validated: Path) -> None:
    (cell, _) = cells(validated, 2)
    settings, config = cell["settings"], tiny_run.resumed(validated)
    agent = config.agent.model_dump(mode="json")
    agent["optimizer"]["learning_rate"] = 0.3
    assert settings["agent"] == agent
    assert settings["rollout_length"] == 5
    assert settings["environment"]["num_envs"] == 4
    assert settings["env_steps"] == 400
    assert (
        settings["rule_sha256"] == metarl.load_rule(place(validated, 2)).manifest.sha256
    )


def test_the_best_rule_is_the_one_that_scored_best(validated: Path) -> None:
    scores = {
        row["meta_step"]: row["eval/iqm"] for row in rows(validated) if is_eval(row)
    }
    best = max(STEPS, key=lambda step: scores[step])
    assert len(set(scores.values())) == len(STEPS)
    loaded = metarl.load_rule(validated / "rule_best")
    assert (loaded.name, loaded.manifest.meta_steps) == ("whole__best", best)
    for name, value in arrays(validated / "rule_best").items():
        np.testing.assert_array_equal(
            value, arrays(place(validated, best) / "rule")[name]
        )
    for rule in (loaded, metarl.load_rule(validated)):
        assert rule.manifest.games_validation == ("Catch-v0",)
        assert rule.status("Catch-v0") == "seen"
    assert metarl.load_rule(validated / "initial_rule").manifest.games_validation == ()
    assert metarl.load_rule(validated).manifest.meta_steps == 5


def test_validation_changes_nothing_of_the_training(
    validated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "off"
    assert run(folder, "validation.every=0") == 0
    assert rows(folder) == [row for row in rows(validated) if not is_eval(row)]
    for name, value in arrays(folder / "rule").items():
        np.testing.assert_array_equal(value, arrays(validated / "rule")[name])
    assert metarl.load_rule(folder).manifest.games_validation == ()
    assert not (folder / "rule_best").exists()
    assert not (folder / "validation").exists()
    assert "validation:" not in capsys.readouterr().out


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
    validated: Path,
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
    training = [
        [r for r in rows(f) if "meta/grad_norm" in r] for f in (folder, validated)
    ]
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


def test_other_settings_make_a_new_best(validated: Path, tmp_path: Path) -> None:
    folder = tmp_path / "whole"
    shutil.copytree(validated, folder)
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
    validated: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "whole"
    shutil.copytree(validated, folder)
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
