"""A rule is loaded as it was saved, or refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_rules import SMALL, assert_equal, one_line, save_small, small_params

from metarl.config import ActorCriticConfig
from metarl.errors import UserError
from metarl.provenance import git_commit
from metarl.rule_files import LoadedRule, load_rule, new_manifest, save_rule
from metarl.rule_files import folder as rule_folder
from metarl.rules import make_rule


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
    written = save_small(
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
    assert_equal(jax.device_get(loaded.meta_params), small_params())
    manifest = json.loads((tmp_path / "mine" / "manifest.json").read_text())
    assert manifest["kind"] == "disco"
    assert manifest["config"]["prediction_size"] == 4
    assert manifest["games_seen"] == ["Alien-v5", "Pong-v5"]
    assert manifest["games_validation"] == ["Assault-v5"]
    assert (manifest["meta_steps"], manifest["env_steps"]) == (7, 2**40)
    assert manifest["agent"] == {"rollout_length": 16}
    assert manifest["versions"]["jax"] == jax.__version__
    assert manifest["commit"] == git_commit()
    assert manifest["num_parameters"] == sum(
        x.size for x in jax.tree.leaves(small_params())
    )


def test_equal_rules_are_equal_bytes(tmp_path: Path) -> None:
    one = save_small(tmp_path / "one")
    other = save_rule(
        tmp_path / "other",
        jax.tree.map(jnp.asarray, small_params()),
        new_manifest(SMALL),
    )
    assert one == other
    files = [(tmp_path / name / "rule.npz").read_bytes() for name in ("one", "other")]
    assert files[0] == files[1]
    assert save_small(tmp_path / "third", seed=1).sha256 != one.sha256


def test_a_rule_is_found_by_every_name_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "runs" / "atari__1"
    save_small(run / "rule")
    (run / "config.yaml").write_text("")
    save_small(run / "rule_best", seed=2)
    save_small(tmp_path / "checkpoints" / "shipped", seed=1)
    monkeypatch.chdir(tmp_path)
    for path in (run, run / "rule", run / "rule" / "rule.npz", "runs/atari__1"):
        loaded = load_rule(path)
        assert loaded.name == "atari__1"
        assert_equal(jax.device_get(loaded.meta_params), small_params(0))
    for path in (run / "rule_best", run / "rule_best" / "rule.npz"):
        loaded = load_rule(path)
        assert loaded.name == "atari__1__best"
        assert_equal(jax.device_get(loaded.meta_params), small_params(2))
    assert load_rule("shipped").name == "shipped"
    assert_equal(jax.device_get(load_rule("shipped").meta_params), small_params(1))
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
        params = small_params()
    save_rule(tmp_path / "mine", params, new_manifest(SMALL))
    assert_equal(jax.device_get(load_rule(tmp_path / "mine").meta_params), params)


# --- What is refused --------------------------------------------------------------


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
    save_small(Path("bare"))
    Path("bare/manifest.json").unlink()
    with pytest.raises(UserError, match=message) as error:
        load_rule(path)
    one_line(error)


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
    save_small(tmp_path / "mine")
    _edit_arrays(tmp_path / "mine", **{tensor: value})
    with pytest.raises(UserError, match=message) as error:
        load_rule(tmp_path / "mine")
    one_line(error)


def test_parameters_of_another_rule_are_not_saved(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown tensor"):
        save_rule(tmp_path / "mine", small_params(), new_manifest(ActorCriticConfig()))
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
    save_small(tmp_path / "mine")
    _edit_manifest(tmp_path / "mine", **changes)
    with pytest.raises(UserError, match=message) as error:
        load_rule(tmp_path / "mine")
    assert "manifest.json" in one_line(error)


def test_unreadable_manifest_is_one_line(tmp_path: Path) -> None:
    save_small(tmp_path / "mine")
    (tmp_path / "mine" / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"manifest\.json: not JSON") as error:
        load_rule(tmp_path / "mine")
    one_line(error)
