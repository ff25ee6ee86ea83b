"""Shipping again gives the same bytes, and nothing else is overwritten."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from shipped_folder import contents, text_of
from tiny_ship import store_cells, write_rule

from metarl import cli
from metarl.errors import UserError
from metarl.shipping import ship_rule
from metarl.shipping.card import NO_LIMITS


def test_again_gives_the_same_bytes(run: Path, shipped: Path, results: Path) -> None:
    notes = run.parent / "limits.md"
    notes.write_text("Continuous actions, $pixels$ | tables.\n")
    assert ship_rule(run, shipped, results=[results], notes=notes) == []
    first = contents(shipped)
    assert "notes.md" in first
    limits = "## What it is not good for\n\nContinuous actions, $pixels$ | tables.\n\n"
    assert limits in text_of(shipped)
    # What the author said stays, and needs not be said again.
    assert ship_rule(run, shipped, results=[results]) == []
    assert contents(shipped) == first
    # Without results there are no scores, old ones neither.
    assert len(ship_rule(run, shipped)) == 1
    assert set(first) - set(contents(shipped)) == {"scores.csv"}


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        ("another", "tiny_lpg holds another rule; name a new folder"),
        ("by hand", "README.md was not written by this command; move what it says"),
        ("foreign", r"holds more than a rule \('thesis.tex'\)"),
    ],
)
def test_nothing_else_is_overwritten(
    run: Path, shipped: Path, spoil: str, line: str
) -> None:
    ship_rule(run, shipped)
    if spoil == "another":
        write_rule(run / "rule", run, value=0.7, meta_steps=30)
    elif spoil == "by hand":
        (shipped / "README.md").write_text("# My rule\n")
    else:
        (shipped / "thesis.tex").write_text("x")
    before = contents(shipped)
    with pytest.raises(UserError, match=line):
        ship_rule(run, shipped)
    assert contents(shipped) == before


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("{run} -o {out}/ppo", "'ppo' means something else"),
        ("{run} -o {out}/a.yaml", "'a.yaml' means something else"),
        ("{run} -o '{out}/my rule'", "'my rule' is no name for a rule"),
        ("{run}/checkpoints -o {out}/x", "there is no such folder"),
        ("{run}/initial_rule -o {out}/x", "what the run began with"),
        ("{out} -o {out}/x", "not a run (allowed: the folder of a run"),
        ("{run} -o {out}/x --notes {out}/none.md", "No such file or directory"),
        ("{run} -o {out}/x --notes {out}/empty.md", "is empty; leave it out"),
        ("{run} -o {out}/x --results {out}", "holds no finished cell"),
        ("{run} -o {out}/x --results {other}", "none of its cells is of this rule"),
        ("{run}", "-o/--output"),
    ],
)
def test_mistakes_are_one_line(
    capsys: pytest.CaptureFixture[str], run: Path, tmp_path: Path, words: str, line: str
) -> None:
    out, other = tmp_path / "out", tmp_path / "other"
    out.mkdir()
    (out / "empty.md").write_text("\n")
    store_cells(other, "random", [0.0], suite="catch_5x5")
    given = shlex.split(words.format(run=run, out=out, other=other))
    assert cli.main(["rules", "ship", *given]) == 2
    error = capsys.readouterr().err
    assert line in error
    assert error.count("\n") == 1
    assert sorted(path.name for path in out.iterdir()) == ["empty.md"]


def test_a_run_without_metrics_is_told_so(run: Path, shipped: Path) -> None:
    (run / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match=r"a run without metrics\.jsonl, which its"):
        ship_rule(run, shipped)


def test_the_command(
    capsys: pytest.CaptureFixture[str], run: Path, shipped: Path, results: Path
) -> None:
    words = [str(run), "-o", str(shipped), "--results", str(results)]
    assert cli.main(["rules", "ship", *words]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"wrote {shipped}"
    assert said[1].startswith(f"warning: the card says '{NO_LIMITS}'")
    assert len(said) == 2


def test_a_rule_that_ships_is_no_run_to_go_on_with(
    capsys: pytest.CaptureFixture[str], run: Path, shipped: Path
) -> None:
    ship_rule(run, shipped)
    before = contents(shipped)
    assert cli.main(["train", "--resume", str(shipped)]) == 2
    assert "a rule that ships, not a run" in capsys.readouterr().err
    assert contents(shipped) == before
