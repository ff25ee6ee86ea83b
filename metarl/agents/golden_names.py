"""Names of the networks' tensors in DiscoRL's released code, and ours.

Golden arrays name a tensor ``module/w`` or ``module/b`` by the reference's Haiku path;
our trees are ``{module: {"w", "b"}}``. Knows names only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from metarl.errors import UserError
from metarl.types import Params

Array = TypeVar("Array")

# Beginnings of module paths: theirs, ours. Heads are numbered in the order in which the
# reference builds them.
AGENT_MODULES = (
    ("mlp/~_embedding_pass/torso/~/", "torso/"),
    ("mlp/~_head_pass/torso_head/~/", "logits/"),
    ("mlp/~_head_pass/torso_head_1/~/", "y/"),
    ("mlp/linear/", "action_model/cell/"),
    ("mlp/action_cond/linear/", "action_model/lstm/"),
    ("mlp/mlp/~/", "action_model/z/"),
    ("mlp/mlp_1/~/", "action_model/aux_pi/"),
    ("mlp/mlp_2/~/", "action_model/q/"),
)
VALUE_MODULES = (
    ("value_fn/~_embedding_pass/torso/~/", "torso/"),
    ("value_fn/~_head_pass/torso_head/~/", "value/"),
)
Modules = tuple[tuple[str, str], ...]


def agent_from_golden(arrays: Mapping[str, Array]) -> dict[str, dict[str, Array]]:
    """Return the agent's parameter tree of arrays by their golden names."""
    return _from_golden(arrays, AGENT_MODULES)


def agent_to_golden(params: Params) -> dict[str, object]:
    """Return the agent's parameters, or a tree like them, by their golden names."""
    return _to_golden(params, AGENT_MODULES)


def value_from_golden(arrays: Mapping[str, Array]) -> dict[str, dict[str, Array]]:
    """Return the value function's parameter tree of arrays by their golden names."""
    return _from_golden(arrays, VALUE_MODULES)


def value_to_golden(params: Params) -> dict[str, object]:
    """Return the value function's parameters by their golden names."""
    return _to_golden(params, VALUE_MODULES)


def _from_golden(
    arrays: Mapping[str, Array], modules: Modules
) -> dict[str, dict[str, Array]]:
    params: dict[str, dict[str, Array]] = {}
    for name, array in arrays.items():
        module, leaf = _rename(name, modules).rsplit("/", 1)
        params.setdefault(module, {})[leaf] = array
    return params


def _to_golden(params: Params, modules: Modules) -> dict[str, object]:
    back = tuple((ours, theirs) for theirs, ours in modules)
    arrays = {}
    for module, leaves in params.items():
        assert isinstance(leaves, Mapping)
        for leaf, array in leaves.items():
            arrays[_rename(f"{module}/{leaf}", back)] = array
    return arrays


def _rename(name: str, modules: Modules) -> str:
    for before, after in modules:
        if name.startswith(before):
            return after + name.removeprefix(before)
    raise UserError(
        f"tensor '{name}' belongs to no known module; known are "
        + ", ".join(repr(before) for before, _ in modules)
    )
