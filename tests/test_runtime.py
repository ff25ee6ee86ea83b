"""Where JAX runs and where compiled programs are kept."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import jax
import pytest

from metarl import runtime
from metarl.config import RuntimeConfig
from metarl.errors import UserError


@pytest.fixture
def jax_options():
    """Give each test JAX's options as they were, and put them back."""
    names = ("jax_platforms", runtime.CACHE_OPTION)
    before = {name: getattr(jax.config, name) for name in names}
    yield before
    for name, value in before.items():
        jax.config.update(name, value)


def test_the_cache_follows_the_xdg_convention(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert runtime.cache_dir() == Path("/somewhere/metarl/xla")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert runtime.cache_dir() == Path("/home/someone/.cache/metarl/xla")


@pytest.mark.usefixtures("jax_options")
def test_programs_are_kept_unless_told_otherwise(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    jax.config.update(runtime.CACHE_OPTION, None)
    runtime.configure(RuntimeConfig(compilation_cache=False))
    assert jax.config.jax_compilation_cache_dir is None
    runtime.configure(RuntimeConfig())
    assert jax.config.jax_compilation_cache_dir == "/somewhere/metarl/xla"


@pytest.mark.usefixtures("jax_options")
def test_a_folder_that_the_user_chose_is_kept():
    jax.config.update(runtime.CACHE_OPTION, "/chosen")
    runtime.configure(RuntimeConfig())
    assert jax.config.jax_compilation_cache_dir == "/chosen"


@pytest.mark.usefixtures("jax_options")
def test_the_cpu_can_be_asked_for():
    runtime.configure(RuntimeConfig(platform="cpu"))
    assert jax.config.jax_platforms == "cpu"


@pytest.mark.usefixtures("jax_options")
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="there is a GPU")
def test_a_missing_gpu_is_the_users_to_mend():
    with pytest.raises(UserError, match=r"^runtime\.platform=gpu: not available here"):
        runtime.configure(RuntimeConfig(platform="gpu"))


@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library is not glibc"
)
def test_freed_memory_goes_back_to_the_system():
    def resident() -> int:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    # Small pieces stay with the C library when they are freed: here all but the last.
    pieces = [bytes(2000) for _ in range(50_000)]
    full = resident()
    last = pieces[-1]
    del pieces
    runtime.release_memory()
    assert full - resident() > 60e6, len(last)  # of 100 MB that were freed
