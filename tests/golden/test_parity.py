"""Bad input of `verify`: one clear line each. Needs no reference folder."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

from metarl.config import DiscoConfig
from metarl.errors import UserError
from metarl.golden import verify
from metarl.golden.files import GoldenFile, find_files
from metarl.golden.parity import check_file, load_subject
from metarl.golden.subject import Subject
from metarl.rule_files import new_manifest, save_rule
from metarl.rules.disco import Disco


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "golden"
    path.mkdir()
    return path


def test_a_folder_without_arrays_is_refused(folder: Path) -> None:
    (folder / "tolerances.csv").write_text("part,key,error,scale\n")
    with pytest.raises(UserError, match="has no golden arrays"):
        verify(folder, weights=Path("none.npz"))
    with pytest.raises(UserError, match="is not a folder"):
        verify(folder / "nowhere", weights=Path("none.npz"))


def test_files_of_no_known_part_are_refused(folder: Path) -> None:
    np.savez(folder / "f_vjp_T4_B3_A3_seed0.npz", x=np.zeros(1))
    assert [path.stem for path in find_files(folder)] == ["f_vjp_T4_B3_A3_seed0"]
    np.savez(folder / "g_metanet_seed0.npz", x=np.zeros(1))
    with pytest.raises(UserError, match=r"g_metanet_seed0\.npz is of no known part"):
        find_files(folder)


def test_a_file_that_is_no_archive_is_refused(folder: Path) -> None:
    path = folder / "c_learner_chain_seed0.npz"
    path.write_bytes(b"not an archive")
    with pytest.raises(UserError, match="not an archive of arrays"):
        GoldenFile(path)
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(UserError, match="not an archive of arrays"):
        GoldenFile(path)


def test_a_file_of_inputs_alone_is_refused(folder: Path) -> None:
    path = folder / "c_learner_chain_seed0.npz"
    np.savez(path, **{"hyper/pi_cost": np.float32(1), "rollout/rewards": np.zeros(2)})
    subject = Subject(DiscoConfig(), {})
    with pytest.raises(UserError, match="nothing to compare with"):
        check_file(path, subject, limits=None)


def test_numbered_keys_must_have_no_gap(folder: Path) -> None:
    path = folder / "c_learner_chain_seed0.npz"
    arrays = {f"step{n}/log/td": np.zeros(()) for n in (0, 1, 2)}
    np.savez(path, **arrays)
    assert GoldenFile(path).numbers(r"step(\d+)/") == range(3)
    del arrays["step1/log/td"]
    np.savez(path, **arrays)
    with pytest.raises(UserError, match=r"numbered \[0, 2\]"):
        GoldenFile(path).numbers(r"step(\d+)/")


def test_exactly_one_of_weights_and_rule_is_needed(tmp_path: Path) -> None:
    for paths in ({}, {"weights": tmp_path, "rule": tmp_path}):
        paths = {"weights": None, "rule": None, **paths}
        with pytest.raises(UserError, match="either --weights NPZ or --rule DIR"):
            load_subject(**paths)
    with pytest.raises(UserError, match=r"--weights: .* is not a file"):
        load_subject(weights=tmp_path, rule=None)


def test_rules_other_than_disco_of_published_sizes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"kind 'actor_critic'.* of kind 'disco'"):
        load_subject(weights=None, rule=Path("actor_critic"))
    config = DiscoConfig(prediction_size=5)
    shapes = jax.eval_shape(lambda: Disco(config).init_params(jax.random.key(0)))
    params = jax.tree.map(lambda shape: np.zeros(shape.shape, shape.dtype), shapes)
    save_rule(tmp_path / "rule", params, new_manifest(config))
    with pytest.raises(UserError, match=r"prediction_size is 5; .* are for 600"):
        load_subject(weights=None, rule=tmp_path / "rule")
