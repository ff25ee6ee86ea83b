"""Where a result comes from: the versions of packages, the commit, the machine.

A host module and a leaf: rule files and run directories both record what it says.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path

PACKAGES = (
    "metarl-discovery",
    "jax",
    "jaxlib",
    "dm-haiku",
    "optax",
    "envpool",
    "gymnasium",
    "orbax-checkpoint",
    "numpy",
    "pydantic",
    "wandb",
)
"""The distributions that can change a result or the format of a file."""


def package_versions() -> dict[str, str]:
    """Return the version of Python and of each installed package of `PACKAGES`."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # run from a checkout that was never installed, or an extra
    return versions


@functools.cache
def git_commit(package: Path | None = None) -> str | None:
    """Return the full commit hash of the checkout that the code runs from.

    Args:
      package: the folder of the package; None for metarl's own.

    Returns:
      None outside a checkout: also where the package is installed somewhere below
      another project's checkout, whose commit would say nothing about this code.
    """
    package = package or Path(__file__).parent
    top = _git(package, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != package.resolve().parent:
        return None
    return _git(package, "rev-parse", "--verify", "HEAD")


@functools.cache
def is_modified() -> bool | None:
    """Return whether tracked files differ from the commit; None without one.

    As it was when it was first asked: call it before anybody edits what runs.
    """
    if git_commit() is None:
        return None
    changes = _git(Path(__file__).parent, "status", "--porcelain", "-uno")
    return None if changes is None else changes != ""


@functools.cache
def machine() -> dict[str, str]:
    """Return the operating system, the processor, its cores, and the memory."""
    found = {"system": platform.platform(), "processor": platform.machine()}
    for line in _lines(Path("/proc/cpuinfo")):
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            found["processor"] = value.strip()
            break
    found["cores"] = f"{os.cpu_count()} cores"
    pages, page_bytes = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    found["memory"] = f"{pages * page_bytes / 2**30:.0f} GiB"
    return found


def write_versions(run_dir: Path) -> Path:
    """Write ``versions.json`` (packages, commit, machine) and return its path."""
    path = run_dir / "versions.json"
    versions = {
        "packages": package_versions(),
        "commit": git_commit(),
        "modified": is_modified(),
        "machine": machine(),
    }
    path.write_text(json.dumps(versions, indent=2) + "\n")
    return path


def _lines(path: Path) -> list[str]:
    """Return a file's lines, none where it cannot be read."""
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []


def _git(folder: Path, *arguments: str) -> str | None:
    """Return what git prints, None where there is no git or it refuses."""
    try:
        result = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
