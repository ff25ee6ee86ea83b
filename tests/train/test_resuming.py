"""A stop changes nothing: runs that are killed, told to stop, or extended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny_run
from compared_runs import arrays, assert_same_run, rows, run

import metarl
from metarl import config_loader
from metarl.errors import UserError
from metarl.run_folder import RunFolder


def test_checkpoints_change_nothing(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "often"
    assert run(tiny_run.config(folder, "meta_steps=6", "checkpoint.every=1")) == 0
    assert_same_run(whole, folder)


def test_extended_run_equals_uninterrupted(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "extended"
    assert run(tiny_run.config(folder, "meta_steps=3", "checkpoint.every=2")) == 0
    assert len(list((folder / "checkpoints").iterdir())) == 2
    # How often it is saved, and how many are kept, changes no result.
    longer = tiny_run.resumed(
        folder, "meta_steps=6", "checkpoint.every=1", "checkpoint.keep=1"
    )
    assert run(longer, resume=folder) == 0
    assert_same_run(whole, folder)
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["6"]


def test_killed_run_equals_uninterrupted(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    process = start(folder, "checkpoint.every=2")
    wait_for_rows(folder, 3, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (before,) = {row["meta_step"] for row in rows(folder)[-1:]}
    assert before < 1000
    shortened = (folder / "config.yaml").read_text()
    assert "meta_steps: 1000" in shortened
    (folder / "config.yaml").write_text(
        shortened.replace("meta_steps: 1000", "meta_steps: 6")
    )
    if before < 6:
        assert run(tiny_run.resumed(folder), resume=folder) == 0
        assert_same_run(whole, folder)
    else:
        # It was faster than the signal; its first rows are the same all the same.
        assert rows(folder)[:6] == rows(whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_exits_75(number: int, tmp_path: Path) -> None:
    folder = tmp_path / "preempted"
    process = start(folder, "checkpoint.every=1000")
    wait_for_rows(folder, 2, process)
    config = tiny_run.resumed(folder)
    with pytest.raises(UserError, match="another process is at work"):
        run(config, resume=folder)
    process.send_signal(number)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 75, out
    assert f"metarl train --resume {folder}" in out
    done = rows(folder)[-1]["meta_step"]
    assert metarl.load_rule(folder).manifest.meta_steps == done


def test_killed_before_its_first_checkpoint_starts_anew(
    whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "early"
    config = tiny_run.config(folder, "meta_steps=6")
    RunFolder.create(config)
    (folder / "metrics.jsonl").write_text('{"meta_step": 1, "left": "over"}\n{"met')
    assert run(tiny_run.resumed(folder), resume=folder) == 0
    assert_same_run(whole, folder)


def test_finished_run_says_so(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = arrays(whole)
    assert run(tiny_run.resumed(whole), resume=whole) == 0
    assert "finished already" in capsys.readouterr().out
    for name, value in arrays(whole).items():
        np.testing.assert_array_equal(value, before[name])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed=7", "seed: 7 differs from the run's 1"),
        ("agent.optimizer.learning_rate=0.5", "agent.optimizer.learning_rate: 0.5"),
        ("tracking.log_every=2", "tracking.log_every: 2 differs"),
        ("runtime.platform=cpu", "runtime.platform: cpu differs"),
        ("meta_steps=2", "meta_steps: 2 is less than the run's 6"),
    ],
)
def test_resume_refuses_other_changes(whole: Path, override: str, said: str) -> None:
    config = tiny_run.resumed(whole, override)
    with pytest.raises(UserError, match=said):
        run(config, resume=whole)


def start(folder: Path, *overrides: str) -> subprocess.Popen[str]:
    path = folder.parent / f"{folder.name}.yaml"
    path.write_text(config_loader.dump(tiny_run.config(folder, *overrides)))
    return subprocess.Popen(
        [sys.executable, "-m", "metarl", "train", str(path), "meta_steps=1000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )


def wait_for_rows(folder: Path, count: int, process: subprocess.Popen[str]) -> None:
    metrics = folder / "metrics.jsonl"
    for _ in range(3000):
        assert process.poll() is None, process.communicate()[0]
        if metrics.exists() and metrics.read_text().count("\n") >= count:
            return
        time.sleep(0.1)
    raise AssertionError("the run never wrote its metrics")
