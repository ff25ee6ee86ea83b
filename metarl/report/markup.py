"""HTML made of functions: whatever is not `Markup` is escaped on its way in.

A leaf of `metarl/report/`. Strings that come from files (rule names, game names,
settings) therefore cannot become markup, wherever they are put.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence

VOID = frozenset({"img", "meta", "br", "hr"})


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


Child = object
"""`Markup` is taken as it is, None is nothing, all else is escaped text."""


def tag(
    name: str, /, *children: Child, **attributes: str | int | float | bool | None
) -> Markup:
    """Return an element.

    Args:
      name: of the element.
      *children: its contents.
      **attributes: `class_` and `for_` lose their underscore, others become hyphens;
        True is an attribute without a value, False and None are none.
    """
    parts = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        attribute = key.rstrip("_").replace("_", "-")
        if value is True:
            parts.append(attribute)
        else:
            parts.append(f'{attribute}="{html.escape(str(value), quote=True)}"')
    start = f"<{' '.join(parts)}>"
    if name in VOID:
        return Markup(start)
    return Markup(f"{start}{join(children)}</{name}>")


def join(children: Iterable[Child], separator: str = "") -> Markup:
    """Return ``children`` one after another."""
    return Markup(separator.join(escape(child) for child in children))


def escape(child: Child) -> Markup:
    """Return ``child`` as HTML."""
    if child is None:
        return Markup("")
    if isinstance(child, Markup):
        return child
    return Markup(html.escape(str(child), quote=True))


def scrolling(content: Markup, label: str = "table") -> Markup:
    """Return ``content`` in a box that the keyboard can scroll too.

    The hint above it is shown where there is more than fits (`page.js`).
    """
    hint = tag("p", "More columns: scroll sideways →", class_="hint")
    box = tag(
        "div", content, class_="wide", role="region", tabindex=0, aria_label=label
    )
    return tag("div", hint, box, class_="table")


def details(summary: Child, *children: Child, is_long: bool = False) -> Markup:
    """Return something to open; printing opens what is not long (`page.js`)."""
    return tag(
        "details",
        tag("summary", summary),
        *children,
        class_="long" if is_long else None,
    )


def slug(text: str) -> str:
    """Return ``text`` as letters, digits, dots and hyphens, for ids and file names."""
    kept = "".join(
        c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in text
    )
    return kept.strip(".-")[:80] or "x"


_LONGEST = 1e9
"""Above it numbers are written with an exponent."""


def number(value: float | None, digits: int = 3) -> str:
    """Return a number for people: ``digits`` significant ones, thousands apart."""
    if value is None or not math.isfinite(value):
        return "–"
    if abs(value) < 1e-12:
        return "0"  # what is left of a difference of equal numbers
    if abs(value) > _LONGEST:
        short = f"{value:.{digits - 1}e}".replace("e+0", "e").replace("e+", "e")
        return short.replace("-", "−")
    if value == int(value):
        return f"{int(value):,}".replace("-", "−")
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}".replace("-", "−")
    if abs(value) < 10.0**-digits:
        return f"{value:.2g}".replace("-", "−")
    whole = len(str(int(abs(value)))) if abs(value) >= 1 else 0
    return f"{value:.{digits - whole}f}".replace("-", "−")


def alike(values: Sequence[float], digits: int = 3) -> list[str]:
    """Return numbers that are read together, all with as many decimals.

    Args:
      values: such as a mean and the ends of its interval.
      digits: significant ones of the greatest, and the most decimals.
    """
    top = max((abs(value) for value in values), default=0.0)
    if not top <= _LONGEST:  # nor NaN
        return [number(value, digits) for value in values]
    decimals = digits - 1 - (math.floor(math.log10(top)) if top else 0)
    if top >= 10.0**-digits:
        decimals = min(decimals, digits)
    decimals = max(0, decimals)
    rounded = [round(value, decimals) + 0.0 for value in values]  # no minus zero
    return [f"{x:,.{decimals}f}".replace("-", "−") for x in rounded]


def count_of(count: int, word: str) -> str:
    """Return a number of things."""
    return f"{number(count)} {word}" + ("" if count == 1 else "s")
