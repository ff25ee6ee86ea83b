"""Videos of an evaluation's agents: a random one, an early one and the final one.

Hooks for `command.py`, which calls them between the rows of a cell's curve. A video
that cannot be made costs one line on the terminal, never the evaluation. Host code.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from metarl.agents.agent import AgentState
from metarl.console import say
from metarl.envs.pools import pool_seed
from metarl.envs.render import FPS
from metarl.evaluation import mp4
from metarl.evaluation.cells import Cell
from metarl.evaluation.recording import (
    Policy,
    Recording,
    agent_policy,
    random_policy,
    record_episode,
)
from metarl.evaluation.results import Stage, Video
from metarl.evaluation.runner import BatchRun, CellRun
from metarl.tracking import Tracker

FOLDER = "videos"
"""Within the results."""

EARLY = 0.05
"""Share of the budget after which the next row of the curve shows the early agent."""

# What tells a video's pool and keys from those that learn: the cell's pool has index 0,
# and its keys are folded with the number of the iteration.
_POOL_INDEX = 1
_KEY = np.uint32(2**32 - 1)


class Camera:
    """Records agents of one batch: of each rule and game, those of the first seed."""

    def __init__(self, results_dir: Path, run: BatchRun) -> None:
        """Describe it; it does nothing where ``videos`` is off.

        Args:
          results_dir: of the evaluation.
          run: whose agents are filmed.
        """
        self._results_dir, self._run = results_dir, run
        self._early: dict[str, tuple[AgentState, int]] = {}
        self.spent_s = 0.0  # in all, so that it is not counted as the cells' time
        self._is_on = run.settings.videos
        if self._is_on and not mp4.can_encode():
            _say_once(f"warning: {mp4.MISSING}; the evaluation goes on without")
            self._is_on = False

    def keep_early(self, cell_run: CellRun) -> None:
        """Keep the agent if it is the early one; call at every row of the curve."""
        cell = cell_run.cell
        if (
            self._films(cell)
            and cell.name not in self._early
            and EARLY * cell.env_steps <= cell_run.env_steps
            and not cell_run.is_done
        ):
            self._early[cell.name] = self._agent(cell_run), cell_run.env_steps

    def videos_of(self, cell_run: CellRun, tracker: Tracker) -> tuple[Video, ...]:
        """Record the agents of a cell that is done and return what was written."""
        cell = cell_run.cell
        if not self._films(cell):
            return ()
        start = time.perf_counter()
        videos: list[Video] = []
        try:
            for stage, policy, env_steps in self._stages(cell_run):
                video = self._record(cell, stage, policy, env_steps)
                videos.append(video)
                tracker.log_video(
                    cell.game, self._results_dir / video.file, global_step=env_steps
                )
        except Exception as error:  # encoders and environments have no common base
            reason = str(error).partition("\n")[0] or type(error).__name__
            say(f"warning: no video of {cell.name}: {reason}")
        seconds = time.perf_counter() - start
        self.spent_s += seconds
        if videos:
            returns = ", ".join(f"{v.stage} {v.episode_return:g}" for v in videos)
            say(f"videos of {cell.name} in {seconds:.0f}s; returns: {returns}")
        return tuple(videos)

    def _films(self, cell: Cell) -> bool:
        return self._is_on and cell.seed == cell.settings.seeds[0]

    def _stages(self, cell_run: CellRun) -> Iterator[tuple[Stage, Policy, int]]:
        """Yield who is filmed, and the environment steps it has learned from."""
        cell, agent = cell_run.cell, self._run.agent
        yield "random", random_policy(cell.spec.num_actions, seed=cell.base_seed), 0
        if cell.rule.manifest.config.kind == "random":
            return  # whose agents are all alike
        key = jax.random.fold_in(jax.random.key(cell.base_seed), _KEY)
        if cell.name in self._early:
            state, env_steps = self._early.pop(cell.name)
            yield "early", agent_policy(agent, state, key), env_steps
        final = self._agent(cell_run)
        yield "final", agent_policy(agent, final, key), cell_run.env_steps

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
