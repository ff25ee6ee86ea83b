"""Videos of an evaluation's agents: a random one, an early one and the final one.

Hooks for `command.py`: agents are kept as they are trained and filmed when the batch is
done and its cells are stored. A video that cannot be made costs one line on the
terminal, never the evaluation. Host code.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import numpy as np

from metarl.agents.agent import AgentState
from metarl.console import heartbeat, say
from metarl.envs.pools import pool_seed
from metarl.envs.render import FPS
from metarl.evaluation import amendments, mp4
from metarl.evaluation.cells import Cell
from metarl.evaluation.recording import (
    Policy,
    Recording,
    agent_policy,
    random_policy,
    record_episode,
)
from metarl.evaluation.results import Stage, Video
from metarl.evaluation.runner import BatchRun, CellRun, ToldToStop, never
from metarl.tracking import Tracker

FOLDER = "videos"
"""Within the results."""

EARLY = 0.05
"""Share of the budget after which the next row of the curve shows the early agent."""

# What tells a video's pool and keys from those that learn: the cell's pool has index 0,
# and its keys are folded with the number of the iteration.
_POOL_INDEX = 1
_KEY = np.uint32(2**32 - 1)


@dataclasses.dataclass
class _Kept:
    """A cell whose agents are filmed once all cells of the batch are done."""

    cell: Cell
    agents: list[tuple[Stage, AgentState, int]]  # and what they had learned from
    is_done: bool = False


class Camera:
    """Records agents of one batch: of each rule and game, those of the first seed."""

    def __init__(self, results_dir: Path, run: BatchRun) -> None:
        """Describe it; it does nothing where ``videos`` is off.

        Args:
          results_dir: of the evaluation.
          run: whose agents are filmed.
        """
        self._results_dir, self._run = results_dir, run
        self._kept: dict[str, _Kept] = {}
        self._is_on = run.settings.videos
        if self._is_on and not mp4.can_encode():
            _say_once(f"warning: {mp4.MISSING}; the evaluation goes on without")
            self._is_on = False

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
            kept.agents.append((stage, self._agent(cell_run), cell_run.env_steps))
        kept.is_done = cell_run.is_done

    def film(
        self, trackers: Mapping[str, Tracker], told_to_stop: ToldToStop = never
    ) -> None:
        """Record the agents of all cells that are done, and add them to their files.

        Args:
          trackers: by the cell's name, to show the videos in.
          told_to_stop: asked before every video; the others are left out then.
        """
        for name, kept in self._kept.items():
            if not kept.is_done:
                continue
            videos: list[Video] = []
            with heartbeat(f"filming {name}"):
                try:
                    for stage, policy, env_steps in self._stages(kept):
                        if told_to_stop():
                            break
                        video = self._record(kept.cell, stage, policy, env_steps)
                        videos.append(video)
                        path = self._results_dir / video.file
                        trackers[name].log_video(
                            kept.cell.game, path, global_step=env_steps
                        )
                except Exception as error:  # of encoders, of which each has its own
                    reason = str(error).partition("\n")[0] or type(error).__name__
                    say(f"warning: no video of {name}: {reason}")
            if videos:
                amendments.add_videos(self._results_dir, kept.cell, videos)
                shown = ", ".join(f"{v.stage} {v.episode_return:g}" for v in videos)
                say(f"videos of {name}, by return: {shown}")

    def _stages(self, kept: _Kept) -> Iterator[tuple[Stage, Policy, int]]:
        """Yield who is filmed, and the environment steps it has learned from."""
        cell = kept.cell
        yield "random", random_policy(cell.spec.num_actions, seed=cell.base_seed), 0
        key = jax.random.fold_in(jax.random.key(cell.base_seed), _KEY)
        for stage, state, env_steps in kept.agents:
            yield stage, agent_policy(self._run.agent, state, key), env_steps

    def _agent(self, cell_run: CellRun) -> AgentState:
        """Return a copy of the cell's agent, of what it acts with alone."""
        state = self._run.agents_of(self._run.runs.index(cell_run))
        return dataclasses.replace(
            state,
            target_params={},
            optimizer=dataclasses.replace(state.optimizer, mu={}, nu={}),
            rule_state={},
        )

    def _record(
        self, cell: Cell, stage: Stage, policy: Policy, env_steps: int
    ) -> Video:
        folder = self._results_dir / FOLDER
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
            path = folder / video_name(cell, stage, recording)
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
        return Video(
            stage=stage,
            file=f"{FOLDER}/{path.name}",
            episode_return=recording.episode_return,
            env_steps=env_steps,
        )


def video_name(cell: Cell, stage: Stage, recording: Recording) -> str:
    """Return the file name: the game, the rule, the seed, who plays, and the return."""
    parts = [
        cell.game,
        cell.rule.name,
        f"seed{cell.seed}",
        stage,
        f"return{_plain(recording.episode_return)}",
        *(["cut"] if recording.is_cut else []),
    ]
    return re.sub(r"[^A-Za-z0-9_.-]", "-", "__".join(parts)) + ".mp4"


def _plain(number: float) -> str:
    """Return a number without exponent: whole ones whole, others to 3 decimals."""
    return f"{number:.0f}" if number == round(number) else f"{number:.3f}"


@functools.cache
def _say_once(line: str) -> None:
    say(line)
