"""`metrics.jsonl`: every row at once, the same after a resume, every key documented."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tracked_run import LABELS, NO_WANDB, logged_rows

from metarl.tracking import Position, Tracker

# --- JSON lines -------------------------------------------------------------------


def test_every_row_is_on_disk_at_once(tmp_path: Path) -> None:
    with Tracker(tmp_path, NO_WANDB, {}, LABELS) as tracker:
        tracker.log(
            {"meta/loss": np.float32(0.5), "meta/skipped": 0},
            global_step=0,
            meta_step=0,
        )
        assert logged_rows(tmp_path) == [
            {"global_step": 0, "meta_step": 0, "meta/loss": 0.5, "meta/skipped": 0}
        ]
        tracker.log({"charts/SPS": float("nan")}, global_step=10)
        tracker.log({"eval/iqm": float("inf")}, meta_step=2)
    assert logged_rows(tmp_path)[1:] == [
        {"global_step": 10, "charts/SPS": None},
        {"meta_step": 2, "eval/iqm": None},
    ]
    assert not (tmp_path / "wandb").exists()


def test_rows_need_a_step_and_metrics_are_no_steps(tmp_path: Path) -> None:
    with Tracker(tmp_path, NO_WANDB, {}, LABELS) as tracker:
        with pytest.raises(ValueError, match="needs global_step or meta_step"):
            tracker.log({"meta/loss": 1.0})
        with pytest.raises(ValueError, match="'meta_step' is an argument"):
            tracker.log({"meta_step": 1.0}, global_step=1)
    assert logged_rows(tmp_path) == []


def test_resumed_file_is_that_of_an_uninterrupted_run(tmp_path: Path) -> None:
    def log(folder: Path, steps: range, resume: Position | None) -> None:
        with Tracker(folder, NO_WANDB, {}, LABELS, resume=resume) as tracker:
            for step in steps:
                row = {"meta/loss": step / 3}
                tracker.log(row, global_step=10 * step, meta_step=step)
                if step % 2 == 0:
                    tracker.log({"charts/x": 1.0}, global_step=10 * step)

    log(tmp_path / "whole", range(1, 9), None)
    log(tmp_path / "killed", range(1, 7), None)
    with (tmp_path / "killed" / "metrics.jsonl").open("a") as file:
        file.write('{"global_step": 7')  # killed within a row
    log(tmp_path / "killed", range(5, 9), Position(global_step=40, meta_step=4))
    files = [tmp_path / name / "metrics.jsonl" for name in ("whole", "killed")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_rows_of_a_family_that_is_redone_are_dropped_at_the_very_step(
    tmp_path: Path,
) -> None:
    def log(steps: range, resume: Position | None) -> None:
        with Tracker(tmp_path, NO_WANDB, {}, LABELS, resume=resume) as tracker:
            for step in steps:
                tracker.log({"meta/loss": 0.5}, meta_step=step)
                tracker.log({"eval/iqm": 0.25}, meta_step=step)

    log(range(1, 4), None)
    log(range(0), Position(global_step=0, meta_step=2, redone=("eval",)))
    kept = [(row["meta_step"], "eval/iqm" in row) for row in logged_rows(tmp_path)]
    assert kept == [(1, False), (1, True), (2, False)]


def test_a_run_that_starts_anew_drops_all_rows(tmp_path: Path) -> None:
    for _ in range(2):
        with Tracker(tmp_path, NO_WANDB, {}, LABELS) as tracker:
            tracker.log({"meta/loss": 1.0}, meta_step=1)
    assert len(logged_rows(tmp_path)) == 1


def test_tracking_needs_neither_jax_nor_rules_nor_wandb() -> None:
    code = (
        "import sys, metarl.tracking; "
        "print(*{'jax', 'wandb', 'metarl.rules', 'metarl.rule_files'} & {*sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout == "\n"


# --- Documentation ----------------------------------------------------------------


def _documented() -> set[str]:
    text = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    rows = re.findall(r"^\| `([^|]+)` \|", text, flags=re.MULTILINE)
    assert rows
    return {key for row in rows for key in re.split(r"`, `", row)}


def test_every_key_of_the_standard_is_documented() -> None:
    assert _documented() >= {
        *(f"charts/{k}" for k in ("episodic_return", "episodic_length", "SPS")),
        "charts/learning_rate",
        "agents/{game}/episodic_return",
        "agents/{game}/human_normalized_score",
        *(f"stats/{k}_time" for k in ("env", "inference", "transfer", "learn", "meta")),
        "stats/device_memory_peak_bytes",
        *(f"losses/{k}" for k in ("policy_loss", "value_loss", "entropy", "approx_kl")),
        *(f"meta/{k}" for k in ("loss", "pg_loss", "reg_loss", "grad_norm")),
        *(f"meta/{k}" for k in ("update_norm", "skipped")),
        *(f"meta/rule_entropy_{k}" for k in ("y", "z")),
        "eval/{game}/human_normalized_score",
        *(f"eval/{k}" for k in ("iqm", "iqm_lo", "iqm_hi")),
        "videos/{game}",
    }
