"""A rule from outside the package, checked against the interface while it is traced.

Between a user's rule and `agents/build.py`. Knows shapes alone; what is compiled is the
rule itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metarl.errors import UserError
from metarl.rules.base import (
    REGULARIZERS,
    Head,
    Metrics,
    RuleSpec,
    RuleState,
    Targets,
    UpdateRule,
)
from metarl.types import Clock, Experience, Outputs, Params, Transitions

_PACKAGE = __name__.partition(".")[0]


def checked(rule: UpdateRule) -> UpdateRule:
    """Return a rule that says in one line what is not as `UpdateRule` asks.

    NumPy's broadcasting would accept a loss ``[B]``, and learn something else. Equal
    rules give equal ones, so that what is compiled for one serves another. The
    package's own rules are returned as they are: tests check those.
    """
    if type(rule).__module__.partition(".")[0] == _PACKAGE:
        return rule
    return _Checked(rule)


@dataclasses.dataclass(frozen=True)
class _Checked(UpdateRule):
    """Passes everything on, and checks what comes back."""

    rule: UpdateRule

    def spec(self, num_actions: int) -> RuleSpec:
        spec = self.rule.spec(num_actions)
        if not isinstance(spec, RuleSpec):
            raise self._mistake(f"spec({num_actions})", _shown(spec), "a RuleSpec")
        heads = spec.heads
        if not isinstance(heads, tuple) or not all(isinstance(h, Head) for h in heads):
            raise self._mistake(
                f"spec({num_actions}).heads", _shown(heads), "a tuple of Head"
            )
        self._require_heads(heads, num_actions)
        return spec

    def init_params(self, key: jax.Array) -> Params:
        return self.rule.init_params(key)

    def init_state(self) -> RuleState:
        return self.rule.init_state()

    def act(
        self, outputs: Outputs, clock: Clock, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        given = self.rule.act(outputs, clock, key)
        actions, logits = self._parts("act", given, ("actions", "logits"))
        batch = jax.tree.leaves(outputs)[0].shape[:1]
        self._require("act", "actions", actions, batch, "[B]")
        self._require("act", "behaviour logits", logits, batch, "[B, A]", more=1)
        return actions, logits

    def targets(
        self,
        meta_params: Params,
        rule_state: RuleState,
        experience: Experience,
        key: jax.Array,
    ) -> tuple[Targets, RuleState, Metrics]:
        given = self.rule.targets(meta_params, rule_state, experience, key)
        names = ("targets", "rule state", "scalars to log")
        targets, state, metrics = self._parts("targets", given, names)
        lead = experience.transitions.valid.shape
        for name, value in self._items("targets", "targets", targets):
            what = f"target '{name}'"
            self._require("targets", what, value, lead, "[T, B, ...]", more=None)
        for name, value in self._items("targets", "scalars to log", metrics):
            self._require("targets", f"'{name}' to log", value, (), "a scalar")
        if _shapes(state) != _shapes(rule_state):
            raise self._mistake(
                "targets: the rule state", _shown(state), f"{_shown(rule_state)} again"
            )
        return targets, state, metrics

    def loss(
        self,
        outputs: Outputs,
        peers: Outputs,
        targets: Targets,
        transitions: Transitions,
    ) -> tuple[jax.Array, Metrics]:
        given = self.rule.loss(outputs, peers, targets, transitions)
        loss, metrics = self._parts("loss", given, ("loss", "values to log"))
        lead = transitions.valid.shape
        self._require("loss", "loss", loss, lead, "[T, B], one of each transition")
        if not jnp.issubdtype(jnp.result_type(loss), jnp.floating):
            # Its gradient is zero, and nothing would be learned.
            raise self._mistake(
                "loss: the loss", _shown(loss), "floating-point numbers"
            )
        for name, value in self._items("loss", "values to log", metrics):
            what = f"'{name}' to log"
            self._require("loss", what, value, lead, "[T, B, ...]", more=None)
        return loss, metrics

    def regularizers(self, targets: Targets, experience: Experience) -> Metrics:
        given = self.rule.regularizers(targets, experience)
        for name, value in self._items("regularizers", "terms", given):
            if not (name.startswith("squared_mean") or name in REGULARIZERS):
                raise self._mistake(
                    "regularizers: a term",
                    f"'{name}'",
                    f"one that a weight is known of: squared_mean_*, "
                    f"{', '.join(REGULARIZERS)}",
                )
            self._require("regularizers", f"term '{name}'", value, (), "a scalar")
        return given

    # --- What is refused ----------------------------------------------------------

    def _parts(
        self, method: str, given: object, names: tuple[str, ...]
    ) -> tuple[Any, ...]:
        if not isinstance(given, tuple) or len(given) != len(names):
            raise self._mistake(method, _shown(given), f"({', '.join(names)})")
        return given

    def _items(self, method: str, what: str, given: object) -> list[tuple[str, object]]:
        if not isinstance(given, Mapping):
            raise self._mistake(f"{method}: the {what}", _shown(given), "a dict")
        return list(given.items())

    def _require(
        self,
        method: str,
        what: str,
        value: object,
        lead: tuple[int, ...],
        form: str,
        *,
        more: int | None = 0,
    ) -> None:
        """Refuse an array whose shape is not ``lead`` and ``more`` axes behind it."""
        shape = _shape(value)
        fits = shape is not None and shape[: len(lead)] == lead
        if shape is not None and more is not None:
            fits = fits and len(shape) == len(lead) + more
        if not fits:
            numbers = f" with [{', '.join(map(str, lead))}]" if lead else ""
            raise self._mistake(
                f"{method}: the {what}", _shown(value), f"{form}{numbers} here"
            )

    def _require_heads(self, heads: tuple[Head, ...], num_actions: int) -> None:
        """Refuse heads that are no network's outputs, or that `act` cannot act by."""
        where = f"spec({num_actions}).heads"
        names = [head.name for head in heads]
        if not names or len(set(names)) < len(names):
            given = f"({', '.join(names)})"
            raise self._mistake(where, given, "one or more, each name once")
        if type(self.rule).act is not UpdateRule.act:
            return
        # Rows per action would be as many policies.
        sizes = {h.name: h.size for h in heads if not h.per_action}
        if sizes.get("logits") != num_actions:
            raise self._mistake(
                where,
                f"({', '.join(f'{h.name}: {h.size}' for h in heads)})",
                f"Head('logits', {num_actions}), which actions are drawn from, or an "
                "`act` of the rule's own",
            )

    def _mistake(self, where: str, given: str, needed: str) -> UserError:
        name = type(self.rule).__name__
        return UserError(f"rule {name}: {where} is {given} (needed: {needed})")


def _shape(value: object) -> tuple[int, ...] | None:
    """Return the shape of an array or a number; None of anything else."""
    if isinstance(value, int | float):
        return ()
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return tuple(value.shape)
    return None


def _shapes(tree: object) -> object:
    leaves, structure = jax.tree.flatten(tree)
    return structure, [_shape(leaf) for leaf in leaves]


def _shown(value: object) -> str:
    """Return a value as its shapes: `float32[5, 4]`, `{'adv': float32[]}`."""
    shape = _shape(value)
    if shape is None:
        shown = jax.tree.map(
            lambda x: x if _shape(x) is None else _Text(_shown(x)), value
        )
        text = " ".join(str(shown).split())
        return text if len(text) <= 100 else text[:97] + "..."
    kind = np.dtype(getattr(value, "dtype", type(value))).name
    return f"{kind}[{', '.join(map(str, shape))}]"


class _Text(str):
    """Text that stands in a container without quotes."""

    def __repr__(self) -> str:
        """Return it as it is."""
        return str(self)
