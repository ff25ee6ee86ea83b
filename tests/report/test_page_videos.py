"""Videos on the page: from their results alone, with a picture, within bounds."""

from __future__ import annotations

import base64
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from report_cells import make_cell, store
from report_pages import report

from metarl.evaluation.cell_records import (
    Video,
)
from metarl.evaluation.mp4 import Mp4Writer
from metarl.report import evaluation_tables
from metarl.report.inputs import read_inputs
from metarl.report.posters import poster
from metarl.report.scores import gather
from metarl.report.videos import find_clips, show_clips

SQUARE = Path(__file__).parents[1] / "data" / "square.mp4"


@pytest.mark.parametrize(
    ("file", "problem"),
    [
        ("videos/a.mp4", None),
        ("videos/gone.mp4", "the file is gone"),
        ("../secret.mp4", "not a video in results"),
        ("videos/link.mp4", "not a video in results"),
        ("cells/actor_critic__Pong-v5__seed1.json", "not a video in results"),
    ],
)
def test_videos_are_read_from_their_results_alone(tmp_path, file, problem):
    folder = tmp_path / "results"
    (folder / "videos").mkdir(parents=True)
    shutil.copy(SQUARE, folder / "videos" / "a.mp4")
    shutil.copy(SQUARE, tmp_path / "secret.mp4")
    (folder / "videos" / "link.mp4").symlink_to(tmp_path / "secret.mp4")
    videos = [Video("final", file, 3.0, 1000)]
    store(folder, make_cell("actor_critic", "Pong-v5", 1), 1.0, videos=videos)
    text, elements = report(folder)
    shown = elements.named("video")
    if problem is None:
        assert shown[0]["src"].startswith("data:video/mp4;base64,")
        assert "final: return 3 after 1,000 steps (seed 1)" in text
    else:
        assert shown == []
        assert f"{file}: {problem}" in text


def test_a_video_has_a_picture_of_its_middle(tmp_path):
    av = pytest.importorskip("av")
    path = tmp_path / "a.mp4"
    with Mp4Writer(path, fps=30) as writer:
        for i in range(20):
            writer.add(np.full((64, 64, 3), 255 if i >= 9 else 0, np.uint8))
    shown = poster(path)
    kind, _, data = shown.partition(",")
    assert kind == "data:image/jpeg;base64"
    with av.open(io.BytesIO(base64.b64decode(data))) as picture:
        pixels = next(picture.decode(video=0)).to_ndarray(format="rgb24")
    assert pixels.shape == (64, 64, 3)
    assert pixels.mean() > 200
    path.write_bytes(b"no video")
    assert poster(path) is None


def test_a_random_agent_is_shown_once_and_every_game_has_its_part(
    tmp_path, monkeypatch
):
    (tmp_path / "videos").mkdir()
    for game in ("Boxing-v5", "Pong-v5"):
        for rule in ("actor_critic", "mine"):
            videos = []
            for stage in ("random", "final"):
                file = f"videos/{game}__{rule}__{stage}.mp4"
                # As encoders do, which give equal frames other bytes.
                (tmp_path / file).write_bytes(f"{game}{stage}{rule}".encode().ljust(64))
                steps = 0 if stage == "random" else 1000
                videos.append(Video(stage, file, 1.0, steps))
            store(tmp_path, make_cell(rule, game, 1), 1.0, videos=videos)
    evaluation = gather(read_inputs([tmp_path]).records, None)
    clips, _ = find_clips(evaluation)
    colors = evaluation_tables.colors(evaluation)
    shown, left_out = show_clips(clips, colors)
    assert len(clips) == 8
    assert shown.count("<video") == 6
    assert shown.count(">random agent<") == 2
    assert left_out == []
    monkeypatch.setattr("metarl.report.videos.MAX_BYTES", 4 * 64)
    shown, left_out = show_clips(clips, colors)
    assert shown.count("<video") == 4
    assert [text.partition("__")[0] for text in left_out] == [
        "videos/Boxing-v5",
        "videos/Pong-v5",
    ]
