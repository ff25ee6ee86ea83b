"""Rules that ship are found by name: in a checkout, from a wheel, and beside others."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest

from metarl.config import LPGConfig
from metarl.errors import UserError
from metarl.rule_files import (
    find_rule,
    finding,
    load_rule,
    new_manifest,
    save_rule,
    show_rule,
)
from metarl.rules import make_rule

ROOT = Path(__file__).parents[2]
TINY = LPGConfig(prediction_size=3, lstm=2, embedding_hidden=2)


def _save(folder: Path, value: float) -> Path:
    """Save a rule whose meta-parameters are all ``value``."""
    shapes = jax.eval_shape(lambda: make_rule(TINY).init_params(jax.random.key(0)))
    params = jax.tree.map(lambda x: np.full(x.shape, value, x.dtype), shapes)
    save_rule(folder, params, new_manifest(TINY))
    return folder


def _value(rule: str | Path) -> float:
    return float(np.ravel(jax.tree.leaves(load_rule(rule).meta_params)[0])[0])


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that ships the rule `tiny` (1.0), in a working directory of its own."""
    package = tmp_path / "site" / "metarl"
    _save(package / "checkpoints" / "tiny", 1.0)
    monkeypatch.setattr(finding, "__file__", str(package / "rule_files" / "finding.py"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return package / "checkpoints"


def test_what_is_nearest_wins(shipped: Path) -> None:
    assert find_rule("tiny") == (shipped / "tiny", "tiny")
    assert _value("tiny") == 1.0
    _save(Path("checkpoints/tiny"), 2.0)
    assert _value("tiny") == 2.0
    _save(Path("tiny/rule"), 3.0)
    assert _value("tiny") == 3.0
    assert _value("checkpoints/tiny") == 2.0
    assert _value(shipped / "tiny") == 1.0


def test_what_is_no_rule_hides_none(shipped: Path) -> None:
    Path("tiny").mkdir()  # such as its results
    Path("checkpoints/tiny").mkdir(parents=True)
    assert _value("tiny") == 1.0
    # A run by that name is meant, also before it has a rule.
    (Path("tiny") / "config.yaml").write_text("")
    with pytest.raises(UserError, match="tiny is a run that has not saved a rule yet"):
        load_rule("tiny")


def test_an_unknown_name_is_told_the_nearest(shipped: Path) -> None:
    with pytest.raises(UserError, match="mutual_q, tiny; did you mean 'tiny'") as error:
        load_rule("tinny")
    assert "\n" not in str(error.value)


def test_a_rule_that_ships_cannot_replace_a_hand_written_one(shipped: Path) -> None:
    _save(shipped / "ppo", 1.0)
    assert load_rule("ppo").path is None


def test_show_leads_to_the_card(shipped: Path) -> None:
    assert "model card" not in show_rule("tiny")
    (shipped / "tiny" / "README.md").write_text("# tiny\n")
    lines = [line.split() for line in show_rule("tiny").splitlines()]
    assert ["where", str(shipped / "tiny")] in lines
    assert ["model", "card", str(shipped / "tiny" / "README.md")] in lines


@pytest.mark.parametrize(
    ("files", "found"),
    [
        (["checkout/pyproject.toml"], "checkout/checkpoints"),
        # Beside an installed package is what others put there.
        (["checkout/checkpoints/x"], "checkout/metarl/checkpoints"),
        (
            ["checkout/pyproject.toml", "checkout/metarl/checkpoints/x"],
            "checkout/metarl/checkpoints",
        ),
    ],
)
def test_where_the_package_keeps_them(
    tmp_path: Path, files: list[str], found: str
) -> None:
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    package = tmp_path / "checkout" / "metarl"
    assert finding.packaged_checkpoints(package) == tmp_path / found


def test_a_wheel_brings_them_along(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    source, site, work = tmp_path / "source", tmp_path / "site", tmp_path / "work"
    shutil.copytree(
        ROOT / "metarl", source / "metarl", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    folder = _save(source / "checkpoints" / "tiny", 1.0)
    for name in ("README.md", "curves.png", "curves.csv"):
        (folder / name).write_text(name)
    build = "import hatchling.build; hatchling.build.build_wheel('.')"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True)
    (wheel,) = source.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    kept = {path.name for path in (site / "metarl/checkpoints/tiny").iterdir()}
    assert kept == {"rule.npz", "manifest.json", "README.md"}
    assert not (site / "checkpoints").exists()
    work.mkdir()
    output = subprocess.run(
        [sys.executable, "-m", "metarl", "rules", "list"],
        cwd=work,
        env={**os.environ, "PYTHONPATH": str(site)},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    rows = {row[0]: row for row in map(str.split, output.splitlines())}
    assert rows["tiny"][1] == "lpg"
    assert Path(rows["tiny"][-1]) == site / "metarl" / "checkpoints" / "tiny"
