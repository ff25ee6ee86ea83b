"""Groups in a report: peers' curves and who is ahead."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from report_cells import make_cell, store

from metarl.evaluation.cell_records import (
    CurveRow,
    PeerRecord,
)
from metarl.report import groups, write_report
from metarl.report.inputs import read_inputs
from metarl.report.scores import Evaluation, gather


def peer(*returns: float | None) -> PeerRecord:
    steps = 1000 // len(returns)
    rows = [
        CurveRow(steps * (i + 1), i + 1, 0 if value is None else 5, value)
        for i, value in enumerate(returns)
    ]
    return PeerRecord(returns[-1], tuple(rows))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Results of a rule alone, and of two groups of two by it."""
    for seed in (1, 2):
        store(tmp_path, make_cell("mine", "Pong-v5", seed), 3.0)
    pairs = {
        # Peer 2 leads, loses the lead, and has it at the end; both equal in between.
        1: (peer(None, 1.0, 4.0, 4.0, 2.0), peer(1.0, 2.0, 2.0, 4.0, 5.0)),
        2: (peer(None, None, 1.0, None, 1.0), peer(0.0, 0.0, 0.0, 0.0, 0.0)),
    }
    for seed, peers in pairs.items():
        cell = make_cell("mine", "Pong-v5", seed, "group_size=2")
        means = [p.mean_return for p in peers]
        store(tmp_path, cell, sum(means) / 2, curve=[0.0] * 5, peers=peers)
    return tmp_path


def evaluation_of(folder: Path) -> Evaluation:
    return gather(read_inputs([folder]).records, None)


def test_who_is_ahead_and_how_often_that_changes(folder: Path) -> None:
    table = groups.peer_table(evaluation_of(folder))
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert [row["rule"] for row in rows] == ["mine (groups of 2)"] * 2
    assert [row["seed"] for row in rows] == [1, 2]
    # Of the four rows at which both have a return: 2, 1, 1 (a tie), 2.
    assert rows[0]["changes of who is ahead"] == 2
    assert rows[0]["time ahead of peers 1, 2, ..."] == "50 %, 50 %"
    assert rows[0]["ahead at the end"] == "peer 2"
    assert rows[1]["changes of who is ahead"] == 0
    assert rows[1]["time ahead of peers 1, 2, ..."] == "100 %, 0 %"
    assert rows[1]["ahead at the end"] == "peer 1"
    assert rows[0]["returns of peers 1, 2, ..."] == "2, 5"


def test_the_page_has_the_peers_and_labels_groups(folder: Path) -> None:
    page, _ = write_report([folder])
    text = page.read_text()
    assert "Peers of each group" in text
    assert "mine (groups of 2)" in text
    (path,) = (folder / "report_figures").glob("peers_*.csv")
    with path.open(newline="") as file:
        points = list(csv.DictReader(file))
    of_first = [p for p in points if (p["seed"], p["peer"]) == ("1", "1")]
    # Frames of the group: four per step; the first row has no return yet.
    assert [float(p["frames"]) for p in of_first] == [1600, 2400, 3200, 4000]
    assert [float(p["return"]) for p in of_first] == [1, 4, 4, 2]


def test_a_report_without_groups_says_nothing_of_them(tmp_path: Path) -> None:
    store(tmp_path, make_cell("mine", "Pong-v5", 1), 3.0)
    page, _ = write_report([tmp_path])
    assert "Peers of each group" not in page.read_text()
    assert not groups.peer_figures(evaluation_of(tmp_path))
