"""Rules on disk: whole or not at all, checked on load, honest about games seen."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metarl.config import ActorCriticConfig, DiscoConfig
from metarl.errors import UserError
from metarl.provenance import git_commit, package_versions, write_versions
from metarl.rule_files import (
    SEEN_BY_DISCO103,
    LoadedRule,
    Manifest,
    export_rule,
    import_rule,
    inherit,
    list_rules,
    load_rule,
    new_manifest,
    save_rule,
    show_rule,
    status,
)
from metarl.rule_files import folder as rule_folder
from metarl.rule_files.published import _content
from metarl.rules import make_rule
from metarl.rules.disco_names import to_published
from metarl.types import Params

SMALL = DiscoConfig(
    prediction_size=4,
    num_bins=5,
    trajectory_lstm=6,
    lifetime_lstm=3,
    embedding_hidden=2,
)


def _params(seed: int = 0, config: DiscoConfig = SMALL) -> Params:
    """Return random meta-parameters without compiling the initialiser."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: make_rule(config).init_params(jax.random.key(0)))
    return jax.tree.map(
        lambda leaf: rng.standard_normal(leaf.shape).astype(leaf.dtype), shapes
    )


def _save(folder: Path, seed: int = 0, **manifest: object) -> Manifest:
    return save_rule(folder, _params(seed), new_manifest(SMALL, **manifest))


def _assert_equal(one: Params, other: Params) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def _edit_manifest(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _edit_arrays(folder: Path, **changes: np.ndarray | None) -> None:
    """Change tensors of a rule as somebody with an editor would, hash included."""
    with np.load(folder / "rule.npz") as archive:
        arrays = {**archive, **changes}
    kept = {name: array for name, array in arrays.items() if array is not None}
    data = rule_folder.pack(kept)
    (folder / "rule.npz").write_bytes(data)
    _edit_manifest(folder, sha256=rule_folder.sha256(data))


# --- Saving and loading -----------------------------------------------------------


def test_loaded_rule_is_the_saved_one(tmp_path: Path) -> None:
    written = _save(
        tmp_path / "mine",
        games_seen=["Pong-v5", "Alien-v5"],
        games_validation=["Assault-v5"],
        meta_steps=7,
        env_steps=2**40,
        agent={"rollout_length": 16},
    )
    loaded = load_rule(tmp_path / "mine")
    assert isinstance(loaded, LoadedRule)
    assert loaded.path == tmp_path / "mine"
    assert loaded.name == "mine"
    assert loaded.rule == make_rule(SMALL)
    assert loaded.manifest == written
    _assert_equal(jax.device_get(loaded.meta_params), _params())
    manifest = json.loads((tmp_path / "mine" / "manifest.json").read_text())
    assert manifest["kind"] == "disco"
    assert manifest["config"]["prediction_size"] == 4
    assert manifest["games_seen"] == ["Alien-v5", "Pong-v5"]
    assert manifest["games_validation"] == ["Assault-v5"]
    assert (manifest["meta_steps"], manifest["env_steps"]) == (7, 2**40)
    assert manifest["agent"] == {"rollout_length": 16}
    assert manifest["versions"]["jax"] == jax.__version__
    assert manifest["commit"] == git_commit()
    assert manifest["num_parameters"] == sum(x.size for x in jax.tree.leaves(_params()))


def test_equal_rules_are_equal_bytes(tmp_path: Path) -> None:
    one = _save(tmp_path / "one")
    other = save_rule(
        tmp_path / "other",
        jax.tree.map(jnp.asarray, _params()),
        new_manifest(SMALL),
    )
    assert one == other
    files = [(tmp_path / name / "rule.npz").read_bytes() for name in ("one", "other")]
    assert files[0] == files[1]
    assert _save(tmp_path / "third", seed=1).sha256 != one.sha256


def test_a_rule_is_found_by_every_name_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "runs" / "atari__1"
    _save(run / "rule")
    (run / "config.yaml").write_text("")
    _save(run / "rule_best", seed=2)
    _save(tmp_path / "checkpoints" / "shipped", seed=1)
    monkeypatch.chdir(tmp_path)
    for path in (run, run / "rule", run / "rule" / "rule.npz", "runs/atari__1"):
        loaded = load_rule(path)
        assert loaded.name == "atari__1"
        _assert_equal(jax.device_get(loaded.meta_params), _params(0))
    for path in (run / "rule_best", run / "rule_best" / "rule.npz"):
        loaded = load_rule(path)
        assert loaded.name == "atari__1__best"
        _assert_equal(jax.device_get(loaded.meta_params), _params(2))
    assert load_rule("shipped").name == "shipped"
    _assert_equal(jax.device_get(load_rule("shipped").meta_params), _params(1))
    monkeypatch.chdir(run / "rule")
    assert load_rule(".").name == "atari__1"


@pytest.mark.parametrize("name", ["actor_critic", "policy_gradient"])
def test_hand_written_rules_have_seen_nothing(name: str) -> None:
    loaded = load_rule(name)
    assert loaded.name == loaded.manifest.kind == name
    assert loaded.meta_params == {}
    assert loaded.status("Pong-v5") == "held_out"


def test_hand_written_rule_with_other_settings_is_a_file_too(tmp_path: Path) -> None:
    config = ActorCriticConfig(discount=0.9)
    save_rule(tmp_path / "short", {}, new_manifest(config))
    loaded = load_rule(tmp_path / "short")
    assert loaded.manifest.config == config
    assert loaded.rule == make_rule(config)


def test_float32_rule_loads_under_float64(tmp_path: Path, x64: None) -> None:
    with jax.enable_x64(False):
        params = _params()
    save_rule(tmp_path / "mine", params, new_manifest(SMALL))
    _assert_equal(jax.device_get(load_rule(tmp_path / "mine").meta_params), params)


# --- What is refused --------------------------------------------------------------


def _one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("actor_critik", "did you mean 'actor_critic'"),
        ("disco", "neither a file, a folder, a run"),
        ("no/such/folder", "neither a file, a folder, a run"),
        ("empty", "holds no rule"),
        ("run", "is a run that has not saved a rule yet"),
        ("text.npz", "not an npz file"),
        ("array.npz", "not an npz file"),
        ("other.npz", "no manifest.json beside it"),
        ("bare", "no manifest.json beside it"),
        ("bare/rule.npz", "no manifest.json beside it"),
    ],
)
def test_what_is_no_rule_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("run").mkdir()
    Path("run/config.yaml").write_text("")
    Path("text.npz").write_text("no archive")
    with Path("array.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    np.savez("other.npz", x=np.zeros(3))
    _save(Path("bare"))
    Path("bare/manifest.json").unlink()
    with pytest.raises(UserError, match=message) as error:
        load_rule(path)
    _one_line(error)


@pytest.mark.parametrize(
    ("tensor", "value", "message"),
    [
        ("trajectory/gate/b", None, "tensor 'trajectory/gate/b' is missing"),
        (
            "trajectory/gate/c",
            np.zeros(6, np.float32),
            "unknown tensor 'trajectory/gate/c'; did you mean 'trajectory/gate/",
        ),
        (
            "trajectory/gate/b",
            np.zeros(7, np.float32),
            r"'trajectory/gate/b' has shape \(7,\), the configuration needs \(6,\)",
        ),
        (
            "trajectory/gate/b",
            np.zeros(6, np.float64),
            "'trajectory/gate/b' is float64, the configuration needs float32",
        ),
    ],
)
def test_tensors_are_checked_against_the_configuration(
    tmp_path: Path, tensor: str, value: np.ndarray | None, message: str
) -> None:
    _save(tmp_path / "mine")
    _edit_arrays(tmp_path / "mine", **{tensor: value})
    with pytest.raises(UserError, match=message) as error:
        load_rule(tmp_path / "mine")
    _one_line(error)


def test_parameters_of_another_rule_are_not_saved(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown tensor"):
        save_rule(tmp_path / "mine", _params(), new_manifest(ActorCriticConfig()))
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "format 2 is not known"),
        ({"sha256": "0" * 64}, "its sha256 is not the one"),
        ({"config": {"kind": "alchemy"}, "kind": "alchemy"}, "config: .*'alchemy'"),
        ({"kind": "actor_critic"}, "kind 'actor_critic' but config.kind 'disco'"),
        ({"config": {"kind": "disco", "size": 3}}, "config.disco.size"),
        ({"config": 3}, "config: .*dictionary"),
        ({"config": {"size": 3}}, "config: .*'kind'"),
        ({"meta_steps": -1}, "meta_steps: .*greater than or equal to 0"),
    ],
)
def test_manifest_is_checked(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    _save(tmp_path / "mine")
    _edit_manifest(tmp_path / "mine", **changes)
    with pytest.raises(UserError, match=message) as error:
        load_rule(tmp_path / "mine")
    assert "manifest.json" in _one_line(error)


def test_unreadable_manifest_is_one_line(tmp_path: Path) -> None:
    _save(tmp_path / "mine")
    (tmp_path / "mine" / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"manifest\.json: not JSON") as error:
        load_rule(tmp_path / "mine")
    _one_line(error)


# --- Whole or not at all ----------------------------------------------------------


def _pair(folder: Path) -> tuple[bool, int]:
    """Return whether the two files of a folder belong together, and their meta-step."""
    data, text = rule_folder.read(folder)
    assert text is not None
    manifest = json.loads(text)
    return rule_folder.sha256(data) == manifest["sha256"], manifest["meta_steps"]


def _cannot_exchange(*_: Path) -> bool:
    return False


@pytest.mark.parametrize("exchange", [True, False])
def test_readers_never_see_half_a_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    if not exchange:
        monkeypatch.setattr(rule_folder, "_exchange", _cannot_exchange)
    folder = tmp_path / "rule"
    manifests = [new_manifest(SMALL, meta_steps=step) for step in range(2)]
    params = [_params(seed) for seed in range(2)]
    save_rule(folder, params[0], manifests[0])
    stop, seen, failures = threading.Event(), set(), []

    def read() -> None:
        while not stop.is_set():
            try:
                matches, step = _pair(folder)
            except Exception as error:
                failures.append(error)
                return
            seen.add(step)
            if not matches:
                failures.append(AssertionError("half a rule"))

    reader = threading.Thread(target=read)
    reader.start()
    written = 0
    end = time.monotonic() + 1.0
    while time.monotonic() < end or written < 20:
        written += 1
        save_rule(folder, params[written % 2], manifests[written % 2])
    stop.set()
    reader.join()
    assert failures == []
    assert seen == {0, 1}
    assert [path.name for path in tmp_path.iterdir()] == ["rule"]


_WRITE_FOR_EVER = """
import itertools, json, sys
from pathlib import Path
import numpy as np
from metarl.rule_files import folder
for step in itertools.count():
    data = folder.pack({"w": np.full(100_000, step)})
    manifest = {"sha256": folder.sha256(data), "meta_steps": step}
    folder.write(Path(sys.argv[1]), data, json.dumps(manifest))
    print(step, flush=True)
"""


def test_a_kill_at_any_moment_leaves_a_whole_rule(tmp_path: Path) -> None:
    folder, delays = tmp_path / "rule", random.Random(0)
    for _ in range(3):
        writer = subprocess.Popen(
            [sys.executable, "-c", _WRITE_FOR_EVER, str(folder)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
        )
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(delays.uniform(0.02, 0.1))
        writer.send_signal(signal.SIGKILL)
        rest = writer.stdout.read().split()
        writer.wait()
        writer.stdout.close()
        confirmed = int(rest[-1]) if rest else 0
        matches, step = _pair(folder)
        assert matches
        assert step in (confirmed, confirmed + 1)
    _save(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["rule"]  # what was left


def test_a_kill_between_the_two_renames_is_survived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the file system cannot exchange, the old rule waits under another name."""
    folder = tmp_path / "rule"
    _save(folder, meta_steps=1)

    def rename(self: Path, target: Path) -> Path:
        if target == folder:
            raise KeyboardInterrupt  # stands for the kill
        os.rename(self, target)
        return target

    with monkeypatch.context() as patch:
        patch.setattr(rule_folder, "_exchange", _cannot_exchange)
        patch.setattr(Path, "rename", rename)
        with pytest.raises(KeyboardInterrupt):
            _save(folder, meta_steps=2)
    assert not folder.exists()
    assert load_rule(folder).manifest.meta_steps == 1
    _save(folder, meta_steps=3)
    assert load_rule(folder).manifest.meta_steps == 3
    assert [path.name for path in tmp_path.iterdir()] == ["rule"]


def test_only_a_rule_is_replaced(tmp_path: Path) -> None:
    _save(tmp_path / "mine")
    (tmp_path / "mine" / "README.md").write_text("model card")
    _save(tmp_path / "mine", seed=1)
    assert (tmp_path / "mine" / "README.md").read_text() == "model card"
    (tmp_path / "mine" / "thesis.tex").write_text("three years")
    with pytest.raises(UserError, match=r"'thesis\.tex'"):
        _save(tmp_path / "mine", seed=2)
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "three years"
    with pytest.raises(UserError, match="is a file"):
        _save(tmp_path / "mine" / "thesis.tex")


def test_a_linked_folder_stays_linked(tmp_path: Path) -> None:
    _save(tmp_path / "real")
    (tmp_path / "link").symlink_to("real")
    _save(tmp_path / "link", meta_steps=5)
    assert (tmp_path / "link").is_symlink()
    assert load_rule(tmp_path / "real").manifest.meta_steps == 5


# --- Games seen -------------------------------------------------------------------


def _manifest(seen: list[str], validation: list[str]) -> Manifest:
    return Manifest(
        config=SMALL, games_seen=tuple(seen), games_validation=tuple(validation)
    )


def test_status_follows_from_the_manifest() -> None:
    manifest = _manifest(["Pong-v5", "CoinrunHard-v0"], ["Pong-v5", "Assault-v5"])
    assert status(manifest, "Pong-v5") == "seen"  # seen wins over validation
    assert status(manifest, "Assault-v5") == "validation"
    assert status(manifest, "Breakout-v5") == "held_out"
    assert status(manifest, "CoinrunEasy-v0") == "seen"  # an option, not another game
    assert status(manifest, "CoinrunExploration-v0") == "seen"
    assert status(manifest, "MinerEasy-v0") == "held_out"
    assert status(None, "Pong-v5") == "unknown"
    partly = manifest.model_copy(update={"seen_is_complete": False})
    assert status(partly, "Pong-v5") == "seen"
    assert status(partly, "Breakout-v5") == "unknown"
    assert status(partly, "Assault-v5") == "unknown"


@pytest.mark.parametrize(
    ("seen", "same", "others"),
    [
        ("FrozenLake-v1", ["FrozenLake8x8-v1", "gym:FrozenLake-v1"], ["Catch-v0"]),
        (
            "MiniGrid-Empty-5x5-v0",
            ["MiniGrid-Empty-Random-6x6-v0", "gym:minigrid:MiniGrid-Empty-8x8-v0"],
            ["MiniGrid-FourRooms-v0", "MiniGrid-DoorKey-5x5-v0"],
        ),
        (
            "MiniGrid-Dynamic-Obstacles-Random-6x6-v0",
            ["MiniGrid-Dynamic-Obstacles-8x8-v0"],
            ["MiniGrid-Empty-8x8-v0"],
        ),
        (
            "MiniGrid-LavaCrossingS9N1-v0",
            ["MiniGrid-LavaCrossingS11N5-v0"],
            ["MiniGrid-SimpleCrossingS9N1-v0", "MiniGrid-LavaGapS5-v0"],
        ),
        ("MiniGrid-LavaGapS5-v0", ["MiniGrid-LavaGapS7-v0"], []),
        ("MiniGrid-MultiRoom-N2-S4-v0", ["MiniGrid-MultiRoom-N6-v0"], []),
        ("MiniGrid-Fetch-5x5-N2-v0", ["MiniGrid-Fetch-8x8-N3-v0"], []),
        ("MiniGrid-MemoryS17Random-v0", ["MiniGrid-MemoryS7-v0"], []),
        ("MiniGrid-DistShift1-v0", ["MiniGrid-DistShift2-v0"], []),
        (
            "MiniGrid-ObstructedMaze-1Dlhb-v0",
            ["MiniGrid-ObstructedMaze-2Dl-v0", "MiniGrid-ObstructedMaze-Full-v1"],
            [],
        ),
        (
            "MiniGrid-Unlock-v0",
            [],
            ["MiniGrid-UnlockPickup-v0", "MiniGrid-WFC-RoomsFabric-v0"],
        ),
        (
            "BabyAI-KeyCorridorS3R1-v0",
            ["BabyAI-KeyCorridor-v0"],
            ["BabyAI-GoToLocalS5N2-v0"],
        ),
    ],
)
def test_all_sizes_of_a_task_are_one_game(
    seen: str, same: list[str], others: list[str]
) -> None:
    manifest = _manifest([seen], [])
    assert {status(manifest, game) for game in [seen, *same]} == {"seen"}
    assert {status(manifest, game) for game in others} <= {"held_out"}


def test_a_rule_inherits_what_its_parents_saw() -> None:
    grandparent = _manifest(["Alien-v5"], ["Qbert-v5"])
    grandparent = grandparent.model_copy(update={"sha256": "a" * 64})
    parent = inherit(_manifest(["Pong-v5"], []), [("old", grandparent)])
    other = _manifest(["Hero-v5"], ["Pong-v5"]).model_copy(update={"sha256": "b" * 64})
    child = inherit(
        _manifest(["Catch-v0"], ["Krull-v5"]), [("mid", parent), ("other", other)]
    )
    assert child.games_seen == ("Alien-v5", "Catch-v0", "Hero-v5", "Pong-v5")
    assert child.games_validation == ("Krull-v5", "Pong-v5", "Qbert-v5")
    assert [p.name for p in child.parents] == ["mid", "other"]
    assert child.parents[1].sha256 == "b" * 64
    assert child.seen_is_complete
    assert status(child, "Pong-v5") == "seen"
    assert status(child, "Qbert-v5") == "validation"
    unsure = other.model_copy(update={"seen_is_complete": False})
    assert not inherit(child, [("unsure", unsure)]).seen_is_complete


# --- Published weights ------------------------------------------------------------


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of random weights in the published format."""
    path = tmp_path_factory.mktemp("weights") / "weights.npz"
    np.savez_compressed(path, **to_published(_params(3, DiscoConfig())))
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
    _assert_equal(bare.meta_params, load_rule(folder).meta_params)
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
    _save(tmp_path / "mine")
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
    _one_line(error)
    assert not (tmp_path / "imported").exists()


def test_what_has_no_published_format_is_not_exported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="only 'disco' has a published format"):
        export_rule("actor_critic", tmp_path / "out.npz")
    _save(tmp_path / "mine")
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


# --- Listing ----------------------------------------------------------------------


def _cells(table: str) -> dict[str, list[str]]:
    rows = [line.split() for line in table.splitlines()]
    return {row[0]: row[1:] for row in rows if row}


def test_list_names_every_rule_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _save(Path("runs/first/rule"), games_seen=["Pong-v5"], meta_steps=1234)
    _save(Path("runs/second"))
    _save(Path("runs/broken"))
    Path("runs/broken/manifest.json").unlink()
    _save(Path("checkpoints/shipped"))
    Path("runs/unrelated").mkdir()
    table = list_rules(["runs", "runs/second"])
    rows = _cells(table)
    size = f"{_save(Path('size')).num_parameters:,}"
    assert rows["first"] == ["disco", size, "1,234", "1", "runs/first/rule"]
    assert rows["second"] == ["disco", size, "0", "0", "runs/second"]
    assert rows["shipped"][-1] == "checkpoints/shipped"
    assert rows["actor_critic"] == ["actor_critic", "0", "-", "0", "built", "in"]
    assert rows["broken"][-2:] == ["no", "manifest.json"]
    assert table.count("runs/second") == 1
    assert "unrelated" not in table
    with pytest.raises(UserError, match="'nowhere' does not exist"):
        list_rules(["nowhere"])


def test_show_prints_manifest_and_tensors(tmp_path: Path) -> None:
    written = _save(tmp_path / "mine", games_seen=["Pong-v5"], meta_steps=1234)
    text = show_rule(tmp_path / "mine")
    rows = _cells(text)
    assert rows["meta-steps"] == ["1,234"]
    assert rows["games"] == ["for", "validation", "none"]
    assert "1: Pong-v5" in text
    assert rows["parameters"] == [f"{written.num_parameters:,}"]
    assert rows["sha256"] == [written.sha256]
    assert rows["trajectory/gate/w"][:5] == ["3", "x", "6", "float32", "18"]
    gate = _params()["trajectory"]["gate"]["w"]  # type: ignore[index]
    assert float(rows["trajectory/gate/w"][5]) == pytest.approx(
        np.sqrt(np.mean(gate**2)), rel=1e-3
    )
    assert "hand-written" in show_rule("policy_gradient")


# --- Provenance -------------------------------------------------------------------


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
