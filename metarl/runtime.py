"""Set up JAX once, before its first use: platform, compiler, cache of its programs.

Called by the commands with the `runtime` section; a library user need not call it.
Imports JAX only when called.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from metarl.config import RuntimeConfig
from metarl.console import say
from metarl.errors import UserError

CACHE_OPTION = "jax_compilation_cache_dir"
MIN_COMPILE_S = 0.5
"""Programs that compile faster are not kept: reading them back saves nothing."""

MAX_MEMORY_MAPS = 30_000
"""After which `forget_programs` does so."""

EMITTERS = "xla_cpu_use_fusion_emitters"
"""XLA's option for kernels that are emitted one by one, each by a compiler of its own;
all of these live until the last is done: 1.2 GB for a meta-step. Without it kernels are
as fast, here and in less time."""


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

    spare_compiler_memory()
    if runtime.platform == "cpu":
        jax.config.update("jax_platforms", "cpu")
    elif runtime.platform == "gpu":
        # The CPU stays available beside the GPU, for what must run on the host.
        jax.config.update("jax_platforms", "cuda,cpu")
    if runtime.compilation_cache and getattr(jax.config, CACHE_OPTION) is None:
        _use_cache(cache_dir())
    try:
        backend = jax.default_backend()
    except RuntimeError as error:
        raise _unavailable(runtime.platform, str(error).splitlines()[0]) from error
    if runtime.platform not in ("auto", backend):
        raise _unavailable(runtime.platform, f"JAX runs on {backend}")


def spare_compiler_memory() -> None:
    """Let XLA's compiler for the CPU do with less memory; before JAX's first use.

    Through the environment, so that processes that this one starts compute the same
    bits. ``XLA_FLAGS`` that the user has set stay, and win.
    """
    import jaxlib.version

    flags = os.environ.get("XLA_FLAGS", "")
    # Later versions do not know the option, and XLA ends a process for such a one.
    if jaxlib.version.__version_info__ < (0, 11) and EMITTERS not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --{EMITTERS}=false".lstrip()


def _use_cache(folder: Path) -> None:
    """Keep compiled programs in ``folder``, or say why there will be none."""
    import jax

    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Permissions alone do not tell: the file system may be read-only or full.
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"?")
    except OSError as error:
        say(
            f"warning: {folder}: {error.strerror}; compiled programs are not kept, so "
            "the next start compiles them again (XDG_CACHE_HOME moves the folder)",
            console=Console(stderr=True),
        )
        return
    jax.config.update(CACHE_OPTION, str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_S)


def release_memory() -> None:
    """Give back to the system what the compiler has freed: 0.2 to 1 GB for a meta-step.

    The C library of Linux keeps it otherwise; elsewhere this does nothing.
    """
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # not with musl
        if trim is not None:
            trim(0)


def forget_programs() -> None:
    """Forget compiled programs where the process is on the way to having too many.

    Each keeps a few dozen memory maps on Linux, which allows a process 65,530; beyond
    them XLA crashes. To be called between works that share no programs; what is needed
    again is compiled, or read from the cache of programs, once more.
    """
    maps = Path("/proc/self/maps")
    if maps.exists() and len(maps.read_bytes().splitlines()) > MAX_MEMORY_MAPS:
        import jax

        jax.clear_caches()
        gc.collect()


def _unavailable(platform: str, reason: str) -> UserError:
    return UserError(
        f"runtime.platform={platform}: not available here ({reason}); allowed: auto, "
        "cpu, and gpu where the package is installed with its extra `cuda`"
    )
