"""Set up JAX once, before its first use: platform and cache of compiled programs.

Called by the commands with the `runtime` section; a library user need not call it.
Imports JAX only when called.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

from metarl.config import RuntimeConfig
from metarl.errors import UserError

CACHE_OPTION = "jax_compilation_cache_dir"
MIN_COMPILE_S = 0.5
"""Programs that compile faster are not kept: reading them back saves nothing."""


def cache_dir() -> Path:
    """Return the folder of compiled programs, by the XDG convention."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "metarl" / "xla"


def configure(runtime: RuntimeConfig) -> None:
    """Apply ``runtime`` to JAX and start its backend.

    Args:
      runtime: `auto` keeps JAX's own choice (and ``JAX_PLATFORMS``). A cache folder
        that the user chose for JAX is kept too.

    Raises:
      UserError: the platform asked for is not there.
    """
    import jax

    if runtime.platform == "cpu":
        jax.config.update("jax_platforms", "cpu")
    elif runtime.platform == "gpu":
        # The CPU stays available beside the GPU, for what must run on the host.
        jax.config.update("jax_platforms", "cuda,cpu")
    if runtime.compilation_cache and getattr(jax.config, CACHE_OPTION) is None:
        jax.config.update(CACHE_OPTION, str(cache_dir()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_S)
    try:
        backend = jax.default_backend()
    except RuntimeError as error:
        raise _unavailable(runtime.platform, str(error).splitlines()[0]) from error
    if runtime.platform not in ("auto", backend):
        raise _unavailable(runtime.platform, f"JAX runs on {backend}")


def release_memory() -> None:
    """Give back to the system what the compiler has freed: about 1 GiB for a meta-step.

    The C library of Linux keeps it otherwise; elsewhere this does nothing.
    """
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # not with musl
        if trim is not None:
            trim(0)


def _unavailable(platform: str, reason: str) -> UserError:
    return UserError(
        f"runtime.platform={platform}: not available here ({reason}); allowed: auto, "
        "cpu, and gpu where the package is installed with its extra `cuda`"
    )
