"""Where a cell stands while it is trained: episodes, curves, the result at the end.

Host code under `runner.py`; knows nothing of agents.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence

import numpy as np

from metarl.envs.pool import Episodes
from metarl.evaluation.agreement_records import AgreementRow
from metarl.evaluation.cell_records import (
    CurveRow,
    PeerRecord,
    Result,
    finite,
    make_result,
    mean_of,
)
from metarl.evaluation.cells import Cell


class _PeerRun:
    """The episodes of one peer of a group, and its curve."""

    def __init__(self, cell: Cell) -> None:
        """Start counting."""
        final = cell.settings.final_score
        # Of the episodes that the score is the mean of.
        self.last_returns: collections.deque[float] = collections.deque(
            maxlen=final.episodes if final.last_share is None else None
        )
        self.curve: list[CurveRow] = []
        self._since_row: list[Episodes] = []

    def record(self, episodes: Episodes, *, counts: bool) -> None:
        """Take note of episodes; whether they count depends on when they finished."""
        if counts:
            self.last_returns.extend(float(x) for x in episodes.returns)
        self._since_row.append(episodes)

    def add_row(self, *, env_steps: int, agent_updates: int) -> Episodes:
        """Add a row to the curve; return the episodes that it is of."""
        returns = np.concatenate([e.returns for e in self._since_row])
        lengths = np.concatenate([e.lengths for e in self._since_row])
        self._since_row = []
        self.curve.append(
            CurveRow(
                env_steps=env_steps,
                agent_updates=agent_updates,
                episodes=len(returns),
                mean_return=finite(float(returns.mean())) if len(returns) else None,
            )
        )
        return Episodes(returns, lengths)


class CellRun:
    """Where one cell stands: its episodes, its curve, and its result at the end."""

    def __init__(self, cell: Cell) -> None:
        """Start counting."""
        self.cell = cell
        self.env_steps = self.agent_updates = self.episodes = 0
        self.nonfinite_returns = 0  # episodes whose return is NaN or infinite
        share = cell.settings.final_score.last_share
        self._counts_from = 0.0 if share is None else (1 - share) * cell.env_steps
        self._peers = [_PeerRun(cell) for _ in range(cell.group_size)]
        self.newest_returns: collections.deque[float] = collections.deque(maxlen=100)
        self.curve: list[CurveRow] = []
        self.agreement: list[AgreementRow] = []  # of a group, at rows of the curve
        self.result: Result | None = None
        self.newest_lengths = np.zeros(0, np.int64)  # of the newest row's episodes

    @property
    def is_done(self) -> bool:
        """Whether the budget is used."""
        return self.env_steps >= self.cell.env_steps

    @property
    def peers(self) -> list[PeerRecord]:
        """The agents of a group as they stand; none of a single agent."""
        if len(self._peers) == 1:
            return []
        return [
            PeerRecord(mean_of(list(peer.last_returns)), tuple(peer.curve))
            for peer in self._peers
        ]

    def record(
        self, *, env_steps: int, agent_updates: int, episodes: Sequence[Episodes]
    ) -> bool:
        """Count one iteration; return whether a row of the curve was due.

        Args:
          env_steps: of the iteration, over the group.
          agent_updates: so far.
          episodes: of each peer.
        """
        self.env_steps += env_steps
        self.agent_updates = agent_updates
        counts = self.env_steps > self._counts_from
        for peer, finished in zip(self._peers, episodes, strict=True):
            self.episodes += len(finished.returns)
            self.nonfinite_returns += int((~np.isfinite(finished.returns)).sum())
            self.newest_returns.extend(float(x) for x in finished.returns)
            peer.record(finished, counts=counts)
        settings, budget = self.cell.settings, self.cell.env_steps
        points = self.env_steps * settings.curve_points // budget
        before = (self.env_steps - env_steps) * settings.curve_points // budget
        if not self.is_done and points == before:
            return False
        self._add_row()
        if self.is_done:
            first, *others = (list(peer.last_returns) for peer in self._peers)
            self.result = make_result(
                self.cell,
                env_steps=self.env_steps,
                episodes=self.episodes,
                last_returns=first,
                of_others=others,
            )
        return True

    def _add_row(self) -> None:
        """Add the mean over the peers of which an episode finished."""
        found = [
            peer.add_row(env_steps=self.env_steps, agent_updates=self.agent_updates)
            for peer in self._peers
        ]
        self.newest_lengths = np.concatenate([x.lengths for x in found])
        rows = [peer.curve[-1] for peer in self._peers if peer.curve[-1].episodes]
        means = [row.mean_return for row in rows if row.mean_return is not None]
        is_known = bool(means) and len(means) == len(rows)
        self.curve.append(
            CurveRow(
                env_steps=self.env_steps,
                agent_updates=self.agent_updates,
                episodes=sum(row.episodes for row in rows),
                mean_return=sum(means) / len(means) if is_known else None,
            )
        )
