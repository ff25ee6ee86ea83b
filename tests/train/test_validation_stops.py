"""A stop within a validation, or after it, costs no cell and changes nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import tiny_run
from validated_runs import ON, assert_same_run, cells, resume, rows, run

from metarl import train, validation
from metarl.evaluation.runner import BatchRun
from metarl.run_folder import RunFolder

pytestmark = pytest.mark.usefixtures("no_wandb")


class Killed(BaseException):
    """No code catches it, as none would a kill."""


def test_a_kill_within_a_validation_loses_no_cell(
    validated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    assert_same_run(validated, folder)


def test_told_to_stop_within_a_validation_it_goes_on_there(
    validated: Path,
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
    assert_same_run(validated, folder)


def test_a_kill_before_the_score_is_stored_leaves_no_row_twice(
    validated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    assert_same_run(validated, folder)


def test_a_run_that_lost_checkpoints_comes_to_the_same(
    validated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "whole"  # its name is in those of the cells
    shutil.copytree(validated, folder)
    for step in (4, 5):
        shutil.rmtree(folder / "checkpoints" / str(step), ignore_errors=True)
    (folder / "config.yaml").write_text(
        (validated / "config.yaml").read_text().replace(str(validated), str(folder))
    )

    def never(*_: object) -> None:
        raise AssertionError("a cell was trained again")

    monkeypatch.setattr(BatchRun, "run", never)
    assert resume(folder) == 0
    assert_same_run(validated, folder)


def test_a_finished_run_has_nothing_to_do(
    validated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (validated / "metrics.jsonl").read_bytes()
    assert resume(validated) == 0
    assert "finished already" in capsys.readouterr().out
    assert (validated / "metrics.jsonl").read_bytes() == before
