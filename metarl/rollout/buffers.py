"""Where a rollout is written step by step, and what becomes of it.

NumPy alone; the actor writes, and the device reads the same memory where it can.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from metarl.envs.tasks import PoolSpec
from metarl.rollout.memory import empty_for_device
from metarl.types import Rollout, Transitions

Buffers = dict[str, npt.NDArray[Any]]
"""By name: the fields of `Transitions` that acting knows, ``[G, K, T, B, ...]``; the
observations ``[G, K, T+1, B, ...]``; and the raw rewards."""


def empty_buffers(
    spec: PoolSpec, shape: tuple[int, int, int], *, length: int
) -> Buffers:
    """Return fresh arrays: the device may share the memory of what it is given.

    Args:
      spec: of observations and actions.
      shape: groups G, peers K, environments B.
      length: T.
    """
    groups, peers, num_envs = shape
    lead = (groups, peers, length, num_envs)
    seen = (groups, peers, length + 1, num_envs, *spec.observation_shape)
    return {
        "observations": empty_for_device(seen, spec.observation_dtype),
        "actions": np.empty(lead, np.int32),
        "behaviour_logits": np.empty((*lead, spec.num_actions), np.float32),
        "rewards": np.empty(lead, np.float32),
        "raw_rewards": np.empty(lead, np.float32),
        "is_terminal": np.empty(lead, np.bool_),
        "cut": np.empty(lead, np.bool_),
        "valid": np.empty(lead, np.bool_),
    }


def as_rollout(buffers: Buffers) -> Rollout:
    """Return full buffers with what follows from them; they are the rollout's now."""
    fields: dict[str, Any] = dict(buffers)
    returns, valid = fields.pop("raw_rewards").sum(axis=2), fields["valid"]
    fields |= {
        "learn": np.ones(valid.shape, np.float32),
        "own": np.ones(valid.shape, np.bool_),
        "returns": returns,
        "success": returns > 0,
        "env_steps": valid.sum(axis=(2, 3), dtype=np.int32),
    }
    transitions = {
        field.name: fields.pop(field.name)
        for field in dataclasses.fields(Transitions)
        if field.name in fields
    }
    return Rollout(transitions=Transitions(**transitions), **fields)
