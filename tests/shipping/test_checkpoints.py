"""Every rule that ships: whole, discovered from random, told of, and usable."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest
from contract.experience import make_experience
from contract.rule_cases import Case, forward
from tiny_ship import store_cells, write_shippable_run

from metarl import config_loader
from metarl.config import TrainConfig
from metarl.rule_files import BUILT_IN, Parent, find_rule, load_rule
from metarl.shipping import ship_rule
from metarl.shipping.card import MARK, NO_LIMITS

ROOT = Path(__file__).parents[2] / "checkpoints"
SHIPPED = sorted(path for path in ROOT.glob("*") if path.is_dir())


def check(folder: Path) -> None:
    """Assert what holds for every rule that ships."""
    loaded = load_rule(folder)  # compares rule.npz with its sha256
    manifest, card = loaded.manifest, (folder / "README.md").read_text("utf-8")
    config = config_loader.load(TrainConfig, [folder / "config.yaml"])
    assert loaded.name == folder.name
    assert loaded.name not in BUILT_IN
    # Discovered from random meta-parameters, by what is known and by what was run.
    assert manifest.parents == ()
    assert manifest.source == {}
    assert manifest.seen_is_complete
    assert manifest.meta_steps > 0
    assert manifest.games_seen
    assert config.initial_rule is None
    assert config.update_rule == manifest.config
    # Told of.
    assert card.startswith(f"{MARK}\n\n# {folder.name}\n")
    assert manifest.sha256 in card
    assert NO_LIMITS not in card
    assert (folder / "notes.md").read_text("utf-8").strip() in card
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "curves.csv").read_text().startswith("meta_step,global_step,")
    assert (folder / "scores.csv").read_text().startswith("results,rule,game,status,")


def check_use(folder: Path) -> None:
    """Assert that the rule makes finite targets and losses."""
    loaded = load_rule(folder)
    case = Case(
        meta_params=loaded.meta_params,
        rule_state=loaded.rule.init_state(),
        experience=make_experience(jax.random.key(0), loaded.rule),
    )
    found = forward(loaded.rule, case)
    loss = np.asarray(found["loss"])
    valid = np.asarray(case.experience.transitions.valid)
    assert np.isfinite(loss[valid]).all()
    assert np.abs(loss[valid]).sum() > 0
    for leaf in jax.tree.leaves(found["targets"]):
        assert np.isfinite(np.asarray(leaf)[valid]).all()


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda path: path.name)
def test_what_ships_is_sound(folder: Path) -> None:
    check(folder)
    check_use(folder)


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda path: path.name)
def test_what_ships_is_found_by_name(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    place, name = find_rule(folder.name)
    assert name == folder.name
    assert place.samefile(folder)


def test_what_is_not_sound_is_found_out(tmp_path: Path) -> None:
    run, folder, results = (tmp_path / name for name in ("run", "tiny_lpg", "results"))
    write_shippable_run(run)
    store_cells(results, run, [0.5], suite="catch_5x5")
    notes = tmp_path / "notes.md"
    notes.write_text("Anything but Catch.\n")
    ship_rule(run, folder, results=[results])
    with pytest.raises(AssertionError, match="The author states no limits"):
        check(folder)
    ship_rule(run, folder, results=[results], notes=notes)
    check(folder)
    check_use(folder)
    manifest = load_rule(folder).manifest
    for change, line in (
        ({"parents": (Parent(name="disco103", sha256="ab" * 32),)}, "disco103"),
        ({"source": {"name": "elsewhere"}}, "elsewhere"),
        ({"games_seen": ()}, "games_seen"),
    ):
        changed = manifest.model_copy(update=change)
        (folder / "manifest.json").write_text(changed.to_json())
        with pytest.raises(AssertionError, match=line):
            check(folder)
