"""The golden files, one test each, and what is verified against them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from metarl.golden.files import find_files
from metarl.golden.judge import Tolerances
from metarl.golden.parity import load_subject
from metarl.golden.subject import Subject


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run tests that take a `golden_file` on each file of their module's PARTS."""
    if "golden_file" not in metafunc.fixturenames:
        return
    value = os.environ.get("METARL_REFERENCE", "")
    folder = Path(value) / "golden" / "disco103"
    # Without the folder, the fixture `reference` skips the one test and says why.
    paths = find_files(folder) if value and folder.is_dir() else [Path("no-reference")]
    parts = (*metafunc.module.PARTS, "n")
    chosen = [path for path in paths if path.stem[0] in parts]
    metafunc.parametrize("golden_file", chosen, ids=lambda path: path.stem)


@pytest.fixture(scope="session")
def golden_dir(reference: Path) -> Path:
    return reference / "golden" / "disco103"


@pytest.fixture(scope="session")
def weights(reference: Path) -> Path:
    path = reference / "data" / "disco_103.npz"
    if not path.is_file():
        pytest.skip(f"the reference folder has no {path}")
    return path


@pytest.fixture(scope="session")
def limits(golden_dir: Path) -> Tolerances:
    return Tolerances.read(golden_dir)


@pytest.fixture(scope="session")
def subject(weights: Path) -> Subject:
    return load_subject(weights=weights, rule=None)
