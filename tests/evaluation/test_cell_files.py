"""Files of cells: read as they were written, of equal settings, whole or refused."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
from stored_cells import COLUMNS, cell, rows_of, store

from metarl.atomic_files import write_new_file
from metarl.errors import UserError
from metarl.evaluation import amendments, results, results_tables
from metarl.evaluation.amendments import update_statuses
from metarl.evaluation.cell_records import (
    CurveRow,
    Video,
)
from metarl.evaluation.cells import plan


def test_settings_say_what_the_protocol_sets(tmp_path):
    machado = cell("Pong", 1, "environment.atari.protocol=machado")
    store(tmp_path, machado)
    (path,) = (tmp_path / "cells").iterdir()
    tree = json.loads(path.read_text())
    atari = tree["settings"]["environment"]["atari"]
    assert (atari["protocol"], atari["sticky_actions"]) == ("machado", 0.25)
    atari["sticky_actions"] = 0.0  # as an earlier version had it
    path.write_text(json.dumps(tree))
    assert results.is_finished(tmp_path, machado)
    (dqn,) = plan(
        ["random"],
        overrides=[
            "environment.games=[Pong]",
            "environment.atari.protocol=dqn",
            "seeds=[1]",
        ],
    )
    environment = dqn.identity()["environment"]
    assert environment["clip_rewards"] is environment["atari"]["episodic_life"] is True


def test_a_cell_is_read_as_it_was_written(tmp_path):
    videos = (Video("final", "videos/a.mp4", 0.5, 100),)
    store(tmp_path, cell("Catch-v0", 2))
    amendments.add_videos(tmp_path, cell("Catch-v0", 2), videos)
    store(tmp_path, cell("Catch-v0", 1))
    first, second = results.read_cells(tmp_path)
    assert (first.result.seed, first.videos) == (1, ())
    assert second.videos == videos
    assert second.curve == (CurveRow(50, 2, 1, None), CurveRow(100, 4, 2, 0.25))
    assert second.settings == cell("Catch-v0", 2).identity()
    assert second.about == {"wall_s": 1.0}
    assert results.read_cells(tmp_path / "nowhere") == []


def test_a_file_of_an_earlier_version_is_read(tmp_path):
    store(tmp_path, cell("Pong", 1, "environment.atari.frame_skip=2"))
    (path,) = (tmp_path / "cells").iterdir()
    tree = json.loads(path.read_text())
    del tree["videos"]
    for name in COLUMNS.split(",")[9:]:
        del tree["result"][name]
    tree["about"]["cells_beside"] = 3
    path.write_text(json.dumps(tree))
    (record,) = results.read_cells(tmp_path)
    assert record.videos == ()
    assert record.result.frames == 200
    assert record.result.protocol == "default"
    assert record.result.scored_episodes == 3
    assert record.result.learning_rate == 5e-4
    assert record.result.tuned is False
    assert record.result.wall_s == 0.25  # its share of a second


def test_a_finished_cell_is_known_and_another_is_not(tmp_path):
    assert not results.is_finished(tmp_path, cell())
    store(tmp_path, cell())
    assert results.is_finished(tmp_path, cell())
    assert results.is_finished(tmp_path, cell("Catch-v0", 1, "cells_at_once=9"))
    assert not results.is_finished(tmp_path, cell("Catch-v0", 2))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("env_steps=7", "env_steps = 200000, not 7"),
        (
            "agent.optimizer.learning_rate=0.5",
            "agent.optimizer.learning_rate = 0.001, not 0.5",
        ),
        (
            "agent.network.torso={kind: impala}",
            'agent.network.torso.kind = "mlp", not "impala"',
        ),
    ],
)
def test_other_settings_are_refused_by_name(tmp_path, override, message):
    store(tmp_path, cell())
    with pytest.raises(UserError) as error:
        results.is_finished(tmp_path, cell("Catch-v0", 1, override))
    assert message in str(error.value)
    assert f"results_dir: {tmp_path}" in str(error.value)
    assert "\n" not in str(error.value)


def test_settings_that_came_later_are_at_their_defaults(tmp_path):
    store(tmp_path, cell())
    (path,) = (tmp_path / "cells").iterdir()
    tree = json.loads(path.read_text())
    del tree["settings"]["final_score"]
    del tree["settings"]["agent"]["optimizer"]["eps"]
    del tree["settings"]["update_rule"]["normalize_advantages"]
    path.write_text(json.dumps(tree))
    assert results.is_finished(tmp_path, cell())
    with pytest.raises(UserError, match=r"final_score\.episodes = 100, not 7"):
        results.is_finished(tmp_path, cell("Catch-v0", 1, "final_score.episodes=7"))


def test_another_rule_of_the_same_name_is_refused(tmp_path):
    store(tmp_path, cell())
    with pytest.raises(UserError, match='rule_sha256 = "", not "abc"'):
        results.is_finished(tmp_path, cell(sha256="abc"))


def test_another_board_of_the_same_game_is_refused(tmp_path):
    store(tmp_path, cell())
    (other,) = plan(
        ["actor_critic"],
        overrides=["environment.suite=catch_8x8", "seeds=[1]", "env_steps=200000"],
    )
    with pytest.raises(UserError, match=r"environment\.options\.height = nothing"):
        results.is_finished(tmp_path, other)


def test_half_a_file_of_a_killed_writer_is_no_cell(tmp_path):
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / ".actor_critic__Catch-v0__seed1.json.new-7").write_text("{")
    assert not results.is_finished(tmp_path, cell())
    assert results_tables.merge_cells(tmp_path) == []


def test_one_cell_may_be_written_by_several_at_once(tmp_path):
    one = cell()
    means = [float(i) for i in range(40)]
    with ThreadPoolExecutor(8) as threads:
        were_first = list(threads.map(lambda mean: store(tmp_path, one, mean), means))
    (first,) = (m for m, was_first in zip(means, were_first, strict=True) if was_first)
    assert results.read_cell(tmp_path, one).result.mean_return == first
    assert [path.name for path in (tmp_path / "cells").iterdir()] == [
        f"{one.name}.json"
    ]
    assert results.is_finished(tmp_path, one)


@pytest.mark.parametrize("has_links", [True, False])
def test_who_stores_a_cell_first_stores_it(tmp_path, monkeypatch, has_links):
    if not has_links:

        def refuse(*_):
            raise PermissionError

        monkeypatch.setattr(os, "link", refuse)
    one, called = cell(), []
    assert store(tmp_path, one, 0.5, before=lambda: called.append(1))
    (path,) = (tmp_path / "cells").iterdir()
    stored = path.read_bytes()
    assert not store(tmp_path, one, 0.25, before=lambda: called.append(2))
    assert not write_new_file(path, b"other")  # nor without the lock
    assert called == [1]
    assert list((tmp_path / "cells").iterdir()) == [path]
    assert path.read_bytes() == stored


def test_a_file_that_is_no_cell_is_named_and_costs_its_row_alone(tmp_path, capsys):
    store(tmp_path, cell())
    (path,) = (tmp_path / "cells").iterdir()
    newer = json.loads(path.read_text())
    newer["result"]["column_of_a_newer_version"] = 1
    others = {"notes.json": '{"a": 1}', "newer.json": json.dumps(newer)}
    for name, text in others.items():
        (tmp_path / "cells" / name).write_text(text)
    for _ in range(2):
        merged = results_tables.merge_cells(tmp_path)
        assert [row.game for row in merged] == ["Catch-v0"]
    assert len(rows_of(tmp_path / "results.csv")) == 1
    lines = sorted(capsys.readouterr().out.splitlines())
    for line, name in zip(lines, sorted(others), strict=True):
        assert line.startswith(f"warning: results_dir: {tmp_path}/cells/{name} is not")
        assert line.endswith("; the tables are without it")
    with pytest.raises(UserError, match=r"(notes|newer)\.json is not a cell's file"):
        results.read_cells(tmp_path)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda _: [], "it has no fields"),
        (lambda tree: tree | {"result": [1]}, "'result' is not as this metarl has it"),
        (lambda tree: tree | {"curve": None}, "'curve' is not as this metarl has it"),
        (
            lambda tree: {k: v for k, v in tree.items() if k != "settings"},
            "'settings' is missing",
        ),
        (
            lambda tree: tree | {"result": {"game": "Pong-v5"}},
            "'rule' of 'result' is missing or no text",
        ),
        (lambda tree: tree | {"curve": [7]}, "a part of it is not as this metarl"),
        (lambda tree: tree | {"settings": {}}, "'environment' is missing"),
        (lambda tree: tree | {"format": 99}, None),
    ],
)
def test_why_a_file_is_no_cell_and_what_to_do_is_said(tmp_path, change, why):
    store(tmp_path, cell())
    (path,) = (tmp_path / "cells").iterdir()
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(UserError) as error:
        results.read_cells(tmp_path)
    said = str(error.value)
    if why is None:
        assert said == (
            f"results_dir: {path} is of format 99, this metarl reads up to 1 (update "
            "metarl, or choose another results_dir)"
        )
    else:
        assert said.startswith(f"results_dir: {path} is not a cell's file: {why}")
        assert said.endswith(
            " (delete it and give the command again, and it is trained anew)"
        )
    # Nor does anything else of an evaluation break by it.
    assert results_tables.merge_cells(tmp_path) == []
    assert update_statuses(tmp_path, [cell().rule]) == []


def test_half_a_cell_is_told_before_it_would_be_taken_for_done(tmp_path):
    store(tmp_path, cell())
    (path,) = (tmp_path / "cells").iterdir()
    path.write_text(path.read_text()[:99])
    with pytest.raises(UserError, match=r"not whole, or no JSON .delete it and"):
        results.is_finished(tmp_path, cell())
    path.unlink()
    assert not results.is_finished(tmp_path, cell())


def test_a_nan_that_an_earlier_version_wrote_is_read_as_nothing(tmp_path):
    store(tmp_path, cell())
    (path,) = (tmp_path / "cells").iterdir()
    text = path.read_text()
    assert text.count('"mean_return": 0.5') == 1
    path.write_text(text.replace('"mean_return": 0.5', '"mean_return": NaN'))
    assert results_tables.merge_cells(tmp_path)[0].mean_return is None
