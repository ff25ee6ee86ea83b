"""Published weights come in and go out as they are."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from small_rules import SMALL, assert_equal, one_line, save_small, small_params

from metarl.config import DiscoConfig
from metarl.errors import UserError
from metarl.rule_files import SEEN_BY_DISCO103, export_rule, import_rule, load_rule
from metarl.rule_files import folder as rule_folder
from metarl.rule_files.published import _content
from metarl.rules.disco_names import to_published


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of random weights in the published format."""
    path = tmp_path_factory.mktemp("weights") / "weights.npz"
    np.savez_compressed(path, **to_published(small_params(3, DiscoConfig())))
    return path


def test_export_gives_back_what_was_imported(tmp_path: Path, published: Path) -> None:
    folder = import_rule(published, tmp_path / "imported")
    again = np.load(export_rule(folder, tmp_path / "again.npz"))
    with pytest.raises(UserError, match="exists; name a new file"):
        export_rule(folder, tmp_path / "again.npz")
    weights = np.load(published)
    assert sorted(again.files) == sorted(weights.files)
    for name in weights.files:
        assert again[name].dtype == weights[name].dtype
        assert again[name].shape == weights[name].shape
        assert again[name].tobytes() == weights[name].tobytes()
    bare = load_rule(published)
    assert_equal(bare.meta_params, load_rule(folder).meta_params)
    assert bare.name == "weights"
    assert bare.status("Pong-v5") == bare.status("Catch-v0") == "unknown"


def test_weights_that_are_not_disco103_hold_nothing_out(
    tmp_path: Path, published: Path
) -> None:
    rule = load_rule(import_rule(published, tmp_path / "imported"))
    assert rule.status("Pong-v5") == "seen"
    assert rule.status("Catch-v0") == "unknown"


def test_import_twice_is_fine_but_replaces_no_other_rule(
    tmp_path: Path, published: Path
) -> None:
    import_rule(published, tmp_path / "imported")
    import_rule(published, tmp_path / "imported")
    save_small(tmp_path / "mine")
    with pytest.raises(UserError, match="holds another rule"):
        import_rule(published, tmp_path / "mine")
    assert load_rule(tmp_path / "mine").manifest.config == SMALL


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lstm/linear/b": None}, "tensor 'lstm/linear/b' is missing"),
        ({"lstm/other/b": np.zeros(1)}, "unknown tensor 'lstm/other/b'"),
        ({"lstm/linear/b": np.zeros(3, np.float32)}, r"has shape \(3,\)"),
    ],
)
def test_other_weights_are_not_imported(
    tmp_path: Path, published: Path, change: dict[str, object], message: str
) -> None:
    arrays = {**np.load(published), **change}
    np.savez(tmp_path / "bad.npz", **{k: v for k, v in arrays.items() if v is not None})
    with pytest.raises(UserError, match=message) as error:
        import_rule(tmp_path / "bad.npz", tmp_path / "imported")
    one_line(error)
    assert not (tmp_path / "imported").exists()


def test_what_has_no_published_format_is_not_exported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="only 'disco' has a published format"):
        export_rule("actor_critic", tmp_path / "out.npz")
    save_small(tmp_path / "mine")
    with pytest.raises(UserError, match=r"must end in \.npz"):
        export_rule(tmp_path / "mine", tmp_path / "out.txt")
    with pytest.raises(UserError, match="not a file"):
        import_rule(tmp_path / "missing.npz", tmp_path / "imported")


def test_disco103_has_seen_103_environments(tmp_path: Path, reference: Path) -> None:
    weights = reference / "data" / "disco_103.npz"
    rule = load_rule(import_rule(weights, tmp_path / "disco103"))
    manifest = rule.manifest
    with (reference / "data" / "atari57_scores.csv").open() as file:
        atari = {row["game"] for row in csv.DictReader(file)}
    with (reference / "data" / "procgen_scores.csv").open() as file:
        procgen = {row["game"].capitalize() for row in csv.DictReader(file)}
    assert len(manifest.games_seen) == 103
    assert atari < set(manifest.games_seen)
    assert {f"{game}Hard-v0" for game in procgen} < set(manifest.games_seen)
    rooms = [g for g in manifest.games_seen if "-v" not in g]
    assert len(rooms) == 30
    assert manifest.seen_is_complete
    assert manifest.parents == ()
    assert manifest.source["name"] == "Disco103"
    assert manifest.num_parameters == 754_778
    digest = rule_folder.sha256(weights.read_bytes())
    assert manifest.source["file_sha256"] == digest
    assert rule.status("Pong-v5") == rule.status("StarpilotEasy-v0") == "seen"
    assert rule.status("Catch-v0") == rule.status("AirRaid-v5") == "held_out"
    exported = np.load(export_rule(tmp_path / "disco103", tmp_path / "out.npz"))
    assert _content({**exported}) == _content({**np.load(weights)})


def test_seen_games_are_task_ids_of_envpool() -> None:
    import envpool

    tasks = set(envpool.list_all_envs())
    assert {game for game in SEEN_BY_DISCO103 if "-v" in game} < tasks
    assert len(set(SEEN_BY_DISCO103)) == 103
