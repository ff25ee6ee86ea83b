"""Tables of a report: the same rows for the page, for W&B and for tests.

A leaf of `metarl/report/` over `markup.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from metarl.report.markup import Child, Markup, alike, join, number, scrolling, tag
from metarl.statistics import Estimate

Cell = str | int | float | bool | Estimate | None


@dataclasses.dataclass(frozen=True)
class DataTable:
    """Rows under named columns.

    Attributes:
      name: for ids and W&B.
      columns: their titles.
      rows: cells; an `Estimate` is a number with its interval.
      colors: of the names in the column `rule`, shown beside them.
    """

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    colors: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def plain(self) -> tuple[list[str], list[list[str | float | bool | None]]]:
        """Return columns and rows without estimates: ends have columns of their own."""
        wide = [
            any(isinstance(row[i], Estimate) for row in self.rows)
            for i in range(len(self.columns))
        ]
        columns: list[str] = []
        for title, has_ends in zip(self.columns, wide, strict=True):
            columns += [title, f"{title} low", f"{title} high"][: 3 if has_ends else 1]
        return columns, [self._plain_row(row, wide) for row in self.rows]

    def _plain_row(
        self, row: Sequence[Cell], wide: Sequence[bool]
    ) -> list[str | float | bool | None]:
        found: list[str | float | bool | None] = []
        for cell, has_ends in zip(row, wide, strict=True):
            if isinstance(cell, Estimate):
                found += [cell.value, cell.low, cell.high]
            else:
                found += [cell, None, None] if has_ends else [cell]
        return found


def swatch(color: str) -> Markup:
    """Return a small field of a colour."""
    return tag("span", class_="swatch", style=f"background:{color}", aria_hidden="true")


def describe(estimate: Estimate) -> str:
    """Return a number and its interval as text."""
    if estimate.low is None or estimate.high is None:
        return number(estimate.value)
    value, low, high = alike((estimate.value, estimate.low, estimate.high))
    return f"{value} [{low}, {high}]"


def show(cell: Cell) -> str:
    """Return a cell as text for people."""
    if cell is None:
        return "–"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, Estimate):
        return describe(cell)
    return cell if isinstance(cell, str) else number(cell)


def render(table: DataTable, *, label: str = "") -> Markup:
    """Return a table as HTML, whose headings are buttons that sort it (`page.js`).

    Args:
      table: its rows.
      label: what it is, for those who do not see it.
    """
    right = [
        any(_is_number(row[i]) for row in table.rows)
        and all(_is_number(row[i]) or row[i] is None for row in table.rows)
        for i in range(len(table.columns))
    ]
    head = join(
        tag(
            "th",
            tag("button", title, type="button"),
            scope="col",
            class_="n" if is_right else None,
            aria_sort="none",
        )
        for title, is_right in zip(table.columns, right, strict=True)
    )
    body = join(
        tag(
            "tr",
            join(
                _cell(
                    cell,
                    is_heading=i == 0,
                    is_right=right[i],
                    colors=table.colors if table.columns[i] == "rule" else {},
                )
                for i, cell in enumerate(row)
            ),
        )
        for row in table.rows
    )
    return scrolling(
        tag(
            "table",
            tag("thead", tag("tr", head)),
            tag("tbody", body),
            id=f"table-{table.name}",
            class_="sortable",
        ),
        label or table.name,
    )


def _cell(
    cell: Cell, *, is_heading: bool, is_right: bool, colors: Mapping[str, str]
) -> Markup:
    content: Child = show(cell)
    if isinstance(cell, str) and cell in colors:
        content = join([swatch(colors[cell]), cell])
    value = cell.value if isinstance(cell, Estimate) else cell
    return tag(
        "th" if is_heading else "td",
        content,
        scope="row" if is_heading else None,
        class_="n" if is_right else "rule" if colors else None,
        data_value="" if value is None else value,
    )


def _is_number(cell: Cell) -> bool:
    return isinstance(cell, (int, float, Estimate)) and not isinstance(cell, bool)
