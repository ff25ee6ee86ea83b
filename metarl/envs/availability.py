"""Families of EnvPool's that not every machine can run, and what they need.

Imports envpool only where such a game is asked for.
"""

from __future__ import annotations

import importlib.metadata
import platform

from metarl.envs.suites import Family
from metarl.errors import UserError

CRAFTAX_SINCE = "1.2.7"
"""The first EnvPool that has it."""


def require(task_id: str, family: Family) -> None:
    """Refuse a game that this machine cannot run, with what is missing.

    Raises:
      UserError: it needs a library, or another EnvPool.
    """
    if family == "procgen":
        import envpool

        try:
            envpool.make_spec(task_id)
        except ImportError:
            raise UserError(
                f"{task_id}: ProcGen needs the system's Qt 5, which is not installed "
                "(Debian, Ubuntu: apt-get install libqt5gui5; "
                "Fedora: dnf install qt5-qtbase-gui)"
            ) from None
    elif family == "craftax":
        import envpool

        if task_id not in envpool.list_all_envs():
            installed = importlib.metadata.version("envpool")
            raise UserError(
                f"{task_id}: Craftax needs EnvPool {CRAFTAX_SINCE} or newer, which is "
                f"for Python 3.12 and newer (installed: {installed} on Python "
                f"{platform.python_version()}; there: "
                f"pip install 'envpool>={CRAFTAX_SINCE}')"
            )
