"""A full disk is one line."""

from __future__ import annotations

import errno
import os

import pytest

from metarl import cli, commands
from metarl.disk_space import DiskFullError, told_if_full
from metarl.evaluation import command


def full(code: int = errno.ENOSPC) -> OSError:
    return OSError(code, os.strerror(code), "results/cells/a.json")


def test_it_says_what_is_kept():
    with pytest.raises(DiskFullError) as caught, told_if_full("the rest is kept"):
        raise full()
    assert str(caught.value) == (
        "No space left on device: results/cells/a.json; the rest is kept"
    )
    with pytest.raises(DiskFullError, match="quota"), told_if_full("the rest is kept"):
        raise full(errno.EDQUOT)


def test_it_is_found_behind_other_errors():
    def save() -> None:
        try:
            raise full()
        except OSError as error:
            raise RuntimeError("the checkpoint failed") from error

    with pytest.raises(DiskFullError, match=r"a\.json; kept"), told_if_full("kept"):
        save()
    stores = "RESOURCE_EXHAUSTED: Error writing: Failed [os_error_code='28']"
    with pytest.raises(DiskFullError, match=r"^No space"), told_if_full("kept"):
        raise ValueError(stores)


@pytest.mark.parametrize("error", [full(errno.EACCES), ValueError("no space")])
def test_other_errors_are_left_alone(error):
    with pytest.raises(type(error)) as caught, told_if_full("kept"):
        raise error
    assert caught.value is error


def test_the_command_line_says_the_inner_line_once_and_exits_with_1(
    monkeypatch, capsys
):
    def evaluate(args) -> int:
        del args
        with told_if_full("finished cells are kept"):
            raise full()

    monkeypatch.setattr(commands, "evaluate", evaluate)
    assert cli.main(["evaluate", "random"]) == 1
    assert capsys.readouterr().err == (
        "metarl: No space left on device: results/cells/a.json; finished cells are "
        "kept\n"
    )


def test_an_evaluation_says_how_to_go_on(tmp_path, monkeypatch):
    def merge_cells(folder):
        del folder
        raise full()

    monkeypatch.setattr(command.results_tables, "merge_cells", merge_cells)
    monkeypatch.setattr(command, "train_missing", lambda *_, **__: True)
    overrides = [f"results_dir={tmp_path}"]
    with pytest.raises(DiskFullError, match="make room and give the same command"):
        command.main(["random"], "catch", [], overrides)
