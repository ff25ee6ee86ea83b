"""A network of the user's own, checked against a rule's heads while it is traced.

Knows shapes and dtypes alone; must not import Haiku or the package's own networks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from metarl.errors import UserError, nearest
from metarl.rules.base import Head
from metarl.types import Network, Outputs, Params

Init = Callable[[jax.Array, jax.Array], Any]
"""From a key and observations ``[N, ...]`` to parameters, in any pytree."""

Apply = Callable[[Any, jax.Array], Outputs]
"""From parameters and observations ``[N, ...]`` to the outputs by head name."""

ApplyTaken = Callable[[Any, jax.Array, jax.Array], tuple[Outputs, Outputs]]
"""The optional third function; see `metarl.types.Network`."""


def check_network(
    network: tuple[Init, Apply] | Network,
    heads: tuple[Head, ...],
    num_actions: int,
    observations: jax.Array,
) -> Network:
    """Return ``network`` with functions that check what they return when traced.

    Equal arguments give equal functions, so that what is compiled for one serves
    another.

    Args:
      network: the user's.
      heads: of the rule's spec.
      num_actions: A.
      observations: ``[N, ...]`` of any content; the functions are traced on these.

    Raises:
      UserError: the network is none, lacks a head, or has one of another shape.
    """
    init, apply, apply_taken = _functions(network)
    checked = Network(
        _Init(init),
        _Apply(apply, heads, num_actions),
        None if apply_taken is None else _ApplyTaken(apply_taken, heads, num_actions),
    )
    params = jax.eval_shape(checked.init, jax.random.key(0), observations)
    jax.eval_shape(checked.apply, params, observations)
    if checked.apply_taken is not None:
        # Fewer actions than observations, as in an update.
        one_more = jax.ShapeDtypeStruct(
            (observations.shape[0] + 1, *observations.shape[1:]), observations.dtype
        )
        actions = jax.ShapeDtypeStruct(observations.shape[:1], jnp.int32)
        jax.eval_shape(checked.apply_taken, params, one_more, actions)
    return checked


def _functions(network: tuple[Init, Apply] | Network) -> Network:
    if isinstance(network, Network):
        return network
    if isinstance(network, tuple) and len(network) == 2 and all(map(callable, network)):
        return Network(*network)
    raise UserError(
        "network: a pair of functions (init, apply) is needed, got "
        f"{type(network).__name__}"
    )


@dataclasses.dataclass(frozen=True)
class _Init:
    """The user's `init`, whose parameters are checked while it is traced."""

    init: Init

    def __call__(self, key: jax.Array, observations: jax.Array) -> Params:
        params = self.init(key, observations)
        for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
            # NumPy's floats: Adam's moments need the bits, and files know no others.
            if jnp.result_type(leaf).kind != "f":
                raise UserError(
                    f"network: parameter {jax.tree_util.keystr(path)} is "
                    f"{jnp.result_type(leaf)} (allowed: float32, float64, float16)"
                )
        # A weakly typed leaf would come back from the first update as another type,
        # and compile the second anew.
        return jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(x)), params)


@dataclasses.dataclass(frozen=True)
class _Apply:
    """The user's `apply`, whose outputs are checked while it is traced."""

    apply: Apply
    heads: tuple[Head, ...]
    num_actions: int

    def __call__(self, params: Params, observations: jax.Array) -> Outputs:
        """Return the heads that the rule needs and no other."""
        outputs = self.apply(params, observations)
        shapes = _shapes(self.heads, self.num_actions, observations)
        return _fitting("apply", outputs, shapes, rows="observations")


@dataclasses.dataclass(frozen=True)
class _ApplyTaken:
    """The user's `apply_taken`, likewise."""

    apply_taken: ApplyTaken
    heads: tuple[Head, ...]
    num_actions: int

    def __call__(
        self, params: Params, observations: jax.Array, actions: jax.Array
    ) -> tuple[Outputs, Outputs]:
        """Return the heads that the rule needs, and the rows that its loss reads."""
        result = self.apply_taken(params, observations, actions)
        if not isinstance(result, tuple) or len(result) != 2:
            raise UserError(
                f"network: apply_taken returned a {type(result).__name__}, a pair "
                "(outputs, rows of the actions taken) is needed"
            )
        outputs, taken = result
        shapes = _shapes(self.heads, self.num_actions, observations)
        rows = {
            head.name: [actions.shape[0], head.size]
            for head in self.heads
            if head.taken
        }
        return (
            _fitting("apply_taken", outputs, shapes, rows="observations"),
            _fitting("apply_taken's row of the action", taken, rows, rows="actions"),
        )


def _shapes(
    heads: tuple[Head, ...], num_actions: int, observations: jax.Array
) -> dict[str, list[int]]:
    """Return the shape of every output on ``observations``."""
    return {
        head.name: [
            observations.shape[0],
            *((num_actions, head.size) if head.per_action else (head.size,)),
        ]
        for head in heads
    }


def _fitting(
    source: str, outputs: object, shapes: dict[str, list[int]], *, rows: str
) -> Outputs:
    """Return those of ``outputs`` that are needed, of the shapes that are needed.

    Args:
      source: what the outputs come from.
      outputs: as the user's function returned them.
      shapes: by head name.
      rows: what the first axis counts.
    """
    if not isinstance(outputs, dict):
        raise UserError(
            f"network: {source} returned a {type(outputs).__name__}, a dict of the "
            f"heads {', '.join(shapes)} is needed"
        )
    # That of `apply` is what everybody means by a head.
    prefix = "" if source == "apply" else f"{source}: "
    for name, needed in shapes.items():
        if name not in outputs:
            raise UserError(
                f"network: {prefix}head '{name}' {needed} is missing; the network "
                f"returns {', '.join(outputs)}{nearest(name, outputs)}"
            )
        output = outputs[name]
        if list(output.shape) != needed:
            raise UserError(
                f"network: {prefix}head '{name}' has shape {list(output.shape)}, the "
                f"rule needs {needed} ({needed[0]} {rows})"
            )
        if not jnp.issubdtype(output.dtype, jnp.floating):
            raise UserError(
                f"network: {prefix}head '{name}' is {output.dtype}, the rule needs "
                "floating point"
            )
    return {name: outputs[name] for name in shapes}
