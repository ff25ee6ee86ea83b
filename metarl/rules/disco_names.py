"""The published names of Disco's meta-parameters, and ours.

The released weights (google-deepmind/disco_rl) are named by Haiku module paths, and
layers shared by all actions are width-1 convolutions with a leading axis of 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from metarl.errors import UserError
from metarl.types import Params

_SHARED = {
    "y_embedding/hidden": "mlp/~/linear_0",
    "y_embedding/out": "mlp/~/linear_1",
    "z_embedding/hidden": "mlp_1/~/linear_0",
    "z_embedding/out": "mlp_1/~/linear_1",
    "action_embedding/layer_0": "sequential/conv1_d",
    "action_embedding/layer_1": "sequential/conv1_d_1",
}
_TRAJECTORY = {
    **_SHARED,
    "lstm": "lstm/linear",
    "gate": "linear",
    "meta_input": "linear_1",
    "y_target": "linear_2",
    "z_target": "linear_3",
    "policy_embedding": "sequential_1/conv1_d",
    "policy_target": "linear_4",
}
_LIFETIME = {**_SHARED, "input": "mlp_2/~/linear_0", "lstm": "lstm/linear"}

PUBLISHED_NAMES: dict[str, str] = {
    f"{ours}/{module}/{leaf}": f"{theirs}/{published}/{leaf}"
    for ours, theirs, table in (
        ("trajectory", "lstm", _TRAJECTORY),
        ("lifetime", "lstm/~/meta_lstm/~unroll", _LIFETIME),
    )
    for module, published in table.items()
    for leaf in ("w", "b")
}
"""Our path, joined by slashes, to the published name; 42 tensors."""


def from_published(arrays: Mapping[str, np.ndarray]) -> Params:
    """Return meta-parameters from arrays under their published names.

    Raises:
      UserError: a tensor is missing or unknown.
    """
    names = set(PUBLISHED_NAMES.values())
    if missing := sorted(names - set(arrays)):
        raise UserError(f"weights: tensor '{missing[0]}' is missing")
    if unknown := sorted(set(arrays) - names):
        raise UserError(
            f"weights: unknown tensor '{unknown[0]}'; allowed are the {len(names)} of "
            "the published Disco meta-network"
        )
    tree: dict[str, Any] = {}
    for ours, published in PUBLISHED_NAMES.items():
        array = np.asarray(arrays[published])
        *modules, leaf = ours.split("/")
        node = tree
        for module in modules:
            node = node.setdefault(module, {})
        node[leaf] = array[0] if array.ndim == 3 else array
    return tree


def to_published(params: Params) -> dict[str, np.ndarray]:
    """Return meta-parameters as arrays under their published names."""
    arrays = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        name = PUBLISHED_NAMES["/".join(key.key for key in path)]
        array = np.asarray(leaf)
        arrays[name] = array[None] if "conv1_d" in name and array.ndim == 2 else array
    return arrays
