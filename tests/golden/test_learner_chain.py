"""Part c: three learner steps of a tiny agent."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from metarl.golden import verify
from metarl.golden.judge import Tolerances
from metarl.golden.parity import check_file
from metarl.golden.subject import Subject

PARTS = ("c",)


def test_every_array_agrees(
    golden_file: Path, subject: Subject, limits: Tolerances
) -> None:
    findings, not_stored = check_file(golden_file, subject, limits)
    assert [finding for finding in findings if not finding.agrees] == []
    assert not_stored == []


def test_an_output_that_we_do_not_compute_fails_and_one_left_out_is_named(
    golden_dir: Path, weights: Path, tmp_path: Path
) -> None:
    for table in golden_dir.glob("*.csv"):
        shutil.copy(table, tmp_path)
    path = golden_dir / "c_learner_chain_seed0.npz"
    arrays = dict(np.load(path))
    # Its tolerance's pattern, step*/grad/*, takes any name.
    arrays["step0/grad/mlp/linear_9/b"] = np.zeros(3, np.float32)
    del arrays["step2/log/td"]
    np.savez(tmp_path / path.name, **arrays)
    lines: list[str] = []
    assert not verify(tmp_path, weights=weights, out=lines.append)
    assert "c_learner_chain_seed0: not in the file: step2/log/td" in lines
    failures = [line for line in lines if "FAIL" in line]
    assert len(failures) == 2  # the array's group, and the summary
    assert "step0/grad/mlp/linear_9/b: this build computes no such array" in failures[0]
    assert failures[1].endswith("1 FAIL")
