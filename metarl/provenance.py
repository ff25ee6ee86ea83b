"""Where a result comes from: versions of the packages, and the commit of the code.

A host module and a leaf: rule files and run directories both record what it says.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
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


def is_modified() -> bool | None:
    """Return whether tracked files differ from the commit; None without one."""
    if git_commit() is None:
        return None
    changes = _git(Path(__file__).parent, "status", "--porcelain", "-uno")
    return None if changes is None else changes != ""


def write_versions(run_dir: Path) -> Path:
    """Write ``versions.json`` (packages, commit, machine) and return its path."""
    path = run_dir / "versions.json"
    versions = {
        "packages": package_versions(),
        "commit": git_commit(),
        "modified": is_modified(),
        "machine": {"system": platform.platform(), "processor": platform.machine()},
    }
    path.write_text(json.dumps(versions, indent=2) + "\n")
    return path


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
