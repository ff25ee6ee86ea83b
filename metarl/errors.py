"""Errors that are the user's to mend; everything else keeps its traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input: one line that names the field, the value and what is allowed."""


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest of ``allowed``, or ``""``."""
    allowed = list(allowed)
    by_lower_case = {option.lower(): option for option in allowed}
    matches = difflib.get_close_matches(name.lower(), by_lower_case, n=1, cutoff=0.5)
    return f"; did you mean '{by_lower_case[matches[0]]}'?" if matches else ""
