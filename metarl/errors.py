"""Errors that are the user's to mend; everything else keeps its traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input: one line that names the field, the value and what is allowed."""


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest of ``allowed``, or ``""``."""
    found = closest(name, allowed)
    return "" if found is None else f"; did you mean '{found}'?"


def closest(name: str, allowed: Iterable[str], *, cutoff: float = 0.5) -> str | None:
    """Return the one of ``allowed`` that ``name`` resembles, or has the initials of.

    Args:
      name: what was given.
      allowed: what could have been.
      cutoff: how alike they must be, from 0 to 1.
    """
    by_lower_case = {option.lower(): option for option in allowed}
    name = name.lower()
    # Such as `lr` for learning_rate.
    matches = [x for x in by_lower_case if len(name) > 1 and _initials(x) == name]
    matches = matches or difflib.get_close_matches(name, by_lower_case, 1, cutoff)
    return by_lower_case[matches[0]] if matches else None


def _initials(name: str) -> str:
    return "".join(word[:1] for word in name.split("_"))
