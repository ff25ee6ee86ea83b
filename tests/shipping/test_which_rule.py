"""Which rule of a run ships, and what its card says of that."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import yaml
from report_runs import row
from shipped_folder import facts, text_of
from tiny_ship import write_rule, write_shippable_run

from metarl.rule_files import Parent
from metarl.shipping import ship_rule


@pytest.fixture
def validated(tmp_path: Path) -> Path:
    """A run that was best at meta-step 10, by what its metrics say."""
    scores = {10: 0.6, 20: 0.4}
    rows = [
        row(
            step,
            **{
                "charts/SPS": 10.0,
                "eval/iqm": iqm,
                "eval/iqm_lo": iqm - 0.1,
                "eval/iqm_hi": iqm + 0.1,
                "eval/FrozenLake-v1/episodic_return": iqm,
                "stats/validation_time": 30.0,
            },
        )
        for step, iqm in scores.items()
    ]
    validation = "{every: 10, games: [FrozenLake-v1]}"
    run = write_shippable_run(tmp_path / "run", rows, validation=validation)
    games = ("FrozenLake-v1",)
    best = run / "rule_best"
    write_rule(best, run, value=0.3, meta_steps=10, games_validation=games)
    return run


def test_the_best_by_validation_ships(validated: Path, shipped: Path) -> None:
    ship_rule(validated, shipped)
    arrays = (shipped / "rule.npz").read_bytes()
    assert arrays == (validated / "rule_best" / "rule.npz").read_bytes()
    card = text_of(shipped)
    told = facts(card)
    assert told["which rule of its run"] == (
        "the best by its 2 validations (meta-step 10 of 20)"
    )
    assert told["games for validation"] == "FrozenLake-v1"
    assert told["machine time"].startswith(
        "1m20s of meta-training and 1m00s of validations, for the whole run, by"
    )
    assert "judge it on held-out games" in card
    with (shipped / "curves.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(r["eval/iqm"]) for r in rows] == [0.6, 0.4]
    assert [float(r["eval/iqm_hi"]) for r in rows] == [0.7, 0.5]


def test_another_rule_of_the_run_ships_where_it_is_named(
    validated: Path, shipped: Path
) -> None:
    ship_rule(validated / "rule", shipped)
    arrays = (shipped / "rule.npz").read_bytes()
    assert arrays == (validated / "rule" / "rule.npz").read_bytes()
    card = text_of(shipped)
    assert facts(card)["which rule of its run"] == (
        "the one that the author named (meta-step 20 of 20)"
    )
    assert "metarl rules ship runs/tiny_lpg/RULE -o" in card


def test_an_unfinished_run_says_so(run: Path, shipped: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(config | {"meta_steps": 50}))
    ship_rule(run, shipped)
    told = facts(text_of(shipped))["which rule of its run"]
    assert told.endswith("; the run was planned for 50 meta-steps")


def test_a_finetuned_rule_is_not_called_discovered(run: Path, shipped: Path) -> None:
    parents = (Parent(name="disco103", sha256="ab" * 32),)
    write_rule(run / "rule", run, value=0.2, meta_steps=20, parents=parents)
    ship_rule(run, shipped)
    card = text_of(shipped)
    assert "finetuned on Catch-v0 (height 5, width 5) from disco103 (sha256 ab" in card
    assert "random meta-parameters" not in card
    assert ", discovered" not in card
