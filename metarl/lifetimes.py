"""How long agents live: budgets of environment steps, drawn anew for every life.

Host code in NumPy under `stack_agents.py`. A budget follows from the run's seed, the
group and the life alone, so that nothing of it needs to be kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Lifetimes = int | tuple[int, ...]
"""One budget for all lives, or those of which each life's is drawn."""


def budget_of(lifetimes: Lifetimes, *, seed: int, member: int, life: int) -> int:
    """Return the environment steps of one life.

    Of several budgets each is as likely as its inverse says (Oh et al., Nature 648,
    2025, Methods), so that about as many steps are lived under each.

    Args:
      lifetimes: `population.lifetime_env_steps`.
      seed: of the run.
      member: number of the group in the population.
      life: number of the life, from 0.
    """
    if isinstance(lifetimes, int):
        return lifetimes
    inverse = 1 / np.array(lifetimes, np.float64)
    drawn = np.random.default_rng([seed, member, life]).random()
    index = np.searchsorted(np.cumsum(inverse / inverse.sum()), drawn, side="right")
    return lifetimes[min(int(index), len(lifetimes) - 1)]


def longest(lifetimes: Lifetimes) -> int:
    """Return the largest budget."""
    return lifetimes if isinstance(lifetimes, int) else max(lifetimes)


class Lives:
    """The present lives of a stack's groups.

    Attributes:
      count: lives that are over, ``i64[G]``.
      budgets: environment steps of the present ones, ``i64[G]``, to which schedules
        are stretched.
      first: the part of its budget that each group's first life is, ``f64[G]``.
    """

    def __init__(
        self, lifetimes: Lifetimes, members: Sequence[int], *, of: int, seed: int
    ) -> None:
        """Begin the first life of every group.

        Args:
          lifetimes: `population.lifetime_env_steps`.
          members: numbers of the groups in the population.
          of: how many groups the population has, in all its stacks.
          seed: of the run.
        """
        self._lifetimes, self._members, self._seed = lifetimes, tuple(members), seed
        self.first = (1 + np.array(self._members)) / of
        self.begin(np.zeros(len(self._members), np.int64))

    def begin(self, count: npt.NDArray[np.int64]) -> None:
        """Go on after ``count`` lives."""
        self.count = np.array(count)
        self.budgets = np.array(
            [
                budget_of(self._lifetimes, seed=self._seed, member=m, life=int(life))
                for m, life in zip(self._members, self.count, strict=True)
            ],
            np.int64,
        )

    def ended(self, env_steps: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
        """Return which of the groups, ``env_steps [G]`` old, are to be replaced.

        The first lives are cut to parts of their budgets that are evenly spaced over
        the population, so that from then on the rule sees agents of all ages.
        """
        ended: npt.NDArray[np.bool_]
        part = np.where(self.count == 0, self.first, 1.0)
        ended = env_steps >= part * self.budgets
        return ended
