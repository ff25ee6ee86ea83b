"""What is kept of a finished cell: its result, its curve and its agents.

A host module that touches no file; `results.py` stores what this describes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from metarl.envs.suites import human_normalized_score
from metarl.evaluation.agreement_records import AgreementRow
from metarl.evaluation.cells import Cell
from metarl.evaluation.robustness_records import Robustness


@dataclasses.dataclass(frozen=True)
class Result:
    """How good a cell became; one row of results.csv, whose columns these are.

    Attributes:
      group_size: agents that learned together.
      mean_return: raw return of the finished episodes that `final_score` names, by
        default the last 100, all if fewer; None where no episode finished, or where
        that of one is not finite. Of a group the mean over its peers, if all have one.
      human_normalized_score: of that; None where no scores are published.
      scored_episodes: how many episodes `mean_return` is of.
      frames: of the emulator: `env_steps` x frame-skip in Atari, `env_steps` elsewhere.
      protocol: `environment.atari.protocol`; empty outside Atari.
      learning_rate: of the cell's agents.
      tuned: whether it was chosen on validation games (`tuning`).
      wall_s: seconds the cell took; of cells that ran side by side each has its share,
        so that sums are the hours of the machine.
      best_return: the highest `mean_return` of a peer; of one agent its own.
      worst_return: the lowest.
    """

    rule: str
    game: str
    status: str
    seed: int
    group_size: int
    env_steps: int
    episodes: int
    mean_return: float | None
    human_normalized_score: float | None
    scored_episodes: int = 0
    frames: int = 0
    protocol: str = ""
    learning_rate: float | None = None
    tuned: bool = False
    wall_s: float | None = None
    best_return: float | None = None
    worst_return: float | None = None

    @property
    def label(self) -> str:
        """The rule's name in tables and figures, groups of another size apart."""
        size = self.group_size
        return self.rule + (f" (groups of {size})" if size > 1 else "")


@dataclasses.dataclass(frozen=True)
class CurveRow:
    """One point of a learning curve.

    Attributes:
      env_steps: so far.
      agent_updates: so far.
      episodes: finished since the row before.
      mean_return: their raw return; None where there are none, or where that of one
        is not finite.
    """

    env_steps: int
    agent_updates: int
    episodes: int
    mean_return: float | None


Stage = Literal["random", "early", "final"]
"""How far the agent that a video shows had learned."""


@dataclasses.dataclass(frozen=True)
class Video:
    """One recorded episode.

    Attributes:
      stage: how far the agent had learned.
      file: relative to `results_dir`.
      episode_return: raw.
      env_steps: that the agent had learned from, or its group.
      peer: which agent of its group it is, from 1; None: there is no other.
    """

    stage: Stage
    file: str
    episode_return: float
    env_steps: int
    peer: int | None = None


@dataclasses.dataclass(frozen=True)
class PeerRecord:
    """One agent of a group.

    Attributes:
      mean_return: its final score; None where it has none.
      curve: its learning curve; `env_steps` are the group's.
    """

    mean_return: float | None
    curve: tuple[CurveRow, ...]


@dataclasses.dataclass(frozen=True)
class AgentRecords:
    """What is stored of each agent of a cell.

    Attributes:
      peers: the agents of a group; none of a single agent.
      robustness: of each agent; of none where that was not tested.
      agreement: of the agents of a group, while they learned.
    """

    peers: tuple[PeerRecord, ...] = ()
    robustness: tuple[Robustness, ...] = ()
    agreement: tuple[AgreementRow, ...] = ()


@dataclasses.dataclass(frozen=True)
class CellRecord:
    """All that is stored of a cell.

    Attributes:
      result: its row of results.csv.
      curve: its learning curve.
      settings: that decided the result; see `Cell.identity`.
      about: what else is worth knowing, such as versions and seconds.
      videos: of its agents.
      peers: the agents of a group; none of a single agent.
      robustness: of each agent; of none where that was not tested.
      agreement: of the agents of a group at rows of its curve.
    """

    result: Result
    curve: tuple[CurveRow, ...]
    settings: Mapping[str, Any]
    about: Mapping[str, Any]
    videos: tuple[Video, ...] = ()
    peers: tuple[PeerRecord, ...] = ()
    robustness: tuple[Robustness, ...] = ()
    agreement: tuple[AgreementRow, ...] = ()


def make_result(
    cell: Cell,
    *,
    env_steps: int,
    episodes: int,
    last_returns: Sequence[float],
    of_others: Sequence[Sequence[float]] = (),
) -> Result:
    """Return the row of a cell.

    Args:
      cell: that is done.
      env_steps: it took.
      episodes: that finished.
      last_returns: of those that count, of the first agent.
      of_others: the same of the others of its group.
    """
    means = [mean_of(returns) for returns in (last_returns, *of_others)]
    known = [value for value in means if value is not None]
    mean = sum(known) / len(known) if len(known) == len(means) else None
    return Result(
        rule=cell.rule.name,
        game=cell.game,
        status=cell.rule.status(cell.game),
        seed=cell.seed,
        group_size=cell.group_size,
        env_steps=env_steps,
        episodes=episodes,
        mean_return=mean,
        human_normalized_score=(
            None if mean is None else human_normalized_score(cell.task.game, mean)
        ),
        scored_episodes=(
            0 if mean is None else len(last_returns) + sum(map(len, of_others))
        ),
        frames=env_steps * cell.frame_skip,
        protocol=cell.protocol,
        learning_rate=cell.settings.agent.optimizer.learning_rate,
        tuned=cell.tuning is not None,
        best_return=max(known, default=None),
        worst_return=min(known, default=None),
    )


def mean_of(returns: Sequence[float]) -> float | None:
    """Return the mean; None of nothing, or where it is not finite."""
    return finite(sum(returns) / len(returns)) if returns else None


def finite(number: float) -> float | None:
    """Return a number as JSON can hold it: None where it is not finite."""
    return number if math.isfinite(number) else None
