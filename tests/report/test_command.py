"""`metarl report` on the command line: where it writes, mistakes, W&B."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from report_cells import make_cell, store, store_all

from metarl import cli
from metarl.report import command


@pytest.fixture(autouse=True)
def _no_wandb(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")


@pytest.fixture
def results(tmp_path) -> Path:
    store_all(
        tmp_path / "results",
        {
            ("actor_critic", "Pong-v5"): [0.0, 5.0],
            ("mine", "Pong-v5"): [10.0, 12.0],
        },
    )
    return tmp_path / "results"


def run(capsys, *words: str | Path) -> tuple[int, str, str]:
    code = cli.main(["report", *map(str, words)])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_it_writes_into_the_first_folder_or_elsewhere(capsys, results, tmp_path):
    code, out, err = run(capsys, results)
    assert (code, err) == (0, "")
    assert out == (
        f"wrote {results / 'report.html'} (5 figures in {results / 'report_figures'})\n"
    )
    assert run(capsys, results, "-o", tmp_path / "new" / "place")[0] == 0
    assert (tmp_path / "new" / "place" / "report.html").is_file()
    assert not (results / "tracking").exists()


def test_the_baseline_may_be_another(capsys, results):
    assert run(capsys, "--baseline", "mine", results)[0] == 0
    text = (results / "report.html").read_text()
    assert "mine (baseline)" in text


def prepare(folder: Path) -> None:
    store(folder / "results", make_cell("actor_critic", "Pong-v5", 1), 1.0)
    (folder / "empty").mkdir()
    (folder / "no_cells" / "cells").mkdir(parents=True)
    (folder / "starting").mkdir()
    (folder / "starting" / "config.yaml").write_text("seed: 1\n")
    (folder / "file").write_text("")
    (folder / "broken" / "cells").mkdir(parents=True)
    (folder / "broken" / "cells" / "a.json").write_text("{}")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["nowhere"], "report: nowhere: there is no such folder"),
        (["empty"], "report: empty holds neither results (cells/) nor a run"),
        (["."], "report: . holds neither results (cells/) nor a run"),
        (["no_cells"], "report: no_cells/cells holds no finished cell yet"),
        (["starting"], "report: starting is a run that has no metrics yet"),
        (["file"], "report: file is a file (allowed: folders of results, runs"),
        (["broken"], "results_dir: broken/cells/a.json is not a cell's file"),
        (["results", "--baseline", "ppo"], "--baseline ppo: no such rule in the res"),
        (["results", "-o", "file"], "report: cannot write to file: "),
        (["results", "tracking.wandb=on"], "tracking.wandb=true: not allowed"),
        ([], "the following arguments are required: FOLDER"),
    ],
)
def test_mistakes_are_one_line(capsys, tmp_path, monkeypatch, words, line):
    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "")
    assert err.startswith(f"metarl: {line}")
    assert err.count("\n") == 1


def test_wandb_gets_the_same_where_it_is_on(capsys, results, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert run(capsys, results)[0] == 0
    (offline,) = (results / "tracking" / "report" / "wandb").glob("offline-run-*")
    media = offline / "files" / "media"
    (scores,) = media.glob("table/report/scores_*.json")
    table = json.loads(scores.read_text())
    assert table["columns"][:6] == [
        "game",
        "rule",
        "status",
        "return",
        "return low",
        "return high",
    ]
    assert table["data"][0][:6] == ["Pong-v5", "mine", "held out", 11.0, 10.0, 12.0]
    figures = {p.name for p in (results / "report_figures").glob("*.png")}
    assert len(list(media.glob("images/report/*.png"))) == len(figures) == 5
    (page,) = media.glob("html/report/page_*.html")
    assert page.read_bytes() == (results / command.PAGE).read_bytes()
