"""The page of a report, and the elements that it consists of."""

from __future__ import annotations

import html.parser
from pathlib import Path

from metarl.report import write_report


class Elements(html.parser.HTMLParser):
    """Collects elements with their attributes, and the text outside of them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)

    def named(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.found if tag == name]


def report(*folders: Path, **options) -> tuple[str, Elements]:
    page, _ = write_report(list(folders), **options)
    text = page.read_text()
    return text, Elements(text)
