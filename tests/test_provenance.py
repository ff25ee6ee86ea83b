"""Which packages and which commit made a file."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from metarl.provenance import git_commit, package_versions, write_versions


def test_versions_name_packages_and_commit(tmp_path: Path) -> None:
    versions = json.loads(write_versions(tmp_path).read_text())
    assert versions["packages"] == package_versions()
    assert versions["packages"]["numpy"] == np.__version__
    assert versions["commit"] == git_commit()


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_commit_is_that_of_the_package_own_checkout(tmp_path: Path) -> None:
    package = tmp_path / "metarl"
    nested = tmp_path / ".venv" / "lib" / "metarl"
    for place in (package, nested):
        place.mkdir(parents=True)
    (package / "x.py").write_text("")
    assert git_commit(package) is None
    git_commit.cache_clear()
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@y"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "First"]):
        subprocess.run([*git, *command], check=True)
    head = subprocess.run(
        [*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    )
    assert git_commit(package) == head.stdout.strip()
    assert git_commit(nested) is None  # installed below somebody's checkout
