"""Videos of agents, as part of the page.

Host code: reads the files that cells name, from their own results_dir alone.
"""

from __future__ import annotations

import base64
import dataclasses
from pathlib import Path

from metarl.evaluation.cell_records import (
    Video,
)
from metarl.report.markup import Child, Markup, join, number, tag
from metarl.report.posters import poster
from metarl.report.scores import Evaluation, Rule, Task
from metarl.report.tables import swatch

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
        steps = f" after {number(video.env_steps)} steps" if video.env_steps else ""
        peer = f", peer {video.peer}" if video.peer else ""
        return (
            f"{video.stage}: return {number(video.episode_return)}{steps} "
            f"(seed {self.seed}{peer})"
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
    """Return the videos game by game, and which were too large to be put in.

    A random agent that several rules began with is shown once. Where not all fit,
    every game has its first rule's before any has another's.
    """
    by_game: dict[Task, list[Clip]] = {}
    for clip in _distinct(clips):
        by_game.setdefault(clip.task, []).append(clip)
    ranks = {id(c): i for shown in by_game.values() for i, c in enumerate(shown)}
    left_out, used, kept = [], 0, set()
    for clip in sorted(clips, key=lambda c: ranks.get(id(c), -1)):
        if id(clip) not in ranks:
            continue
        size = clip.path.stat().st_size
        if used + size > MAX_BYTES:
            left_out.append(f"{clip.video.file}: the page has enough videos already")
            continue
        used += size
        kept.add(id(clip))
    rows = [
        tag(
            "div",
            tag("h3", task.name),
            tag("div", join(_player(clip, colors) for clip in shown), class_="videos"),
            class_="keep",
        )
        for task, of_game in by_game.items()
        if (shown := [clip for clip in of_game if id(clip) in kept])
    ]
    return join(rows), left_out


def _distinct(clips: list[Clip]) -> list[Clip]:
    """Return the clips without the random agents that an earlier rule began with.

    They play from the cell's seed alone, so that an equal return is the same episode.
    Its files may differ all the same: encoders promise no equal bytes.
    """
    seen: set[tuple[Task, int, float]] = set()
    found = []
    for clip in clips:
        key = clip.task, clip.seed, clip.video.episode_return
        if clip.video.stage != "random" or key not in seen:
            found.append(clip)
        if clip.video.stage == "random":
            seen.add(key)
    return found


def _player(clip: Clip, colors: dict[str, str]) -> Markup:
    data = base64.b64encode(clip.path.read_bytes()).decode()
    # A random agent has learned by no rule yet.
    is_random = clip.video.stage == "random"
    name: tuple[Child, ...] = (
        ("random agent",)
        if is_random
        else (swatch(colors[clip.rule.name]), clip.rule.name)
    )
    return tag(
        "figure",
        tag("p", *name, class_="who"),
        tag(
            "video",
            src=f"data:{_TYPES[clip.path.suffix]};base64,{data}",
            controls=True,
            muted=True,
            loop=True,
            playsinline=True,
            preload="metadata",
            poster=poster(clip.path),
            aria_label=f"{clip.task.name}, {clip.rule.name}, {clip.caption}",
        ),
        tag("figcaption", clip.caption),
    )


def _stage(video: Video) -> int:
    return _STAGES.index(video.stage) if video.stage in _STAGES else len(_STAGES)
