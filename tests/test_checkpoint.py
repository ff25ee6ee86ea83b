"""Checkpoints: bit-exact, asynchronous, atomic; a kill at any moment is survived."""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metarl.checkpoint import AS_STORED, CheckpointStore, newest_metadata
from metarl.errors import UserError
from metarl.types import Clock


class _Moments(NamedTuple):
    mean: jax.Array
    count: int


def _tree() -> dict[str, object]:
    nan_payload = np.array([0x7FC00001, 0xFF800000, 0x00000001], np.uint32)
    return {
        "params": {"linear/~/w": jnp.arange(6.0).reshape(2, 3), "empty": {}},
        "bits": jax.device_put(nan_payload.view(np.float32)),
        "half": jnp.array([1.5, -0.0], jnp.bfloat16),
        "clock": Clock(jnp.float32(3.0), jnp.int32(4), jnp.float32(0.5)),
        "moments": _Moments(jnp.zeros((0, 3)), 7),
        "flags": np.array([True, False]),
        "frames": np.arange(8, dtype=np.uint8).reshape(2, 4),
        "seeds": np.array([2**32 - 1], np.uint32),
        "counts": np.array(2**40, np.int64),
        "keys": jax.random.split(jax.random.key(3), 2),
        "raw_key": jax.random.PRNGKey(5),
        "history": [np.arange(5, dtype=np.uint8), np.zeros((0, 2), np.uint8)],
        "rate": 0.1,
        "done": True,
        "nothing": None,
    }


def _assert_same(restored: object, saved: object) -> None:
    assert jax.tree.structure(restored) == jax.tree.structure(saved)
    pairs = zip(jax.tree.leaves(restored), jax.tree.leaves(saved), strict=True)
    for got, want in pairs:
        assert isinstance(got, jax.Array) == isinstance(want, jax.Array)
        if isinstance(want, bool | int | float):
            assert (type(got), got) == (type(want), want)
            continue
        assert got.dtype == want.dtype
        if jax.dtypes.issubdtype(want.dtype, jax.dtypes.prng_key):
            got, want = jax.random.key_data(got), jax.random.key_data(want)
        got, want = np.asarray(got), np.asarray(want)
        assert got.shape == want.shape
        assert got.tobytes() == want.tobytes()


def test_restores_every_kind_of_leaf_bit_for_bit(tmp_path: Path) -> None:
    tree = _tree()
    with CheckpointStore(tmp_path, keep=1) as store:
        store.save(3, tree, {"env_steps": 2**40, "games": ["Pong-v5"]})
    with CheckpointStore(tmp_path, keep=1) as store:
        assert store.latest_step() == 3
        assert store.metadata(3) == {"env_steps": 2**40, "games": ["Pong-v5"]}
        _assert_same(store.restore(3, tree), tree)


def test_restores_abstract_leaves_onto_their_sharding(tmp_path: Path) -> None:
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    tree = {"x": jnp.arange(3.0), "key": jax.random.key(1)}
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
    )
    with CheckpointStore(tmp_path, keep=1) as store:
        store.save(0, tree, {})
        restored = store.restore(0, like)
    _assert_same(restored, tree)
    assert restored["x"].committed
    assert restored["x"].sharding == sharding
    assert restored["key"].sharding == sharding


def test_as_stored_takes_shapes_that_were_not_known(tmp_path: Path) -> None:
    histories = [np.arange(7, dtype=np.uint8), np.zeros((0, 3), np.int32)]
    with CheckpointStore(tmp_path, keep=1) as store:
        store.save(0, {"histories": histories}, {})
        like: dict[str, list[Any]] = {"histories": [AS_STORED, AS_STORED]}
        restored = store.restore(0, like)
    np.testing.assert_array_equal(restored["histories"][0], histories[0])
    assert restored["histories"][1].shape == (0, 3)
    assert restored["histories"][1].dtype == np.int32


def test_tree_without_any_array_is_stored(tmp_path: Path) -> None:
    tree = {"state": {}, "log": np.zeros((0,), np.float32)}
    with CheckpointStore(tmp_path, keep=1) as store:
        store.save(0, tree, {"step": 0})
        _assert_same(store.restore(0, tree), tree)


def test_save_followed_by_donated_updates_stores_the_state_at_the_call(
    tmp_path: Path,
) -> None:
    update = jax.jit(lambda x: x * 2 + 1, donate_argnums=0)
    state = update(jnp.zeros((512, 1024)))
    actions = np.zeros(100_000, np.uint8)
    donated = False
    with CheckpointStore(tmp_path, keep=5) as store:
        for step in range(5):
            expected = float(state[0, 0])
            actions[:] = step
            before = state
            store.save(step, {"state": state, "actions": actions}, {})
            for _ in range(3):
                state = update(state)
            actions[:] = 255
            donated |= before.is_deleted()
            restored = store.restore(
                step,
                {
                    "state": jax.ShapeDtypeStruct((512, 1024), jnp.float32),
                    "actions": actions,
                },
            )
            np.testing.assert_array_equal(restored["state"], expected)
            np.testing.assert_array_equal(restored["actions"], step)
    assert donated  # else this test shows nothing


def test_keeps_the_newest(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path, keep=2) as store:
        assert store.latest_step() is None
        for step in (1, 5, 7):
            store.save(step, {"x": np.array(step)}, {})
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.isdigit()) == ["5", "7"]


def test_saving_a_step_again_changes_nothing(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path, keep=2) as store:
        store.save(1, {"x": np.array(1)}, {})
        store.save(1, {"x": np.array(2)}, {})
        assert store.restore(1, {"x": np.array(0)})["x"] == 1


def test_metadata_is_copied_at_the_call(tmp_path: Path) -> None:
    metadata: dict[str, object] = {"games": ["Pong-v5"]}
    with CheckpointStore(tmp_path, keep=1) as store:
        store.save(1, {"x": np.array(1)}, metadata)
        metadata["games"] = []
        assert store.metadata(1) == {"games": ["Pong-v5"]}


@pytest.mark.parametrize(
    ("like", "message"),
    [
        (
            {"x": np.zeros(3, np.float32)},
            r"\['x'\] is float32\[2\], expected "
            r"float32\[3\]",
        ),
        ({"x": np.zeros(2, np.int32)}, "expected int32"),
        ({"y": np.zeros(2, np.float32)}, r"has no leaf \['y'\]"),
        ({}, r"does not have: \['x'\]"),
        ({"x": 1.0}, "expected float"),
        ({"x": jax.random.key(0)}, r"expected key<fry>\[\]"),
    ],
)
def test_another_tree_is_refused_by_name(
    tmp_path: Path, like: object, message: str
) -> None:
    with CheckpointStore(tmp_path, keep=1) as store:
        store.save(0, {"x": np.zeros(2, np.float32)}, {})
        with pytest.raises(UserError, match=message) as caught:
            store.restore(0, like)
    assert "\n" not in str(caught.value)


def test_what_is_no_array_is_refused(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path, keep=1) as store:
        with pytest.raises(TypeError, match=r"\['name'\] is no array: 'Pong'"):
            store.save(0, {"name": "Pong"}, {})
        with pytest.raises(TypeError, match="JSON"):
            store.save(0, {"x": np.zeros(1)}, {"set": {1}})
        assert store.latest_step() is None


def test_half_written_checkpoint_is_ignored_and_cleaned(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path, keep=2) as store:
        store.save(1, {"x": np.array(1)}, {})
    for half in ("2.orbax-checkpoint-tmp", "5.orbax-checkpoint-tmp"):
        (tmp_path / half / "arrays.orbax-checkpoint-tmp").mkdir(parents=True)
        (tmp_path / half / "_CHECKPOINT_METADATA").write_text("{}")
    with CheckpointStore(tmp_path, keep=2) as store:
        assert store.latest_step() == 1
        store.save(2, {"x": np.array(2)}, {})
        assert store.restore(2, {"x": np.array(0)})["x"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


@pytest.mark.parametrize(
    "gone", ["commit_success.txt", "_CHECKPOINT_METADATA", "index", "arrays/d"]
)
def test_half_deleted_old_checkpoint_hurts_nothing(tmp_path: Path, gone: str) -> None:
    """A kill while the checkpoint before is deleted leaves a part of that one."""
    with CheckpointStore(tmp_path, keep=2) as store:
        store.save(1, {"x": np.array(1)}, {})
        store.save(2, {"x": np.array(2)}, {})
    path = tmp_path / "1" / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with CheckpointStore(tmp_path, keep=1) as store:
        assert store.latest_step() == 2
        assert store.restore(2, {"x": np.array(0)})["x"] == 2
        store.save(3, {"x": np.array(3)}, {})
        assert store.restore(3, {"x": np.array(0)})["x"] == 3


_SAVE_FOR_EVER = """
import itertools, sys
import numpy as np
from metarl.checkpoint import CheckpointStore
with CheckpointStore(sys.argv[1], keep=1) as store:
    for step in itertools.count((store.latest_step() or 0) + 1):
        tree = {str(i): np.full((50, 100), step + i) for i in range(20)}
        store.save(step, tree, {"step": step})
        store.wait()
        print(step, flush=True)
"""


def test_survives_sigkill_at_any_moment(tmp_path: Path) -> None:
    """A killed writer leaves its newest complete checkpoint, usable."""
    delays = random.Random(0)
    like = {str(i): np.zeros((50, 100), np.int64) for i in range(20)}
    for _ in range(3):
        writer = subprocess.Popen(
            [sys.executable, "-c", _SAVE_FOR_EVER, str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
        )
        assert writer.stdout is not None
        confirmed = int(writer.stdout.readline())
        time.sleep(delays.uniform(0.2, 0.8))
        writer.send_signal(signal.SIGKILL)
        confirmed = int(([confirmed, *writer.stdout.read().split()])[-1])
        writer.wait()
        writer.stdout.close()
        with CheckpointStore(tmp_path, keep=1) as store:
            step = store.latest_step()
            assert step is not None
            assert step in (confirmed, confirmed + 1)
            assert store.metadata(step) == {"step": step}
            for name, array in store.restore(step, like).items():
                np.testing.assert_array_equal(array, step + int(name))


def test_frozen_dataclasses_and_named_tuples_keep_their_class(tmp_path: Path) -> None:
    tree = _tree()
    with CheckpointStore(tmp_path, keep=1) as store:
        store.save(0, tree, {})
        restored = store.restore(0, tree)
    assert dataclasses.is_dataclass(restored["clock"])
    assert isinstance(restored["clock"], Clock)
    assert restored["moments"].count == 7


def test_newest_metadata_needs_no_manager(tmp_path: Path) -> None:
    assert newest_metadata(tmp_path / "none") is None
    with CheckpointStore(tmp_path / "saved", keep=3) as store:
        for step in (9, 10):
            store.save(step, {"x": np.zeros(2)}, {"env_steps": 5 * step})
    assert newest_metadata(tmp_path / "saved") == {"env_steps": 50}
    # One that is just written, and a half one, do not count.
    (tmp_path / "saved" / "11.orbax-checkpoint-tmp").mkdir()
    (tmp_path / "saved" / "12").mkdir()
    assert newest_metadata(tmp_path / "saved") == {"env_steps": 50}
