"""What agents do among distractors, as the report shows it."""

from __future__ import annotations

import pytest
from report_cells import make_cell, store
from report_evaluations import read_folders

from metarl.evaluation.robustness_records import Robustness
from metarl.report.evaluation_page import evaluation_sections
from metarl.report.robustness import robustness_table
from metarl.statistics import Estimate


def measured(unseen: float, kl: float | None = 0.1) -> Robustness:
    return Robustness(100, 1.0, 0.5, unseen, 0.01, kl)


def test_a_row_has_interquartile_means_over_seeds_and_of_groups_over_peers(tmp_path):
    for seed, unseen in enumerate((0.1, 0.2, 0.3, 9.0), start=1):
        cell = make_cell("mine", "Pong-v5", seed)
        store(tmp_path, cell, 1.0, robustness=[measured(unseen)])
        pair = make_cell("actor_critic", "Pong-v5", seed, "group_size=2")
        peers = [measured(unseen), measured(unseen + 0.2, None)]
        store(tmp_path, pair, 1.0, robustness=peers)
    table = robustness_table(read_folders(tmp_path))
    rows = {row[1]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert list(rows) == ["actor_critic (groups of 2)", "mine"]
    pair, one = rows.values()
    found = one["return, unseen distractors"]
    assert isinstance(found, Estimate)
    # Of four the lowest and the highest are left out.
    assert found.value == pytest.approx(0.25)
    assert found.low == pytest.approx(0.1, abs=0.06)
    assert found.high > 2
    assert one["return, clean frames"] == Estimate(1.0, 1.0, 1.0)
    assert (one["seeds"], one["episodes of each kind"]) == (4, 400)
    assert pair["return, unseen distractors"].value == pytest.approx(0.35)
    assert pair["episodes of each kind"] == 800
    # A number that some seed lacks is none.
    assert pair["KL, unseen distractors"] is None
    assert pair["KL, training distractors"].value == pytest.approx(0.01)


def test_the_page_has_a_section_where_agents_were_tested_alone(tmp_path):
    store(tmp_path / "plain", make_cell("mine", "Pong-v5", 1), 1.0)
    cell = make_cell("mine", "Pong-v5", 1)
    store(tmp_path / "tested", cell, 1.0, robustness=[measured(0.25)])
    names = {}
    for name in ("plain", "tested"):
        contents = evaluation_sections(read_folders(tmp_path / name))
        names[name] = [table.name for table in contents.tables]
        if name == "tested":
            html = str(
                next(s for s in contents.sections if s.title == "Among distractors")
            )
    assert "robustness" not in names["plain"]
    assert "robustness" in names["tested"]
    assert "0.25" in html
    assert "interquartile means" in html
