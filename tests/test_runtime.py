"""Where JAX runs and where compiled programs are kept."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import jaxlib.version
import numpy as np
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
def test_programs_are_kept_unless_told_otherwise(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    jax.config.update(runtime.CACHE_OPTION, None)
    runtime.configure(RuntimeConfig(compilation_cache=False))
    assert jax.config.jax_compilation_cache_dir is None
    assert list(tmp_path.iterdir()) == []
    runtime.configure(RuntimeConfig())
    assert jax.config.jax_compilation_cache_dir == f"{tmp_path}/metarl/xla"
    assert list((tmp_path / "metarl" / "xla").iterdir()) == []


@pytest.mark.usefixtures("jax_options")
def test_a_cache_that_cannot_be_written_is_one_line(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    jax.config.update(runtime.CACHE_OPTION, None)
    with warnings.catch_warnings(action="error"):
        runtime.configure(RuntimeConfig())
        jax.jit(lambda x: x + 1)(jax.numpy.ones(7)).block_until_ready()
    out, errors = capsys.readouterr()
    assert out == ""
    assert errors.count("\n") == 1
    assert errors.startswith(f"warning: {tmp_path}/file/metarl/xla: Not a directory; ")
    assert jax.config.jax_compilation_cache_dir is None


@pytest.mark.parametrize(
    ("version", "before", "after"),
    [
        ((0, 10, 2), None, "--xla_cpu_use_fusion_emitters=false"),
        ((0, 10, 0), "--xla_a=1", "--xla_a=1 --xla_cpu_use_fusion_emitters=false"),
        # The user's own word.
        ((0, 10, 2), "--xla_cpu_use_fusion_emitters", "--xla_cpu_use_fusion_emitters"),
        # XLA does not know it any more, and would end the process.
        ((0, 11, 0), None, None),
        ((0, 12, 0, 1), "--xla_a=1", "--xla_a=1"),
    ],
)
def test_the_compiler_is_told_to_spare_memory(monkeypatch, version, before, after):
    monkeypatch.setattr(jaxlib.version, "__version_info__", version)
    if before is None:
        monkeypatch.delenv("XLA_FLAGS", raising=False)
    else:
        monkeypatch.setenv("XLA_FLAGS", before)
    for _ in range(2):
        runtime.spare_compiler_memory()
        assert os.environ.get("XLA_FLAGS") == after


PROGRAM = """
import jax
from metarl.config import RuntimeConfig
from metarl.runtime import configure
events, kinds = [], ("hits", "misses")
jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
configure(RuntimeConfig(platform="cpu"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.jit(lambda x: jax.lax.fori_loop(0, 9, lambda i, x: jax.numpy.tanh(x @ x), x))(
    jax.numpy.ones((3, 3))
).block_until_ready()
print(*(sum(e.endswith(f"/cache_{kind}") for e in events) for kind in kinds))
"""


def test_a_second_start_reads_the_programs_of_the_first(tmp_path):
    def start() -> tuple[int, int, set[str]]:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env=os.environ | {"XDG_CACHE_HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
        )
        hits, misses = map(int, done.stdout.split())
        kept = {path.name for path in (tmp_path / "metarl" / "xla").glob("*-cache")}
        return hits, misses, kept

    hits, misses, kept = start()
    assert (hits, misses) == (0, len(kept))
    assert any(name.startswith("jit__lambda") for name in kept)
    # All of them, and none anew.
    assert start() == (misses, 0, kept)


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


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux counts maps")
def test_programs_are_forgotten_before_there_are_too_many(monkeypatch):
    def maps() -> int:
        return len(Path("/proc/self/maps").read_bytes().splitlines())

    double = jax.jit(lambda x: 2 * x)

    def compile_some() -> None:
        for size in range(20, 40):
            double(np.ones(size, np.float32)).block_until_ready()

    compile_some()
    assert double._cache_size() == 20
    monkeypatch.setattr(runtime, "MAX_MEMORY_MAPS", maps() + 1000)
    runtime.forget_programs()
    assert double._cache_size() == 20
    before = maps()
    monkeypatch.setattr(runtime, "MAX_MEMORY_MAPS", 1)
    runtime.forget_programs()
    assert double._cache_size() == 0
    assert maps() < before
    np.testing.assert_array_equal(double(np.ones(20, np.float32)), 2.0)
