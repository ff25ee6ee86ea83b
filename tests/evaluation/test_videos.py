"""Videos are of the right agents, are made once, and change no result."""

from __future__ import annotations

import contextlib
import json
import shlex
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoded_video import decoded

from metarl.agents.agent import AgentState
from metarl.config import ActorCriticConfig, RandomConfig
from metarl.evaluation import command, evaluate, mp4, unfilmed, videos
from metarl.evaluation.cell_records import (
    make_result,
)
from metarl.evaluation.cells import Cell, plan
from metarl.evaluation.recording import Recording
from metarl.evaluation.results import (
    read_cells,
    write_cell,
)
from metarl.evaluation.runner import BatchRun, CellRun, never
from metarl.evaluation.videos import Camera, video_name
from metarl.numerics import adam_init
from metarl.rule_files import LoadedRule, new_manifest
from metarl.rules import make_rule

TINY = [
    "environment.suite=catch_5x5",
    "environment.num_envs=4",
    "rollout_length=6",
    "agent.network.torso.hidden=[8]",
    "env_steps=300",
    "curve_points=4",
]


def _rule(name: str = "small", *, random: bool = False) -> LoadedRule:
    config = (
        RandomConfig() if random else ActorCriticConfig(num_bins=5, max_abs_value=2.0)
    )
    return LoadedRule(make_rule(config), {}, new_manifest(config), name)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same evaluation with and without videos."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "disabled")
        made = {name: tmp_path_factory.mktemp(name) for name in ("with", "without")}
        for name, folder in made.items():
            own = [f"videos={name == 'with'}", "seeds=[1, 2]", f"results_dir={folder}"]
            evaluate([_rule()], overrides=[*TINY, *own])
    return made


def test_recording_changes_no_result(folders):
    for seed in (1, 2):
        cells = [
            json.loads((folder / f"cells/small__Catch-v0__seed{seed}.json").read_text())
            for folder in (folders["with"], folders["without"])
        ]
        for cell in cells:
            assert cell["result"].pop("wall_s") > 0
        for part in ("result", "curve", "settings"):
            assert cells[0][part] == cells[1][part]


def test_the_first_seed_of_a_game_gets_three_videos(folders):
    assert not (folders["without"] / "videos").exists()
    first, second = read_cells(folders["with"])
    assert (first.result.seed, second.result.seed) == (1, 2)
    assert second.videos == ()
    assert [video.stage for video in first.videos] == ["random", "early", "final"]
    # A rollout has 24 transitions at most; the first of four rows is at a quarter.
    steps = [video.env_steps for video in first.videos]
    assert steps == [0, first.curve[0].env_steps, first.curve[-1].env_steps]
    assert 75 <= steps[1] < 75 + 24
    for video in first.videos:
        name = (
            f"Catch-v0__small__seed1__{video.stage}__return{video.episode_return:.0f}"
        )
        assert video.file == f"videos/{name}.mp4"
        frames, _ = decoded(folders["with"] / video.file)
        assert frames.shape == (30, 240, 240, 3)  # five rows: four steps
        assert (frames[0] != frames[-1]).any()
        assert abs(video.episode_return) == 1
    # Nothing unfinished is left.
    assert len(list((folders["with"] / "videos").iterdir())) == 3


def test_each_stage_shows_the_agent_of_its_time(tmp_path, monkeypatch):
    cells = plan([_rule()], overrides=[*TINY, "videos=true", "seeds=[1, 2]"])
    batch = BatchRun(cells)
    camera = Camera(tmp_path, batch)
    weights: dict[int, dict[int, object]] = {1: {}, 2: {}}

    def on_row(run: CellRun, metrics: object) -> None:
        del metrics
        camera.keep(run)
        agent = batch.agents_of(batch.runs.index(run))
        weights[run.cell.seed][run.env_steps] = jax.tree.map(np.array, agent.params)

    batch.run(on_row, lambda _: None)
    filmed: list[tuple[int, object]] = []

    def film(agent, state, key):
        del agent, key
        filmed.append((int(state.env_steps), state.params))
        return lambda *_: 0

    monkeypatch.setattr(videos, "agent_policy", film)
    monkeypatch.setattr(videos.amendments, "add_videos", lambda *_: None)
    camera.film({cell.name: _Shown() for cell in cells})
    steps = sorted(weights[1])
    assert [age for age, _ in filmed] == [steps[0], steps[-1]]
    for age, params in filmed:
        jax.tree.map(np.testing.assert_array_equal, params, weights[1][age])
    first, last = (jax.tree.leaves(params)[0] for _, params in filmed)
    assert (first != last).any()


@pytest.mark.parametrize("moment", ["killed", "told to stop"])
def test_what_a_process_did_not_come_to_film_the_next_one_films(
    folders, tmp_path, monkeypatch, moment
):
    def run(**kwargs) -> None:
        own = ["videos=true", "seeds=[1, 2]", f"results_dir={tmp_path}"]
        evaluate([_rule()], overrides=[*TINY, *own], **kwargs)

    class Killed(BaseException):
        """No code catches it, as none would a kill."""

    def die(*args, **kwargs):
        raise Killed

    if moment == "told to stop":
        # The last cell is stored: the films are left.
        run(told_to_stop=(tmp_path / "cells/small__Catch-v0__seed2.json").is_file)
    else:
        monkeypatch.setattr(videos._Shoot, "_record", die)
        with pytest.raises(Killed):
            run()
        monkeypatch.undo()
        monkeypatch.setenv("WANDB_MODE", "disabled")
    assert len(list((tmp_path / ".unfilmed").iterdir())) == 1
    assert [cell.videos for cell in read_cells(tmp_path)] == [(), ()]
    monkeypatch.setattr(BatchRun, "run", die)  # nothing is trained again
    run()
    for killed, whole in zip(
        read_cells(tmp_path), read_cells(folders["with"]), strict=True
    ):
        assert killed.videos == whole.videos
        assert killed.curve == whole.curve
        for video in killed.videos:
            one, other = (folder / video.file for folder in (tmp_path, folders["with"]))
            np.testing.assert_array_equal(decoded(one)[0], decoded(other)[0])
    assert not (tmp_path / ".unfilmed").exists()


def test_a_stop_while_filming_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(
        command, "stop_signals", lambda *_: contextlib.nullcontext(lambda: any(asked))
    )
    film = videos._Shoot._record

    def told_meanwhile(*args):
        asked.append(True)
        return film(*args)

    overrides = [*TINY[1:], "videos=true", "seeds=[1]", f"results_dir={tmp_path}"]
    given = ["actor_critic"], "catch_5x5", [], overrides
    with monkeypatch.context() as patch:
        patch.setattr(videos._Shoot, "_record", told_meanwhile)
        assert command.main(*given) == 75
    words = ["metarl", "evaluate", *given[0], "--suite", given[1], *overrides]
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"stopped, with agents left to film; go on with: {shlex.join(words)}"
    )
    assert [video.stage for video in read_cells(tmp_path)[0].videos] == ["random"]
    # A stop that comes too late to leave anything is none.
    assert command.main(*given) == 75
    del asked[:]
    assert command.main(*given) == 0
    asked.append(True)
    assert command.main(*given) == 0
    assert len(read_cells(tmp_path)[0].videos) == 3


def test_a_result_that_came_second_is_dropped_with_its_agents(
    tmp_path, monkeypatch, capsys
):
    own = ["videos=true", "seeds=[1]", f"results_dir={tmp_path}"]
    (cell,) = plan([_rule()], overrides=[*TINY, *own])
    learn = BatchRun.run

    def another_is_first(*args, **kwargs):
        first = make_result(cell, env_steps=300, episodes=1, last_returns=[0.125])
        assert write_cell(tmp_path, cell, first, [], {})
        learn(*args, **kwargs)

    monkeypatch.setattr(BatchRun, "run", another_is_first)
    (row,) = evaluate([_rule()], overrides=[*TINY, *own])
    assert row.mean_return == 0.125
    (stored,) = read_cells(tmp_path)
    assert (stored.result, stored.curve, stored.videos) == (row, (), ())
    assert not (tmp_path / ".unfilmed").exists()
    assert not (tmp_path / "videos").exists()
    assert f"{cell.name} was stored by another process" in capsys.readouterr().out


def test_agents_of_other_settings_are_not_filmed(tmp_path):
    film = _Film(_rule(), "seeds=[3]")
    (cell,) = film.store(tmp_path)
    (other,) = _Film(_rule(), "seeds=[3]", "rollout_length=5").store(tmp_path / "other")
    unfilmed.store(tmp_path, other, [])
    assert unfilmed.is_waiting(tmp_path, cell)
    videos.film_left(tmp_path, [cell], never)
    assert not unfilmed.is_waiting(tmp_path, cell)
    assert read_cells(tmp_path)[0].videos == ()


class _Film:
    """The part of a batch that a camera looks at; nobody learns anything."""

    def __init__(self, rule: LoadedRule, *overrides: str) -> None:
        cells = plan([rule], overrides=[*TINY, "videos=true", *overrides])
        self.settings = cells[0].settings
        self.agent = None
        self.runs = [SimpleNamespace(cell=c, env_steps=0, is_done=True) for c in cells]

    def agents_of(self, index: int) -> AgentState:
        nothing = jnp.zeros(index)
        return AgentState({}, {}, adam_init({}), {}, nothing, nothing)

    def store(self, folder: Path) -> list[Cell]:
        cells = [run.cell for run in self.runs]
        for cell in cells:
            done = make_result(cell, env_steps=300, episodes=1, last_returns=[1.0])
            write_cell(folder, cell, done, [], {})
        return cells


class _Shown(list):
    def log_video(self, game: str, path: Path, *, global_step: int) -> None:
        assert path.is_file()
        self.append((game, path.name, global_step))


def _film(folder: Path, film: _Film, told_to_stop=never) -> _Shown:
    (name,) = (cell.name for cell in film.store(folder))
    camera, shown = Camera(folder, film), _Shown()
    camera.keep(film.runs[0])
    camera.secure(film.runs[0])
    camera.film({name: shown}, told_to_stop)
    return shown


def test_agents_that_never_learn_are_filmed_once_and_shown(tmp_path):
    shown = _film(tmp_path, _Film(_rule("chance", random=True), "seeds=[1]"))
    (cell,) = read_cells(tmp_path)
    (video,) = cell.videos
    assert (video.stage, video.env_steps) == ("random", 0)
    assert shown == [("Catch-v0", Path(video.file).name, 0)]
    assert cell.result.mean_return == 1.0  # what was stored before stays


def test_no_encoder_is_said_in_one_line_and_costs_nothing(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(mp4, "can_encode", lambda: False)
    videos._say_once.cache_clear()
    film = _Film(_rule(), "seeds=[3]")
    for _ in range(2):
        assert _film(tmp_path, film) == []
    assert capsys.readouterr().out.splitlines() == [
        "warning: videos need PyAV, which is not installed (pip install av); the "
        "evaluation goes on without"
    ]
    assert not (tmp_path / "videos").exists()


def test_a_video_that_fails_is_one_line_and_leaves_nothing(
    tmp_path, monkeypatch, capsys
):
    def fail(*args, on_frame, **kwargs):
        del args, kwargs
        on_frame(np.zeros((32, 32, 3), np.uint8))
        raise RuntimeError("the screen broke\nin many ways")

    monkeypatch.setattr(videos, "record_episode", fail)
    assert _film(tmp_path, _Film(_rule(), "seeds=[3]")) == []
    warnings = [x for x in capsys.readouterr().out.splitlines() if "filming" not in x]
    assert warnings == ["warning: no video of small__Catch-v0__seed3: the screen broke"]
    assert list((tmp_path / "videos").iterdir()) == []
    assert (tmp_path / ".unfilmed").is_dir()  # to try again
    assert read_cells(tmp_path)[0].videos == ()


def test_an_episode_whose_return_is_nan_has_no_video(tmp_path, monkeypatch, capsys):
    def pay_nan(*args, on_frame, **kwargs):
        del args, kwargs
        on_frame(np.zeros((32, 32, 3), np.uint8))
        return Recording(float("nan"), 1, 1, False)

    monkeypatch.setattr(videos, "record_episode", pay_nan)
    assert _film(tmp_path, _Film(_rule(), "seeds=[3]")) == []
    assert "seed3: the return of the episode is not finite" in capsys.readouterr().out
    assert list((tmp_path / "videos").iterdir()) == []
    assert read_cells(tmp_path)[0].videos == ()


def test_a_stop_leaves_out_the_videos_that_are_left(tmp_path):
    asked = iter([False, True])
    shown = _film(tmp_path, _Film(_rule(), "seeds=[3]"), lambda: next(asked))
    assert len(shown) == 1
    assert [video.stage for video in read_cells(tmp_path)[0].videos] == ["random"]


def test_names_escape_odd_characters_and_say_what_was_cut():
    (cell,) = plan([_rule("../my rule:α")], overrides=[*TINY, "seeds=[7]"])
    assert isinstance(cell, Cell)
    assert video_name(cell, "early", Recording(-3.0, 9, 60, False)) == (
        "Catch-v0__..-my-rule--__seed7__early__return-3.mp4"
    )
    assert video_name(cell, "final", Recording(0.95525, 9, 60, True)).endswith(
        "__final__return0.955__cut.mp4"
    )
    assert "__return12345678__" in video_name(
        cell, "final", Recording(12345678.0, 9, 60, True)
    )
