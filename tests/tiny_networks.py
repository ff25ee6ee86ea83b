"""Tiny networks, the heads that they have, and what they see."""

from __future__ import annotations

import jax
import numpy as np

from metarl.config import (
    ActionModelConfig,
    ImpalaTorso,
    MLPTorso,
    NatureTorso,
    NetworkConfig,
)
from metarl.rules.base import Head, RuleSpec

TINY = NetworkConfig(
    torso=MLPTorso(hidden=(16,)),
    action_model=ActionModelConfig(lstm=8, head_hidden=(8,)),
)
IMPALA = ImpalaTorso(channels=(2, 3), blocks=1, dense=5)
NATURE = NatureTorso(channels=(3, 4), kernels=(8, 4), strides=(4, 2), dense=6)


def disco_spec(
    num_actions: int, prediction_size: int = 600, bins: int = 601
) -> RuleSpec:
    """Return the heads of DiscoRL."""
    return RuleSpec(
        heads=(
            Head("logits", num_actions),
            Head("y", prediction_size),
            Head("z", prediction_size, per_action=True),
            Head("q", bins, per_action=True),
            Head("aux_pi", num_actions, per_action=True),
        )
    )


ACTOR_CRITIC = RuleSpec(heads=(Head("logits", 3), Head("v", 7)))


def shapes(tree: object) -> object:
    return jax.tree.map(lambda x: x.shape, tree)


def pixels(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
