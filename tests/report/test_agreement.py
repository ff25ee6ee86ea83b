"""How far peers agree and how the lead is spread, as the report shows it."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import pytest
from report_cells import make_cell, store
from report_evaluations import read_folders

from metarl.evaluation.agreement_records import AgreementRow
from metarl.evaluation.cell_records import (
    CurveRow,
    PeerRecord,
)
from metarl.report import write_report
from metarl.report.agreement import agreement_figures, lead_table
from metarl.statistics import Estimate

STEPS = (250, 500, 750, 1000)
Measured = Sequence[tuple[float, float] | None]


def peer(final: float, *returns: float | None) -> PeerRecord:
    rows = [
        CurveRow(steps, i, 0 if value is None else 5, value)
        for i, (steps, value) in enumerate(zip(STEPS, returns, strict=True), start=1)
    ]
    return PeerRecord(final, tuple(rows))


def store_pair(
    folder: Path,
    rule: str,
    seed: int,
    peers: tuple[PeerRecord, PeerRecord],
    measured: Measured = (),
) -> None:
    """Write a group; of a row without a measurement one of its peers had failed."""
    rows = [
        AgreementRow(steps, 1, None, None) if x is None else AgreementRow(steps, 2, *x)
        for steps, x in zip(STEPS, measured, strict=False)
    ]
    cell = make_cell(rule, "Pong-v5", seed, "group_size=2")
    store(folder, cell, 1.0, curve=[1.0] * 4, peers=peers, agreement=rows)


FIRST = (peer(3.0, None, 1.0, 4.0, 2.0), peer(5.0, 1.0, 2.0, 2.0, 5.0))
SECOND = (peer(8.0, 2.0, 2.0, 2.0, 2.0), peer(1.0, 1.0, 1.0, 1.0, 1.0))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rising = [(0.5, 0.25), (0.625, 0.125), None, (0.75, 0.0625)]
    store_pair(tmp_path, "mine", 1, FIRST, rising)
    store_pair(tmp_path, "mine", 2, SECOND, [(0.25, 0.5)] * 4)
    store_pair(tmp_path, "older", 1, SECOND)  # from before peers were compared
    store(tmp_path, make_cell("mine", "Pong-v5", 1), 3.0)
    return tmp_path


def test_the_figure_is_of_a_game_and_has_all_numbers(folder: Path) -> None:
    (figure,) = agreement_figures(read_folders(folder))
    assert figure.name == "agreement_Pong-v5"
    assert figure.columns == (
        *("rule", "seed", "frames", "env_steps", "peers_present"),
        *("greedy_agreement", "js_divergence"),
    )
    mine = "mine (groups of 2)"
    assert figure.rows[:4] == (
        (mine, 1, 1000.0, 250, 2, 0.5, 0.25),
        (mine, 1, 2000.0, 500, 2, 0.625, 0.125),
        (mine, 1, 3000.0, 750, 1, None, None),
        (mine, 1, 4000.0, 1000, 2, 0.75, 0.0625),
    )
    assert {row[0] for row in figure.rows} == {mine}
    assert len(figure.rows) == 8
    # Of both groups at the end.
    assert figure.alt == f"{mine}: same action in 0.500 of the states at the end"


def test_the_lead_is_told_by_rule_over_groups(folder: Path) -> None:
    table = lead_table(read_folders(folder))
    rows = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert list(rows) == ["mine (groups of 2)", "older (groups of 2)"]
    mine, older = rows.values()
    # Leaders of the first group: 2, 1, 2; of the second: 1, 1, 1, 1.
    values = {name: x.value for name, x in mine.items() if isinstance(x, Estimate)}
    assert values == {
        "best over worst peer": (2 + 7) / 2,
        "time ahead of the longest leader": pytest.approx((2 / 3 + 1) / 2),
        "time ahead of the last leader": pytest.approx((2 / 3 + 1) / 2),
        "changes of who is ahead": 1.0,
        "same preferred action at the end": 0.5,
        "divergence at the end (nats)": (0.0625 + 0.5) / 2,
    }
    assert mine["changes of who is ahead"] == Estimate(1.0, 0.0, 2.0)
    assert mine["groups"] == 2
    # One group has no interval, and nothing is made up for what was not measured.
    assert older["best over worst peer"] == Estimate(7.0)
    assert older["same preferred action at the end"] is None
    assert older["divergence at the end (nats)"] is None


def test_the_last_leader_need_not_be_the_longest(tmp_path: Path) -> None:
    late = (peer(1.0, 1.0, 1.0, 1.0, 1.0), peer(2.0, 0.0, 0.0, 0.0, 2.0))
    store_pair(tmp_path, "mine", 1, late)
    silent = (peer(1.0, 1.0, 1.0, 1.0, 1.0), peer(2.0, None, None, None, None))
    store_pair(tmp_path, "other", 1, silent)
    table = lead_table(read_folders(tmp_path))
    first, second = (dict(zip(table.columns, r, strict=True)) for r in table.rows)
    assert first["time ahead of the longest leader"] == Estimate(0.75)
    assert first["time ahead of the last leader"] == Estimate(0.25)
    assert first["changes of who is ahead"] == Estimate(1.0)
    for name in ("time ahead of the longest leader", "changes of who is ahead"):
        assert second[name] is None


def test_the_page_shows_both(folder: Path) -> None:
    page, _ = write_report([folder])
    text = page.read_text()
    assert "Pong-v5: how far peers agree" in text
    assert "time ahead of the last leader" in text
    path = folder / "report_figures" / "agreement_Pong-v5.csv"
    with path.open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 8
    assert path.with_suffix(".png").is_file()


def test_groups_that_were_never_compared_have_no_figure(tmp_path: Path) -> None:
    store_pair(tmp_path, "older", 1, SECOND)
    evaluation = read_folders(tmp_path)
    assert agreement_figures(evaluation) == []
    assert len(lead_table(evaluation).rows) == 1
