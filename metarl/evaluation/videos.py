"""Videos of an evaluation's agents: a random one, an early one and the final one.

Hooks for `training.py`: agents are kept as they are trained, and filmed when the batch
is done and its cells are stored. Those that a process does not come to film are left on
disk for the next one (`unfilmed.py`). A video that cannot be made costs one line on the
terminal, never the evaluation. Host code.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from metarl.agents.agent import Agent
from metarl.console import heartbeat, say
from metarl.envs.pools import pool_seed
from metarl.envs.render import FPS
from metarl.evaluation import amendments, mp4, unfilmed
from metarl.evaluation.cell_records import (
    Stage,
    Video,
)
from metarl.evaluation.cell_run import CellRun
from metarl.evaluation.cells import Cell
from metarl.evaluation.recording import (
    Policy,
    Recording,
    agent_policy,
    random_policy,
    record_episode,
)
from metarl.evaluation.runner import BatchRun, ToldToStop, agent_of, never
from metarl.evaluation.unfilmed import Filmed, acting
from metarl.tracking import Tracker

FOLDER = "videos"
"""Within the results."""

EARLY = 0.05
"""Share of the budget after which the next row of the curve shows the early agent."""

FILMED_PEER = 1
"""Which agent of a group is filmed, from 1."""

# What tells a video's pool and keys from those that learn: the cell's pool has index 0,
# and its keys are folded with the number of the iteration.
_POOL_INDEX = 1
_KEY = np.uint32(2**32 - 1)


@dataclasses.dataclass
class _Kept:
    """A cell whose agents are filmed once all cells of the batch are done."""

    cell: Cell
    agents: list[Filmed]
    is_done: bool = False


class Camera:
    """Records agents of one batch: of each rule and game, those of the first seed.

    Of a group its first peer.
    """

    def __init__(self, results_dir: Path, run: BatchRun) -> None:
        """Describe it; it does nothing where ``videos`` is off.

        Args:
          results_dir: of the evaluation.
          run: whose agents are filmed.
        """
        self._results_dir, self._run = results_dir, run
        self._kept: dict[str, _Kept] = {}
        self._is_on = run.settings.videos and _can_encode()

    def keep(self, cell_run: CellRun) -> None:
        """Keep the agent if one is to be filmed; call at every row of the curve."""
        cell = cell_run.cell
        if not self._is_on or cell.seed != cell.settings.seeds[0]:
            return
        kept = self._kept.setdefault(cell.name, _Kept(cell, []))
        stage: Stage = "final" if cell_run.is_done else "early"
        is_due = cell_run.is_done or (
            not kept.agents and cell_run.env_steps >= EARLY * cell.env_steps
        )
        # Agents of the rule `random` are all alike.
        if is_due and cell.rule.manifest.config.kind != "random":
            index = self._run.runs.index(cell_run)
            state = self._run.agents_of(index)
            kept.agents.append(Filmed(stage, acting(state), cell_run.env_steps))
        kept.is_done = cell_run.is_done

    def secure(self, cell_run: CellRun) -> None:
        """Write down what is to be filmed of a cell; call before it is stored."""
        cell = cell_run.cell
        if (kept := self._kept.get(cell.name)) is None:
            return
        try:
            unfilmed.store(self._results_dir, cell, kept.agents)
        except OSError as error:
            say(f"warning: a kill would lose the videos of {cell.name}: {error}")

    def leave(self, cell_run: CellRun) -> None:
        """Film none of a cell: its result is another process's, and so are agents."""
        self._kept.pop(cell_run.cell.name, None)

    def film(
        self, trackers: Mapping[str, Tracker], told_to_stop: ToldToStop = never
    ) -> None:
        """Record the agents of all cells that are done, and add them to their files.

        Args:
          trackers: by the cell's name, to show the videos in.
          told_to_stop: asked before every video; the others are left for the next
            process then.
        """
        for name, kept in self._kept.items():
            if kept.is_done:
                shoot = _Shoot(self._results_dir, kept.cell, self._run.agent)
                shoot.film(kept.agents, trackers[name], told_to_stop)


def is_left_to_film(results_dir: Path, cells: Sequence[Cell]) -> bool:
    """Return whether `film_left` would film any agents of these cells."""
    return any(_is_left(results_dir, cell) for cell in cells) and mp4.can_encode()


def film_left(
    results_dir: Path, cells: Sequence[Cell], told_to_stop: ToldToStop
) -> None:
    """Film the agents of finished cells that an earlier process did not come to.

    Args:
      results_dir: of the evaluation.
      cells: that are stored there.
      told_to_stop: asked before every video.
    """
    for cell in cells:
        if not _is_left(results_dir, cell) or not _can_encode():
            continue
        agent = agent_of(cell)
        agents = unfilmed.load(results_dir, cell, agent)
        if agents is None:  # they are not its
            unfilmed.forget(results_dir, cell)
            continue
        _Shoot(results_dir, cell, agent).film(agents, None, told_to_stop)


def _is_left(results_dir: Path, cell: Cell) -> bool:
    return cell.settings.videos and unfilmed.is_waiting(results_dir, cell)


@dataclasses.dataclass(frozen=True)
class _Shoot:
    """The videos of one cell.

    Attributes:
      results_dir: of the evaluation.
      cell: that is stored there.
      agent: what its agents have in common.
    """

    results_dir: Path
    cell: Cell
    agent: Agent

    def film(
        self,
        agents: Sequence[Filmed],
        tracker: Tracker | None,
        told_to_stop: ToldToStop,
    ) -> None:
        """Record a random agent and ``agents``, and list them in the cell's file."""
        name, videos = self.cell.name, []
        stages = list(self._stages(agents))
        with heartbeat(f"filming {name}"):
            try:
                for stage, policy, env_steps in stages:
                    if told_to_stop():
                        break
                    video = self._record(stage, policy, env_steps)
                    videos.append(video)
                    if tracker is not None:
                        path = self.results_dir / video.file
                        tracker.log_video(self.cell.game, path, global_step=env_steps)
            except Exception as error:  # of encoders, of which each has its own
                reason = str(error).partition("\n")[0] or type(error).__name__
                say(f"warning: no video of {name}: {reason}")
        if videos:
            amendments.add_videos(self.results_dir, self.cell, videos)
            shown = ", ".join(f"{v.stage} {v.episode_return:g}" for v in videos)
            say(f"videos of {name}, by return: {shown}")
        if len(videos) == len(stages):
            unfilmed.forget(self.results_dir, self.cell)

    def _stages(self, agents: Sequence[Filmed]) -> Iterator[tuple[Stage, Policy, int]]:
        """Yield who is filmed, and the environment steps it has learned from."""
        cell = self.cell
        yield "random", random_policy(cell.spec.num_actions, seed=cell.base_seed), 0
        key = jax.random.fold_in(jax.random.key(cell.base_seed), _KEY)
        for one in agents:
            yield one.stage, agent_policy(self.agent, one.state, key), one.env_steps

    def _record(self, stage: Stage, policy: Policy, env_steps: int) -> Video:
        cell, folder = self.cell, self.results_dir / FOLDER
        folder.mkdir(exist_ok=True)
        # A name of its own: another process may be at the very same cell.
        unfinished = folder / f".{cell.name}__{stage}__{secrets.token_hex(3)}.part"
        try:
            with mp4.Mp4Writer(unfinished, fps=FPS) as writer:
                recording = record_episode(
                    policy,
                    cell.task,
                    cell.settings.environment,
                    seed=pool_seed(cell.base_seed, _POOL_INDEX, 0, 0),
                    on_frame=writer.add,
                )
            if not math.isfinite(recording.episode_return):
                raise ValueError("the return of the episode is not finite")
            path = folder / video_name(cell, stage, recording)
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
        return Video(
            stage=stage,
            file=f"{FOLDER}/{path.name}",
            episode_return=recording.episode_return,
            env_steps=env_steps,
            peer=_peer(cell, stage),
        )


def _peer(cell: Cell, stage: Stage) -> int | None:
    """Return which agent of its group is filmed; None where there is one alone."""
    return FILMED_PEER if cell.group_size > 1 and stage != "random" else None


def video_name(cell: Cell, stage: Stage, recording: Recording) -> str:
    """Return the file name: game, rule, seed, who plays, and the return."""
    parts = [
        cell.game,
        cell.rule.name,
        *([f"group{cell.group_size}"] if cell.group_size > 1 else []),
        f"seed{cell.seed}",
        *([f"peer{peer}"] if (peer := _peer(cell, stage)) else []),
        stage,
        f"return{_plain(recording.episode_return)}",
        *(["cut"] if recording.is_cut else []),
    ]
    return re.sub(r"[^A-Za-z0-9_.-]", "-", "__".join(parts)) + ".mp4"


def _plain(number: float) -> str:
    """Return a number without exponent: whole ones whole, others to 3 decimals."""
    return f"{number:.0f}" if number == round(number) else f"{number:.3f}"


def _can_encode() -> bool:
    if mp4.can_encode():
        return True
    _say_once(f"warning: {mp4.MISSING}; the evaluation goes on without")
    return False


@functools.cache
def _say_once(line: str) -> None:
    say(line)
