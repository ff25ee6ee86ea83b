"""Discover reinforcement-learning update rules, and train agents with them.

Importing `metarl` is cheap: what needs JAX is imported when it is first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from metarl.learner import Learner
    from metarl.rule_files import load_rule

__version__ = "0.1.0"

__all__ = ["Learner", "__version__", "load_rule"]

_HOME = {"Learner": "metarl.learner", "load_rule": "metarl.rule_files"}


def __getattr__(name: str) -> object:
    """Return a lazily imported public name."""
    if name not in _HOME:
        raise AttributeError(f"module 'metarl' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
