"""How well the agents of every group have done lately, for rules that compare them.

Host code, between the actor's episodes and the rollouts that agents learn from.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from metarl.envs.pool import Episodes

SCORE_EPISODES = 10
"""A score is the mean return of so many: few, since agents soon are other ones."""


class RecentScores:
    """Keeps the newest raw returns of G groups of K agents."""

    def __init__(self, groups: int, peers: int) -> None:
        """Begin without any."""
        self._returns: list[list[collections.deque[float]]] = [
            [collections.deque(maxlen=SCORE_EPISODES) for _ in range(peers)]
            for _ in range(groups)
        ]

    def add(self, episodes: Sequence[Sequence[Episodes]]) -> None:
        """Count the episodes ``[G][K]`` that have finished."""
        for group, new in zip(self._returns, episodes, strict=True):
            for returns, finished in zip(group, new, strict=True):
                returns.extend(float(x) for x in finished.returns)

    def scores(self) -> npt.NDArray[np.float32]:
        """Return the mean of each, ``[G, K]``; nan before the first."""
        means = [
            [np.mean(x) if x else np.nan for x in group] for group in self._returns
        ]
        return np.asarray(means, np.float32)
