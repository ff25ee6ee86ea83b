"""Checkpoints to go on from: any tree of arrays, through Orbax, never half a one.

A host module and a leaf of the import graph: `train` decides what is in the tree.
Rules to *use* are another thing and live in `rule_files`.

Orbax stores neither empty arrays nor PRNG keys, Python scalars or the structure of
a dataclass. So the tree is flattened here: its non-empty leaves go to Orbax as plain
numpy arrays under running numbers, and an index beside them says for each leaf its
path, kind, dtype and shape.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp  # type: ignore[import-untyped]

from metarl.errors import UserError

Tree = TypeVar("Tree")
_FORMAT = 1
_PYTHON_SCALARS = {"bool": bool, "int": int, "float": float}


@dataclasses.dataclass(frozen=True)
class AsStored:
    """A leaf of `like` that takes whatever shape was stored, as a numpy array."""


AS_STORED = AsStored()


@dataclasses.dataclass(frozen=True)
class _Leaf:
    """One row of the index.

    Attributes:
      path: where the leaf stands, in JAX's notation.
      kind: `array`, `key` or the name of a Python scalar type.
      dtype: of the stored array.
      shape: of the stored array; of the key data for PRNG keys.
      prng: the implementation of a PRNG key, else "".
    """

    path: str
    kind: str
    dtype: str
    shape: tuple[int, ...]
    prng: str = ""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to store but the shape."""
        return 0 in self.shape

    def __str__(self) -> str:
        shape = ", ".join(str(size) for size in self.shape)
        prng = f"{self.prng} key " if self.prng else ""
        return f"{prng}{self.dtype}[{shape}]"


def newest_metadata(directory: Path) -> dict[str, object] | None:
    """Return what was stored beside the newest checkpoint; None where there is none.

    Without Orbax, whose manager cleans up what another process may be writing.
    """
    saved = [path for path in directory.glob("*") if path.name.isdigit()]
    for path in sorted(saved, key=lambda path: -int(path.name)):
        with contextlib.suppress(OSError, ValueError, KeyError):
            index = json.loads((path / "index" / "metadata").read_text("utf-8"))
            return dict(index["metadata"])
    return None


class CheckpointStore:
    """The checkpoints of one run, the newest `keep` of them.

    Saving is asynchronous and atomic: a checkpoint is written beside the others and
    renamed when complete, so that a kill at any moment leaves the ones before.
    """

    def __init__(self, directory: Path | str, *, keep: int = 2) -> None:
        """Open or make ``directory`` and remove what a killed save left there.

        Args:
          directory: of this run's checkpoints alone.
          keep: how many of the newest checkpoints stay.
        """
        if keep < 1:
            raise UserError(f"checkpoint.keep: {keep} is not allowed; at least 1")
        self._manager = ocp.CheckpointManager(
            Path(directory).absolute(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=ocp.checkpoint_managers.LatestN(keep),
                cleanup_tmp_directories=True,
            ),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def save(self, step: int, tree: object, metadata: dict[str, object]) -> None:
        """Begin to store ``tree`` as ``step``; waits only for the save before it.

        Every array is copied before this returns, so the caller may donate or
        overwrite all of them at once. A step that is stored already stays as it is.

        Args:
          step: meta-steps done.
          tree: arrays (JAX, numpy, PRNG keys) and Python scalars, in any pytree.
          metadata: anything JSON can hold.

        Raises:
          OSError and others: of the save before this one, if that failed.
        """
        self.wait()
        if step in self._manager.all_steps():
            return
        leaves, arrays = _flatten(tree)
        index = {
            "format": _FORMAT,
            "leaves": [dataclasses.asdict(leaf) for leaf in leaves],
            "metadata": json.loads(json.dumps(metadata)),  # a copy; refuses non-JSON
        }
        items: dict[str, ocp.args.CheckpointArgs] = {"index": ocp.args.JsonSave(index)}
        if arrays:  # Orbax refuses to store an empty tree
            items["arrays"] = ocp.args.StandardSave(arrays)
        saved = self._manager.save(step, args=ocp.args.Composite(**items), force=True)
        assert saved, f"checkpoint {step} was not accepted"

    def wait(self) -> None:
        """Return once the last save is on disk; raise what went wrong with it."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Finish the last save and free Orbax's threads."""
        self.wait()
        self._manager.close()

    def latest_step(self) -> int | None:
        """Return the newest complete checkpoint, None where there is none."""
        self.wait()
        step: int | None = self._manager.latest_step()
        return step

    def metadata(self, step: int) -> dict[str, object]:
        """Return the metadata saved with ``step``."""
        metadata = self._index(step)["metadata"]
        assert isinstance(metadata, dict)
        return metadata

    def restore(self, step: int, like: Tree) -> Tree:
        """Return the tree saved as ``step``, bit for bit.

        Args:
          step: one that `latest_step` named.
          like: a tree of the same structure that says what each leaf becomes:
            `jax.ShapeDtypeStruct` or `jax.Array`, a JAX array on that leaf's
            sharding (where it has one); a numpy array, a numpy array; a Python
            scalar, the same; `AS_STORED`, a numpy array of whatever shape was
            stored. Dtypes and, but for the last, shapes must agree.

        Raises:
          UserError: ``like`` has other leaves than were saved.
        """
        rows = self._index(step)["leaves"]
        assert isinstance(rows, list)
        stored = [_Leaf(**{**row, "shape": tuple(row["shape"])}) for row in rows]
        arrays: dict[str, np.ndarray] = {}
        if not all(leaf.is_empty for leaf in stored):
            items = ocp.args.Composite(arrays=ocp.args.StandardRestore())
            arrays = self._manager.restore(step, args=items)["arrays"]
        wanted, treedef = jax.tree_util.tree_flatten_with_path(like)
        paths = [jax.tree_util.keystr(path) for path, _ in wanted]
        if paths != [leaf.path for leaf in stored]:
            raise UserError(_other_leaves(step, paths, [leaf.path for leaf in stored]))
        leaves = []
        for number, (leaf, (_, target)) in enumerate(zip(stored, wanted, strict=True)):
            if leaf.is_empty:
                array = np.zeros(leaf.shape, np.dtype(leaf.dtype))
            else:
                array = np.asarray(arrays[str(number)])
            leaves.append(_place(leaf, array, target, step))
        tree: Tree = jax.tree_util.tree_unflatten(treedef, leaves)
        return tree

    def _index(self, step: int) -> dict[str, object]:
        self.wait()  # the step may be the one that is being written
        items = ocp.args.Composite(index=ocp.args.JsonRestore())
        index = self._manager.restore(step, args=items)["index"]
        assert isinstance(index, dict)
        if index["format"] != _FORMAT:
            raise UserError(
                f"checkpoint {step} has format {index['format']!r}, this version of "
                f"metarl reads {_FORMAT}"
            )
        return index


def _flatten(tree: object) -> tuple[list[_Leaf], dict[str, np.ndarray]]:
    """Return the index of ``tree`` and copies of its non-empty arrays by number."""
    with_paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    raw = [jax.random.key_data(x) if _is_key(x) else x for _, x in with_paths]
    leaves: list[_Leaf] = []
    arrays: dict[str, np.ndarray] = {}
    # device_get starts all transfers before it waits for the first.
    for number, ((path, original), host) in enumerate(
        zip(with_paths, jax.device_get(raw), strict=True)
    ):
        # np.array copies: on CPU the host's view is the device's own buffer, which a
        # donated update would overwrite while Orbax still reads it.
        array = np.array(host, order="C")
        kind, prng = "array", ""
        if _is_key(original):
            kind, prng = "key", str(jax.random.key_impl(original))
        elif type(original).__name__ in _PYTHON_SCALARS:
            kind = type(original).__name__
        name = jax.tree_util.keystr(path)
        if array.dtype.hasobject or array.dtype.kind in "USMm":
            raise TypeError(f"checkpoint leaf {name} is no array: {original!r}")
        leaf = _Leaf(name, kind, array.dtype.name, array.shape, prng)
        leaves.append(leaf)
        if not leaf.is_empty:
            arrays[str(number)] = array
    return leaves, arrays


def _is_key(leaf: object) -> bool:
    return isinstance(leaf, jax.Array | jax.ShapeDtypeStruct) and jnp.issubdtype(
        leaf.dtype, jax.dtypes.prng_key
    )


def _place(leaf: _Leaf, array: np.ndarray, target: object, step: int) -> object:
    """Return ``array`` in the form that ``target`` asks for, or raise UserError."""
    if isinstance(target, AsStored):
        return array
    if leaf.kind in _PYTHON_SCALARS:
        if type(target).__name__ == leaf.kind:
            return _PYTHON_SCALARS[leaf.kind](array)
        raise UserError(_other_leaf(step, leaf, type(target).__name__))
    if not isinstance(target, jax.Array | jax.ShapeDtypeStruct | np.ndarray):
        raise UserError(_other_leaf(step, leaf, type(target).__name__))
    if leaf.kind == "key":
        value = jax.random.wrap_key_data(jax.device_put(array), impl=leaf.prng)
    else:
        value = array
    if (value.dtype, value.shape) != (target.dtype, tuple(target.shape)):
        shape = ", ".join(str(size) for size in target.shape)
        raise UserError(_other_leaf(step, leaf, f"{target.dtype}[{shape}]"))
    if isinstance(target, np.ndarray):
        return array
    # An array that was never pinned to a device must not become so: jit would
    # compile anew.
    pinned = not isinstance(target, jax.Array) or target.committed
    return jax.device_put(value, target.sharding if pinned else None)


def _other_leaf(step: int, leaf: _Leaf, expected: str) -> str:
    return f"checkpoint {step}: {leaf.path} is {leaf}, expected {expected}"


def _other_leaves(step: int, expected: list[str], stored: list[str]) -> str:
    """Return one line naming the first leaf on either side that the other lacks."""
    missing = sorted(set(expected) - set(stored))
    unknown = sorted(set(stored) - set(expected))
    if missing:
        return f"checkpoint {step} has no leaf {missing[0]} ({len(missing)} missing)"
    if unknown:
        return (
            f"checkpoint {step} has a leaf that this configuration does not have: "
            f"{unknown[0]} ({len(unknown)} such)"
        )
    return f"checkpoint {step} has its leaves in another order"
