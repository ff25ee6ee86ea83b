"""Hostile strings stay text, and numbers and names are written for people."""

from __future__ import annotations

import csv
import re

import pytest
from report_cells import ABOUT, make_cell, store, store_all
from report_pages import report

from metarl.report import figures
from metarl.report.markup import alike, details, join, number, slug, tag
from metarl.report.tables import DataTable, render

SCRIPT = "<script>alert(1)</script>"
QUOTES = '" onmouseover="alert(2)" x="'
FORMULA = "=HYPERLINK(1)"


# --- Escaping ---------------------------------------------------------------------


def test_text_is_escaped_wherever_it_is_put():
    assert tag("p", "a<b & 'c'") == "<p>a&lt;b &amp; &#x27;c&#x27;</p>"
    assert tag("p", title='"x"', hidden=True, id=None) == (
        '<p title="&quot;x&quot;" hidden></p>'
    )
    assert tag("p", tag("b", "<")) == "<p><b>&lt;</b></p>"
    assert join(["<", tag("br")], ", ") == "&lt;, <br>"
    assert "<i>" not in details("<i>", "<i>")
    assert "<i>" not in render(DataTable("<i>", ("<i>",), (("<i>",),)))


def test_hostile_names_are_text_on_the_page_and_no_formula_in_csv(tmp_path):
    for i, name in enumerate((SCRIPT, QUOTES, FORMULA)):
        for seed in (1, 2):
            cell = make_cell(name, "Pong-v5", seed)
            store(tmp_path, cell, float(seed + i), about={**ABOUT, "commit": SCRIPT})
    text, elements = report(tmp_path)
    assert SCRIPT not in text
    assert SCRIPT in "".join(elements.text)
    (script,) = elements.named("script")
    assert script == {}
    handlers = [k for _, found in elements.found for k in found if k.startswith("on")]
    assert handlers == []
    files = sorted((tmp_path / figures.FOLDER).iterdir())
    assert {path.suffix for path in files} == {".csv", ".png"}
    # A name that is a path would leave the folder.
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", path.name) for path in files)
    for path in files:
        if path.suffix == ".csv":
            cells = [c for row in csv.reader(path.open(newline="")) for c in row]
            assert not any(cell.startswith(("=", "@", "+")) for cell in cells)
            assert f"'{FORMULA}" in cells


def test_numbers_that_are_read_together_have_as_many_decimals():
    assert alike([1.006, 0.9958, 1.0301]) == ["1.01", "1.00", "1.03"]
    assert alike([0.0, -0.0033, 0.0051]) == ["0.000", "−0.003", "0.005"]
    assert alike([-0.0001, 0.2]) == ["0.000", "0.200"]
    assert alike([1234.5, 999.4]) == ["1,234", "999"]
    assert alike([0.0, 0.0]) == ["0.00", "0.00"]
    assert alike([1e308, -5e307, 0.0]) == ["1.00e308", "−5.00e307", "0"]
    assert alike([float("inf"), 2.0]) == ["–", "2"]
    assert alike([0.00012, 0.0]) == ["0.000120", "0.000000"]


def test_a_name_of_mathematics_is_drawn_as_it_is(tmp_path):
    store_all(tmp_path, {("$\\frac{x$", "Pong-v5"): [1.0, 2.0]})
    report(tmp_path)


def test_the_page_loads_nothing(tmp_path):
    store_all(tmp_path, {("actor_critic", "Pong-v5"): [1.0, 2.0]})
    _, elements = report(tmp_path)
    for name, attributes in elements.found:
        source = attributes.get("src") or attributes.get("href") or "#"
        assert source.startswith(("data:", "#")), name
    (policy,) = [
        m["content"]
        for m in elements.named("meta")
        if m.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy.startswith("default-src 'none'; ")


# --- Small parts ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (float("-inf"), "–"),
        (0.0, "0"),
        (1e-17, "0"),
        (3.0, "3"),
        (-1234567.0, "−1,234,567"),
        (0.12345, "0.123"),
        (0.0012345, "0.001"),
        (-0.00032, "−0.00032"),
        (12.345, "12.3"),
        (1234.56, "1,235"),
        (2.5e-7, "2.5e−07"),
        (1e9, "1,000,000,000"),
        (2_345_678_901, "2.35e9"),
        (-1e308, "−1.00e308"),
    ],
)
def test_numbers_for_people(value, expected):
    assert number(value) == expected


def test_names_of_files():
    assert slug("../../etc/passwd") == "etc-passwd"
    assert slug("<>") == "x"
    assert slug("Pong-v5") == "Pong-v5"
