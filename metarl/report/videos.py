"""Videos of agents, as part of the page.

Host code: reads the files that cells name, from their own results_dir alone.
"""

from __future__ import annotations

import base64
import dataclasses
from pathlib import Path

from metarl.evaluation.results import Video
from metarl.report.markup import Markup, join, number, tag
from metarl.report.scores import Evaluation, Rule, Task

MAX_BYTES = 48 * 2**20
"""Of all videos together; a page of more is no longer handy. Others are named."""
_TYPES = {".mp4": "video/mp4", ".webm": "video/webm"}
_STAGES = ("random", "early", "final")


@dataclasses.dataclass(frozen=True)
class Clip:
    """A video that a page can show."""

    rule: Rule
    task: Task
    seed: int
    video: Video
    path: Path

    @property
    def caption(self) -> str:
        """What it shows."""
        video = self.video
        return (
            f"{video.stage}: return {number(video.episode_return)} after "
            f"{number(video.env_steps)} steps (seed {self.seed})"
        )


def find_clips(evaluation: Evaluation) -> tuple[list[Clip], list[str]]:
    """Return the videos there are, one seed per rule and game, and what is missing.

    A file outside the results_dir of its cell is never read, whatever the cell says.
    """
    clips: list[Clip] = []
    problems: list[str] = []
    for task in evaluation.tasks:
        for rule in evaluation.rules:
            cells = evaluation.cells.get((rule.name, task), ())
            cell = next((cell for cell in cells if cell.videos), None)
            if cell is None:
                continue
            root = evaluation.folder_of(cell).resolve()
            for video in sorted(cell.videos, key=_stage):
                path = (root / video.file).resolve()
                if not path.is_relative_to(root) or path.suffix not in _TYPES:
                    problems.append(f"{video.file}: not a video in {root.name}")
                elif not path.is_file():
                    problems.append(f"{video.file}: the file is gone")
                else:
                    clips.append(Clip(rule, task, cell.result.seed, video, path))
    return clips, problems


def show_clips(clips: list[Clip], colors: dict[str, str]) -> tuple[Markup, list[str]]:
    """Return the videos by game and rule, and which were too large to be put in."""
    left_out, used = [], 0
    by_row: dict[tuple[Task, Rule], list[Markup]] = {}
    for clip in clips:
        size = clip.path.stat().st_size
        if used + size > MAX_BYTES:
            left_out.append(f"{clip.video.file}: the page has enough videos already")
            continue
        used += size
        by_row.setdefault((clip.task, clip.rule), []).append(_player(clip))
    rows = [
        tag(
            "div",
            tag(
                "h3",
                tag("span", class_="swatch", style=f"background:{colors[rule.name]}"),
                f"{task.name} · {rule.name}",
            ),
            tag("div", join(players), class_="videos"),
            class_="keep",
        )
        for (task, rule), players in by_row.items()
    ]
    return join(rows), left_out


def _player(clip: Clip) -> Markup:
    data = base64.b64encode(clip.path.read_bytes()).decode()
    return tag(
        "figure",
        tag(
            "video",
            src=f"data:{_TYPES[clip.path.suffix]};base64,{data}",
            controls=True,
            muted=True,
            loop=True,
            playsinline=True,
            preload="metadata",
            aria_label=f"{clip.task.name}, {clip.rule.name}, {clip.caption}",
        ),
        tag("figcaption", clip.caption),
    )


def _stage(video: Video) -> int:
    return _STAGES.index(video.stage) if video.stage in _STAGES else len(_STAGES)
