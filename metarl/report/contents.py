"""What a page consists of: sections, and the figures, tables and videos in them.

A leaf over `figures.py`, `tables.py` and `videos.py`; files and W&B get the same.
"""

from __future__ import annotations

import dataclasses

from metarl.report.figures import Figure
from metarl.report.markup import Markup
from metarl.report.tables import DataTable
from metarl.report.videos import Clip


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page with a heading of its own."""

    name: str
    title: str
    content: Markup


@dataclasses.dataclass
class Contents:
    """Sections, and all that is in them."""

    sections: list[Section] = dataclasses.field(default_factory=list)
    figures: list[Figure] = dataclasses.field(default_factory=list)
    tables: list[DataTable] = dataclasses.field(default_factory=list)
    clips: list[Clip] = dataclasses.field(default_factory=list)
