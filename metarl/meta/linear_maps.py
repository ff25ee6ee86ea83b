"""What mixed mode needs of JAX: open heads, ways back to them, trees of floats.

Pure functions on trees of arrays; knows nothing of agents or rules.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp

from metarl.types import Params

Tree = TypeVar("Tree")

Linear = Callable[..., Any]
"""A linear function made by JAX: a pytree, whose leaves are what it has saved."""


def by_path(tree: object) -> dict[str, jax.Array]:
    """Return the leaves of a tree by their paths."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): x for path, x in leaves}


def vjp_of(
    function: Callable[[Params], object], paths: set[str], params: Params
) -> Linear:
    """Return the way back from the outputs at ``paths`` alone to ``params``."""
    if not paths:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return jax.tree_util.Partial(lambda zeros, _: zeros, zeros)

    def chosen(outputs: object) -> dict[str, jax.Array]:
        return {path: x for path, x in by_path(outputs).items() if path in paths}

    _, back = jax.vjp(lambda params: chosen(function(params)), params)

    def only(back: Linear, outputs: object) -> Params:
        (grads,) = back(chosen(outputs))
        return cast(Params, grads)

    return jax.tree_util.Partial(only, back)


def _is_float(x: jax.Array) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating)


def floats(tree: object) -> list[jax.Array]:
    """Return the leaves of floating point, in order."""
    return [x for x in jax.tree.leaves(tree) if _is_float(x)]


def with_floats(tree: Tree, floats: list[jax.Array]) -> Tree:
    """Return ``tree`` with its leaves of floating point replaced, in order."""
    new = iter(floats)
    return jax.tree.map(lambda x: next(new) if _is_float(x) else x, tree)


def open_heads(
    lesson: Callable[..., Any], arguments: tuple[Any, ...]
) -> tuple[set[str], set[str]]:
    """Return the paths of outputs, and target outputs, that the meta-gradient reads.

    The others are stopped by the rule; going back through their heads would give
    zeros at full price. Found by tracing: an identity whose backward pass takes note
    that it is part of the computation.
    """
    found: tuple[set[str], set[str]] = (set(), set())

    def noting(name: str, names: set[str]) -> Callable[[jax.Array], jax.Array]:
        @jax.custom_vjp
        def identity(x: jax.Array) -> jax.Array:
            return x

        def backward(_: None, cotangent: jax.Array) -> tuple[jax.Array]:
            names.add(name)
            return (cotangent,)

        identity.defvjp(lambda x: (x, None), backward)
        return identity

    def back(arguments: tuple[Any, ...]) -> Any:
        def probed(
            meta_params: Params, state: Any, online: Tree, target: Tree, read: Any
        ) -> Any:
            online, target = (
                jax.tree_util.tree_map_with_path(
                    lambda path, x, paths=paths: noting(
                        jax.tree_util.keystr(path), paths
                    )(x),
                    outputs,
                )
                for outputs, paths in zip((online, target), found, strict=True)
            )
            return lesson(meta_params, state, online, target, read)

        result, back, _ = jax.vjp(probed, *arguments, has_aux=True)
        return back(jax.tree.map(jnp.zeros_like, result))

    jax.eval_shape(back, arguments)
    return found
