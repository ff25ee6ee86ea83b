"""What every test gets: CPU, one compilation cache, strict shapes, fixed seeds."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

# Before JAX is imported: tests run on CPU, whatever the machine has.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("WANDB_MODE", "offline")

import jax
import numpy as np
import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

from metarl import runtime

# Pure array functions, whose annotated shapes are checked while testing. Modules with
# pytree classes stay out: their fields also hold prefix trees, keys and shape structs.
SHAPE_CHECKED = ("metarl.returns",)
install_import_hook(list(SHAPE_CHECKED), "beartype.beartype")

# As the commands do it: what they start in tests computes the same bits.
runtime.spare_compiler_memory()

# The same examples every time, however slow the machine.
settings.register_profile("metarl", deadline=None, derandomize=True)
settings.load_profile("metarl")

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(CACHE / "metarl" / "xla"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@pytest.fixture(autouse=True)
def _fixed_seeds() -> None:
    """Make the global generators start every test in the same state."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002, TID251 - for third-party code that draws from it


@pytest.fixture(autouse=True, scope="module")
def _few_memory_maps() -> Iterator[None]:
    """Forget compiled programs between files before the process has too many."""
    yield
    runtime.forget_programs()


@pytest.fixture
def x64() -> Iterator[None]:
    """Compute in float64 for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder with the reference files (golden arrays, published weights)."""
    value = os.environ.get("METARL_REFERENCE")
    if not value:
        pytest.skip(
            "METARL_REFERENCE is not set: no folder with golden/disco103 and data"
        )
    folder = Path(value)
    if not (folder / "golden" / "disco103").is_dir():
        pytest.skip(f"METARL_REFERENCE={value} has no folder golden/disco103")
    return folder
