from __future__ import annotations

import csv
import dataclasses
import json
import os
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

from metarl.atomic_files import write_new_file
from metarl.envs.pool import Episodes
from metarl.errors import UserError
from metarl.evaluation import amendments, results, results_tables, training
from metarl.evaluation.amendments import update_statuses
from metarl.evaluation.cell_run import CellRun
from metarl.evaluation.cells import Cell, plan
from metarl.evaluation.results import CurveRow, Video
from metarl.evaluation.summary import summary
from metarl.rule_files import load_rule

COLUMNS = (
    "rule,game,status,seed,group_size,env_steps,episodes,mean_return,"
    "human_normalized_score,scored_episodes,frames,protocol,learning_rate,tuned,wall_s,"
    "best_return,worst_return"
)


def cell(game: str = "Catch-v0", seed: int = 1, *overrides: str, **manifest) -> Cell:
    rule = load_rule("actor_critic")
    rule = dataclasses.replace(rule, manifest=rule.manifest.model_copy(update=manifest))
    (found,) = plan(
        [rule],
        overrides=[f"environment.games=[{game}]", f"seeds=[{seed}]", *overrides],
    )
    return found


def store(folder, cell: Cell, mean: float | None = 0.5, **others) -> bool:
    result = results.make_result(
        cell, env_steps=100, episodes=3, last_returns=[] if mean is None else [mean]
    )
    curve = [CurveRow(50, 2, 1, None), CurveRow(100, 4, 2, 0.25)]
    return results.write_cell(folder, cell, result, curve, {"wall_s": 1.0}, **others)


def rows_of(path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_tables_have_the_columns_that_were_agreed(tmp_path):
    store(tmp_path, cell("Catch-v0", 2))
    store(tmp_path, cell("Catch-v0", 1), None)
    merged = results_tables.merge_cells(tmp_path)
    text = (tmp_path / "results.csv").read_text()
    assert text.splitlines() == [
        COLUMNS,
        "actor_critic,Catch-v0,held_out,1,1,100,3,,,0,100,,0.001,False,,,",
        "actor_critic,Catch-v0,held_out,2,1,100,3,0.5,,1,100,,0.001,False,,0.5,0.5",
    ]
    rows = json.loads((tmp_path / "results.json").read_text())
    assert rows == [dataclasses.asdict(result) for result in merged]
    assert rows[0]["mean_return"] is None
    assert list(rows[0]) == COLUMNS.split(",")
    curves = (tmp_path / "curves.csv").read_text().splitlines()
    assert curves[:3] == [
        "rule,game,seed,env_steps,agent_updates,episodes,mean_return,group_size,peer",
        "actor_critic,Catch-v0,1,50,2,1,,1,",
        "actor_critic,Catch-v0,1,100,4,2,0.25,1,",
    ]
    assert len(curves) == 5


@pytest.mark.parametrize("name", ["=1+1", "+a", "-a", "@a", "\ta", "a=1"])
def test_no_name_is_a_formula_and_numbers_stay_numbers(tmp_path, name):
    one = cell()
    store(tmp_path, one, -0.5)
    (path,) = (tmp_path / "cells").iterdir()
    tree = json.loads(path.read_text())
    tree["result"]["rule"] = name
    path.write_text(json.dumps(tree))
    (row,) = results_tables.merge_cells(tmp_path)
    assert row.rule == name
    disarmed = name if name == "a=1" else f"'{name}"
    (written,) = rows_of(tmp_path / "results.csv")
    assert (written["rule"], written["mean_return"]) == (disarmed, "-0.5")
    assert rows_of(tmp_path / "curves.csv")[0]["rule"] == disarmed
    assert json.loads((tmp_path / "results.json").read_text())[0]["rule"] == name


def test_frames_and_protocol_of_atari(tmp_path):
    store(tmp_path, cell("Pong", 1, "environment.atari.protocol=machado"))
    (record,) = results.read_cells(tmp_path)
    assert (record.result.frames, record.result.protocol) == (400, "machado")
    assert record.result.learning_rate == 5e-4


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


def test_human_normalized_score(tmp_path):
    # Pong: random -20.7, human 14.6.
    store(tmp_path, cell("Pong-v5"), -3.05)
    store(tmp_path, cell("Kaboom-v5"), 7.0)
    results_tables.merge_cells(tmp_path)
    by_game = {row["game"]: row for row in rows_of(tmp_path / "results.csv")}
    score = float(by_game["Pong-v5"]["human_normalized_score"])
    assert score == pytest.approx(0.5)
    assert by_game["Kaboom-v5"]["human_normalized_score"] == ""


def test_status_comes_from_the_manifest():
    seen = {"games_seen": ("Pong-v5",), "games_validation": ("Boxing-v5",)}

    def status(game: str, **manifest) -> str:
        return results.make_result(
            cell(game, **manifest), env_steps=1, episodes=0, last_returns=[]
        ).status

    assert status("Pong-v5", **seen) == "seen"
    assert status("Boxing-v5", **seen) == "validation"
    assert status("Catch-v0", **seen) == "held_out"
    assert status("Catch-v0", **seen, seen_is_complete=False) == "unknown"
    assert status("Pong-v5") == "held_out"


def test_stored_statuses_are_updated_for_the_very_same_rule_alone(tmp_path):
    store(tmp_path, cell("Pong-v5", sha256="abc"))
    store(tmp_path, cell("Catch-v0", sha256="abc"))
    knows = {"games_validation": ("Pong-v5",)}
    other = cell("Pong-v5", sha256="def", **knows).rule
    assert update_statuses(tmp_path, [other]) == []
    now = cell("Catch-v0", sha256="abc", **knows).rule
    name = "actor_critic__Pong-v5__seed1"
    # Somebody else's file, before it in the alphabet, keeps no cell from that.
    (tmp_path / "cells" / "A.json").write_text("{")
    assert update_statuses(tmp_path, [now]) == [(name, "held_out", "validation")]
    (tmp_path / "cells" / "A.json").unlink()
    assert update_statuses(tmp_path, [now]) == []
    statuses = {r.result.game: r.result.status for r in results.read_cells(tmp_path)}
    assert statuses == {"Catch-v0": "held_out", "Pong-v5": "validation"}


KNOWLEDGE = {
    "held_out": {},
    "validation": {"games_validation": ("Pong-v5",)},
    "unknown": {"seen_is_complete": False, "games_validation": ("Pong-v5",)},
    "seen": {"games_seen": ("Pong-v5",)},
}


@pytest.mark.parametrize("stored", KNOWLEDGE)
@pytest.mark.parametrize("now", KNOWLEDGE)
def test_a_stored_status_moves_towards_less_trust_alone(tmp_path, stored, now):
    store(tmp_path, cell("Pong-v5", sha256="abc", **KNOWLEDGE[stored]))
    rule = cell("Pong-v5", sha256="abc", **KNOWLEDGE[now]).rule
    assert rule.status("Pong-v5") == now
    changed = update_statuses(tmp_path, [rule])
    (record,) = results.read_cells(tmp_path)
    order = list(KNOWLEDGE)
    if order.index(now) > order.index(stored):
        assert changed == [("actor_critic__Pong-v5__seed1", stored, now)]
        assert record.result.status == now
    else:
        assert changed == []
        assert record.result.status == stored


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


def test_files_appear_whole(tmp_path):
    store(tmp_path, cell())
    results_tables.merge_cells(tmp_path)
    files = sorted(p.name for p in tmp_path.rglob("*") if p.is_file())
    assert files == [
        ".merge.lock",
        "actor_critic__Catch-v0__seed1.json",
        "curves.csv",
        "results.csv",
        "results.json",
    ]


def test_half_a_file_of_a_killed_writer_is_no_cell(tmp_path):
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / ".actor_critic__Catch-v0__seed1.json.new-7").write_text("{")
    assert not results.is_finished(tmp_path, cell())
    assert results_tables.merge_cells(tmp_path) == []


def test_whoever_merges_last_has_all_cells(tmp_path):
    planned = [cell("Catch-v0", seed) for seed in range(1, 13)]

    def finish(one: Cell) -> None:
        store(tmp_path, one)
        results_tables.merge_cells(tmp_path)

    with ThreadPoolExecutor(12) as threads:
        list(threads.map(finish, planned))
    seeds = [int(row["seed"]) for row in rows_of(tmp_path / "results.csv")]
    assert seeds == list(range(1, 13))
    assert len(rows_of(tmp_path / "curves.csv")) == 24


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


def test_summary_is_a_mean_over_seeds():
    def result(seed: int, mean: float | None):
        returns = [] if mean is None else [mean]
        return results.make_result(
            cell("Pong-v5", seed), env_steps=1, episodes=1, last_returns=returns
        )

    head, row = summary([result(1, -20.7), result(2, 14.6)])
    assert head[:3] == ["game", "status", "rule"]
    assert row == ["Pong-v5", "held_out", "actor_critic", "2", "1", "-3.050", "0.500"]
    assert summary([result(1, None)])[1][3:] == ["0 of 1", "0", "-", "-"]


def test_summary_tells_of_how_many_seeds_the_mean_is():
    def result(seed: int, *returns: float):
        return results.make_result(
            cell("Catch-v0", seed), env_steps=1, episodes=1, last_returns=returns
        )

    _, row = summary([result(1), result(2, 0.5, 1.0), result(3)])
    assert row[3:] == ["1 of 3", "2", "0.750", "-"]


def episodes(*returns: float) -> list[Episodes]:
    """Return what a single agent finished."""
    values = np.array(returns, np.float64)
    return [Episodes(values, np.full(len(returns), 4))]


def test_the_result_is_the_mean_of_the_last_100_episodes():
    run = CellRun(cell("Catch-v0", 1, "env_steps=30"))
    run.record(env_steps=10, agent_updates=1, episodes=episodes(*[9.0] * 60))
    run.record(env_steps=10, agent_updates=2, episodes=episodes(*[1.0] * 60))
    assert run.result is None
    run.record(env_steps=10, agent_updates=3, episodes=episodes(*[2.0] * 30))
    # The last 100: 10 of 9, 60 of 1 and 30 of 2.
    assert run.result.mean_return == pytest.approx((90 + 60 + 60) / 100)
    assert run.result.episodes == 150
    assert run.result.env_steps == 30


def test_the_result_may_be_of_the_last_share_of_the_budget():
    run = CellRun(cell("Catch-v0", 1, "env_steps=100", "final_score.last_share=0.25"))
    for i in range(10):
        run.record(env_steps=10, agent_updates=i, episodes=episodes(*[float(i)] * 40))
    # What finished after step 75: of the rollouts that ended at 80, 90 and 100.
    assert run.result.scored_episodes == 120
    assert run.result.mean_return == pytest.approx((7 + 8 + 9) / 3)
    assert run.result.episodes == 400


def test_the_result_may_be_of_another_number_of_episodes():
    run = CellRun(cell("Catch-v0", 1, "env_steps=10", "final_score.episodes=2"))
    run.record(env_steps=10, agent_updates=1, episodes=episodes(9.0, 1.0, 2.0))
    assert (run.result.mean_return, run.result.scored_episodes) == (1.5, 2)


def test_of_fewer_episodes_all_count_and_none_is_no_number():
    run = CellRun(cell("Catch-v0", 1, "env_steps=10"))
    run.record(env_steps=10, agent_updates=1, episodes=episodes(1.0, 0.0, -0.5))
    assert run.result.mean_return == pytest.approx(0.5 / 3)
    run = CellRun(cell("Pong-v5", 1, "env_steps=10"))
    run.record(env_steps=10, agent_updates=1, episodes=episodes())
    assert run.result.mean_return is None
    assert run.result.human_normalized_score is None


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_returns_that_are_not_finite_are_nothing_in_json(tmp_path, odd):
    one = cell("Pong-v5", 1, "env_steps=20", "curve_points=2", "final_score.episodes=3")
    run = CellRun(one)
    run.record(env_steps=10, agent_updates=1, episodes=episodes(odd, 1.0, 2.0, 3.0))
    assert (run.nonfinite_returns, run.curve[0].episodes) == (1, 4)
    # The score is of the newest alone, so it may be finite again.
    run.record(env_steps=10, agent_updates=2, episodes=episodes(4.0))
    assert [row.mean_return for row in run.curve] == [None, 4.0]
    assert (run.result.mean_return, run.result.scored_episodes) == (3.0, 3)

    result = results.make_result(one, env_steps=20, episodes=2, last_returns=[1, odd])
    assert result.mean_return is result.human_normalized_score is None
    assert (result.episodes, result.scored_episodes) == (2, 0)
    results.write_cell(tmp_path, one, result, run.curve, {})
    results_tables.merge_cells(tmp_path)
    for path in (*(tmp_path / "cells").iterdir(), tmp_path / "results.json"):
        json.loads(path.read_text(), parse_constant=pytest.fail)
    (row,) = rows_of(tmp_path / "results.csv")
    assert (row["mean_return"], row["human_normalized_score"]) == ("", "")
    with pytest.raises(ValueError, match="not JSON compliant"):
        results.write_tree(tmp_path / "other.json", {"a": odd})


def test_a_nan_that_an_earlier_version_wrote_is_read_as_nothing(tmp_path):
    store(tmp_path, cell())
    (path,) = (tmp_path / "cells").iterdir()
    text = path.read_text()
    assert text.count('"mean_return": 0.5') == 1
    path.write_text(text.replace('"mean_return": 0.5', '"mean_return": NaN'))
    assert results_tables.merge_cells(tmp_path)[0].mean_return is None


def test_a_curve_has_a_row_per_part_of_the_budget():
    run = CellRun(cell("Catch-v0", 1, "env_steps=100", "curve_points=4"))
    due = [
        run.record(env_steps=10, agent_updates=i + 1, episodes=episodes(float(i)))
        for i in range(10)
    ]
    assert [i for i, is_due in enumerate(due) if is_due] == [2, 4, 7, 9]
    assert run.curve == [
        CurveRow(30, 3, 3, 1.0),  # of 0, 1, 2
        CurveRow(50, 5, 2, 3.5),
        CurveRow(80, 8, 3, 6.0),
        CurveRow(100, 10, 2, 8.5),
    ]


def test_speed_is_since_the_row_before(monkeypatch):
    clock = iter([10.0, 14.0, 15.0])  # compiling takes most of the first row
    monkeypatch.setattr(training, "time", SimpleNamespace(perf_counter=clock.__next__))
    rows = []
    log = training._CellLog(SimpleNamespace(log=lambda row, **_: rows.append(row)))
    run = CellRun(cell("Catch-v0", 1, "env_steps=20", "curve_points=2"))
    for _ in range(2):
        run.record(env_steps=10, agent_updates=1, episodes=episodes(0.5))
        log.add_row(run, {})
    assert [row["charts/SPS"] for row in rows] == [2.5, 10.0]
