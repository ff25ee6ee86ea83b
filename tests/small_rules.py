"""Rules on disk whose meta-parameters are few, and random."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

from metarl.config import DiscoConfig
from metarl.errors import UserError
from metarl.rule_files import Manifest, new_manifest, save_rule
from metarl.rules import make_rule
from metarl.types import Params

SMALL = DiscoConfig(
    prediction_size=4,
    num_bins=5,
    trajectory_lstm=6,
    lifetime_lstm=3,
    embedding_hidden=2,
)


def small_params(seed: int = 0, config: DiscoConfig = SMALL) -> Params:
    """Return random meta-parameters without compiling the initialiser."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: make_rule(config).init_params(jax.random.key(0)))
    return jax.tree.map(
        lambda leaf: rng.standard_normal(leaf.shape).astype(leaf.dtype), shapes
    )


def save_small(folder: Path, seed: int = 0, **manifest: object) -> Manifest:
    """Save such a rule; its manifest says what is given of it."""
    return save_rule(folder, small_params(seed), new_manifest(SMALL, **manifest))


def assert_equal(one: Params, other: Params) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text
