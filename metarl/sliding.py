"""Windows that slide: the newest N updates of a stack, and the agents they began with.

Under `stack_training.py`. Of every meta-step the agents before one of its updates are
kept, which are those that a later window begins with: N / s of them. What is older than
a group's agents is marked as such, for the window must not cross their birth.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from metarl.agents.agent import AgentState
from metarl.checkpoint import AS_STORED
from metarl.config import MetaConfig
from metarl.meta.inner_loop import Window
from metarl.meta.objective import ValueState
from metarl.types import Rollout, Transitions, pytree


@pytree
class _Record:
    """The newest N updates; oldest first."""

    rollouts: Rollout  # [G, N, K, T, B]
    keys: jax.Array  # [G, N]
    valid: jax.Array  # bool[G, N] made by the present agents
    starts: tuple[AgentState, ...]  # [G, K]; the first before the oldest update


class SlidingWindow:
    """What a stack's last updates were, for windows of which s are new."""

    def __init__(self, meta: MetaConfig) -> None:
        """Remember nothing yet.

        Args:
          meta: N and s.
        """
        self._updates, slide = meta.inner_updates, meta.acted_updates
        # Of each meta-step, the update before which its agents are kept: the one that
        # the windows of later meta-steps begin with.
        self.kept_before = -self._updates % slide
        self._num_starts = math.ceil(self._updates / slide)
        self._record: _Record | None = None

    def extend(
        self,
        rollouts: list[Rollout],
        keys: list[jax.Array],
        *,
        born: AgentState,
        kept: AgentState,
    ) -> None:
        """Take in the s updates of a meta-step, and forget as many.

        Args:
          rollouts: ``[G, K, T, B]`` of each; the `env_steps` of the last with what was
            acted for validation, by which agents age too.
          keys: ``[G]`` of each.
          born: agents before the first update of all; only read then.
          kept: agents before update `kept_before` of this meta-step.
        """
        if self._record is None:
            record = _begin(rollouts[0], keys[0], self._updates)
            starts = (born,) * self._num_starts
            self._record = dataclasses.replace(record, starts=starts)
            # Compiled here, and not when the first life ends.
            self.forget(born, np.zeros(keys[0].shape, np.bool_))
        record = self._record
        starts = (*record.starts[1:], kept)
        without = dataclasses.replace(record, starts=())
        record = _extended(without, rollouts, keys)
        self._record = dataclasses.replace(record, starts=starts)

    def window(self, values: ValueState, validation: Rollout) -> Window:
        """Return the newest N updates.

        Args:
          values: value functions before the first of them.
          validation: ``[G, K, T', B]``, acted after the last.
        """
        record = self._known
        return Window(
            agents=record.starts[0],
            values=values,
            rollouts=record.rollouts,
            keys=record.keys,
            validation=validation,
            valid=record.valid,
        )

    def forget(self, newborn: AgentState, ended: npt.NDArray[np.bool_]) -> None:
        """Let ``newborn`` agents begin anew in the groups whose life ``ended``."""
        if self._record is not None:
            record = self._record
            starts, valid = _forgotten(
                record.starts, record.valid, newborn, jax.device_put(ended)
            )
            self._record = dataclasses.replace(record, starts=starts, valid=valid)

    @property
    def _known(self) -> _Record:
        assert self._record is not None, "there was no update yet"
        return self._record

    # --- Checkpoints --------------------------------------------------------------

    def tree(self) -> dict[str, Any]:
        """Return all that `restore` needs, after an update or more."""
        record = self._known
        return {
            "rollouts": record.rollouts,
            "keys": jax.random.key_data(record.keys),
            "valid": record.valid,
            "starts": record.starts,
        }

    def like(self, agents: AgentState) -> dict[str, Any]:
        """Return what `tree` looks like, given any agents of the stack."""
        stored: Any = AS_STORED
        names = [field.name for field in dataclasses.fields(Transitions)]
        columns: dict[str, Any] = dict.fromkeys(names, stored)
        columns["behaviour_log_pi_a"] = None  # which rollouts of pools lack
        rollouts = Rollout(stored, Transitions(**columns), stored, stored, stored)
        return {
            "rollouts": rollouts,
            "keys": stored,
            "valid": stored,
            "starts": (agents,) * self._num_starts,
        }

    def restore(self, tree: Mapping[str, Any]) -> None:
        """Go on from what `tree` returned."""
        rollouts, keys, valid = jax.device_put(
            (tree["rollouts"], tree["keys"], tree["valid"])
        )
        keys = jax.random.wrap_key_data(keys)
        self._record = _Record(rollouts, keys, valid, tuple(tree["starts"]))


@jax.jit
def _extended(
    record: _Record, rollouts: list[Rollout], keys: list[jax.Array]
) -> _Record:
    """Return a record of equally many updates, of which these are the newest."""
    slide = len(keys)

    def move(old: jax.Array, *new: jax.Array) -> jax.Array:
        return jnp.concatenate([old[:, slide:], jnp.stack(new, axis=1)], axis=1)

    made = [jnp.ones(key.shape, jnp.bool_) for key in keys]
    return _Record(
        rollouts=jax.tree.map(move, record.rollouts, *rollouts),
        keys=move(record.keys, *keys),
        valid=move(record.valid, *made),
        starts=(),
    )


def _begin(rollout: Rollout, key: jax.Array, updates: int) -> _Record:
    """Return a record of updates that nobody has made: real data, but none counts."""

    @jax.jit
    def repeat(rollout: Rollout, key: jax.Array) -> _Record:
        def of(x: jax.Array) -> jax.Array:
            return jnp.broadcast_to(x[:, None], (x.shape[0], updates, *x.shape[1:]))

        valid = jnp.zeros((key.shape[0], updates), jnp.bool_)
        return _Record(jax.tree.map(of, rollout), of(key), valid, ())

    return repeat(rollout, key)


@jax.jit
def _forgotten(
    starts: tuple[AgentState, ...],
    valid: jax.Array,
    newborn: AgentState,
    ended: jax.Array,
) -> tuple[tuple[AgentState, ...], jax.Array]:
    """Return starts and marks after a birth in the groups that ``ended``."""

    def choose(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(ended.reshape(-1, *[1] * (old.ndim - 1)), new, old)

    new_starts = tuple(jax.tree.map(choose, newborn, start) for start in starts)
    return new_starts, valid & ~ended[:, None]
