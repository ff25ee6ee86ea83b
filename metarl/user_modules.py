"""Modules of the user's own, beside the installed ones. A leaf."""

from __future__ import annotations

import os
import sys


def see_working_directory() -> str:
    """Let imports find modules in the working directory, and return its path.

    As `python -m` does, but last: a file of the user's hides no package.
    """
    folder = os.getcwd()
    if folder not in sys.path and "" not in sys.path:
        sys.path.append(folder)
    return folder
