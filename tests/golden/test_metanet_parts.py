"""Parts a, b and f: meta-network, losses, vector-Jacobian products; and the report."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from metarl.errors import UserError
from metarl.golden import verify
from metarl.golden.judge import Tolerances
from metarl.golden.parity import check_file
from metarl.golden.subject import Subject
from metarl.rule_files import import_rule

PARTS = ("a", "f")
SMALL = "a_metanet_T4_B3_A3_seed0.npz"


def test_every_array_agrees(
    golden_file: Path, subject: Subject, limits: Tolerances
) -> None:
    findings, not_stored = check_file(golden_file, subject, limits)
    assert [finding for finding in findings if not finding.agrees] == []
    assert not_stored == []


@pytest.fixture
def small_dir(golden_dir: Path, tmp_path: Path) -> Path:
    """A golden folder of one small file."""
    folder = tmp_path / "golden"
    folder.mkdir()
    for name in (SMALL, "tolerances.csv", "tensor_tolerances.csv"):
        shutil.copy(golden_dir / name, folder)
    return folder


def rewrite(path: Path, **changes: np.ndarray | None) -> None:
    """Replace, add or (None) remove arrays of an archive."""
    arrays = {**np.load(path), **changes}
    np.savez(path, **{key: a for key, a in arrays.items() if a is not None})


def test_report_has_a_line_for_the_file_and_for_each_group(
    small_dir: Path, weights: Path, limits: Tolerances
) -> None:
    lines: list[str] = []
    assert verify(small_dir, weights=weights, out=lines.append)
    groups = {row.pattern for row in limits.arrays if row.part == "a"}
    named = {line.split("  ")[2] for line in lines if line.startswith("  a_metanet  ")}
    gradients = {g for g in groups if "/grad_agent_loss" in g}
    assert named == groups | {f"{group} (relative L2)" for group in gradients}
    assert lines[1].startswith("a_metanet_T4_B3_A3_seed0: 129 arrays, ")
    assert lines[-1].startswith("129 arrays of 1 files (a_metanet): all agree")
    assert len(lines) == 2 + len(named) + 1


def test_an_imported_rule_can_be_verified(
    small_dir: Path, weights: Path, tmp_path: Path
) -> None:
    folder = import_rule(weights, tmp_path / "rule")
    lines: list[str] = []
    assert verify(small_dir, rule=folder, out=lines.append)
    assert "129 arrays of 1 files (a_metanet): all agree" in lines[-1]


@pytest.mark.parametrize(
    "tensor", ["lstm/linear_3/b", "lstm/~/meta_lstm/~unroll/mlp_2/~/linear_0/b"]
)
def test_one_wrong_weight_fails(
    small_dir: Path, weights: Path, tmp_path: Path, tensor: str
) -> None:
    altered = tmp_path / "altered.npz"
    shutil.copy(weights, altered)
    value = np.load(weights)[tensor]
    rewrite(altered, **{tensor: value + np.float32(0.1) * (value == value.max())})
    lines: list[str] = []
    assert not verify(small_dir, weights=altered, out=lines.append)
    assert "FAIL" in lines[-1]


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("call1/in/noise", "array 'call1/in/noise' is not known to part a"),
        ("hyper/temperature", "array 'hyper/temperature' is not known to part a"),
        ("call1/out/noise", "no row for array 'call1/out/noise'"),
    ],
)
def test_an_array_of_unknown_name_is_refused(
    small_dir: Path, subject: Subject, limits: Tolerances, key: str, message: str
) -> None:
    rewrite(small_dir / SMALL, **{key: np.zeros(2, np.float32)})
    with pytest.raises(UserError, match=message):
        check_file(small_dir / SMALL, subject, limits)


def test_a_missing_input_is_refused(
    small_dir: Path, subject: Subject, limits: Tolerances
) -> None:
    rewrite(small_dir / SMALL, **{"call2/in/rewards": None})
    with pytest.raises(UserError, match="array 'call2/in/rewards' is missing"):
        check_file(small_dir / SMALL, subject, limits)


def test_products_need_the_file_that_their_inputs_are_in(
    golden_dir: Path, tmp_path: Path, subject: Subject, limits: Tolerances
) -> None:
    path = Path(shutil.copy(golden_dir / "f_vjp_T4_B3_A3_seed0.npz", tmp_path))
    with pytest.raises(UserError, match=f"{SMALL} does not exist"):
        check_file(path, subject, limits)
