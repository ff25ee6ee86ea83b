"""Aggregates of scores over games and seeds, with stratified bootstrap intervals.

A leaf: numpy alone. The measures are those of Agarwal et al., "Deep reinforcement
learning at the edge of the statistical precipice" (NeurIPS 2021), sections 4 and
appendix A. Wherever they treat all runs alike, here all *games* count alike, also
where one has more seeds than another; with equal numbers of seeds the two are the same.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

RESAMPLES = 2000
"""Bootstrap resamples: Agarwal et al. use 2,000 for aggregates and profiles."""
LEVEL = 0.95


@dataclasses.dataclass(frozen=True, eq=False)
class Runs:
    """The scores of one rule: some runs (seeds) on each of some games.

    Attributes:
      values: ``[..., N]``, the N runs of all games, game after game; leading axes hold
        resamples.
      sizes: runs of each game; they sum to N.
      discoveries: of how many discovery seeds the runs are, the same for every game:
        each game has equally many runs of each, one after another.
    """

    values: FloatArray
    sizes: tuple[int, ...]
    discoveries: int = 1

    @classmethod
    def of(cls, games: Iterable[npt.ArrayLike]) -> Runs:
        """Return the runs of some games.

        Args:
          games: for each game, the scores of its runs: one or more finite numbers.

        Raises:
          ValueError: there is no game, one has no run, or a score is not finite.
        """
        arrays = [np.asarray(scores, np.float64).reshape(-1) for scores in games]
        if not arrays or not all(array.size for array in arrays):
            raise ValueError("scores: one or more games with one or more runs each")
        values = np.concatenate(arrays)
        if not np.isfinite(values).all():
            raise ValueError("scores: all must be finite")
        return cls(values, tuple(array.size for array in arrays))

    @classmethod
    def of_recipe(cls, games: Iterable[Sequence[npt.ArrayLike]]) -> Runs:
        """Return the runs of one recipe, which was discovered with several seeds.

        Args:
          games: for each game, the scores of the agents of each discovery seed: equally
            many of each.

        Raises:
          ValueError: as `of`; or a game lacks agents that another has.
        """
        arrays = [[np.asarray(x, np.float64).reshape(-1) for x in g] for g in games]
        discoveries = len(arrays[0]) if arrays else 0
        if any(len(g) != discoveries or len({x.size for x in g}) != 1 for g in arrays):
            raise ValueError("scores: each game with equally many of each discovery")
        runs = cls.of([np.concatenate(game) for game in arrays])
        return dataclasses.replace(runs, discoveries=discoveries)

    @property
    def smallest(self) -> int:
        """Fewest runs that are drawn from one another: 1 says nothing of a spread."""
        return min(self.sizes) // self.discoveries

    def by_game(self) -> Iterator[FloatArray]:
        """Yield the runs of each game, ``[..., n]``."""
        start = 0
        for size in self.sizes:
            yield self.values[..., start : start + size]
            start += size

    def resampled(self, resamples: int, rng: np.random.Generator) -> Runs:
        """Return ``resamples`` sets of runs ``[resamples, N]``.

        Stratified: a game's runs are drawn with replacement from that game's runs. Of
        several discovery seeds, first the seeds are drawn, for all games at once, since
        a rule that is better is so on more than one; then the runs of each.
        """
        found = self.discoveries
        chosen = np.zeros((resamples, 1), np.int64)
        if found > 1:
            chosen = rng.integers(found, size=(resamples, found))
        drawn = []
        for scores in self.by_game():
            size = scores.size // found
            runs = rng.integers(size, size=(resamples, found, size))
            index = chosen[:, :, None] * size + runs
            drawn.append(scores[index.reshape(resamples, scores.size)])
        return dataclasses.replace(self, values=np.concatenate(drawn, axis=-1))


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number and its interval.

    Attributes:
      value: of the runs there are.
      low: lower end; None where some game has a single run. That says nothing of how
        much runs differ, and drawing it again always gives the same: the interval
        would come out too narrow.
      high: upper end, likewise.
    """

    value: float
    low: float | None = None
    high: float | None = None


Metric = Callable[[Runs], FloatArray]
"""What aggregates runs ``[..., N]`` to numbers ``[...]``."""


def iqm(runs: Runs) -> FloatArray:
    """Return the interquartile mean: of the middle half of all runs of all games.

    With n runs on each of G games, the floor(n G / 4) lowest and as many of the
    highest runs are left out, as by `scipy.stats.trim_mean(x, 0.25)` and in the
    published figures. With unequal numbers of runs every run of a game counts as L / n
    runs, L being the least common multiple of the numbers, so that every game counts
    as L runs; then floor(L G / 4) are left out at each end, part of a run where the
    cut is within it.
    """
    common = math.lcm(*runs.sizes)
    counts = np.repeat([common // size for size in runs.sizes], runs.sizes)
    total = common * len(runs.sizes)
    cut = total // 4
    order = np.argsort(runs.values, axis=-1)
    counts = counts[order]
    last = np.cumsum(counts, axis=-1)
    kept = np.minimum(last, total - cut) - np.maximum(last - counts, cut)
    kept = np.maximum(kept, 0)
    values = np.take_along_axis(runs.values, order, axis=-1)
    sums: FloatArray = (values * kept).sum(axis=-1)
    return sums / (total - 2 * cut)


def mean(runs: Runs) -> FloatArray:
    """Return the mean over games of each game's mean."""
    return _game_means(runs).mean(axis=-1)


def median(runs: Runs) -> FloatArray:
    """Return the median over games of each game's mean."""
    return np.asarray(np.median(_game_means(runs), axis=-1), np.float64)


def optimality_gap(runs: Runs) -> FloatArray:
    """Return by how much runs fall short of a score of 1, on average; 0 is best.

    What is above 1 does not make up for what is below (gamma = 1 in the paper).
    """
    short = np.maximum(1.0 - runs.values, 0.0)
    return mean(dataclasses.replace(runs, values=short))


def interval(
    metric: Metric, runs: Runs, *, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """Return a metric with its percentile interval of 95 % under the bootstrap.

    Args:
      metric: such as `iqm`.
      runs: of one rule.
      resamples: of the stratified bootstrap.
      seed: of the draws, which no global generator takes part in.
    """
    value = float(metric(runs))
    if runs.smallest == 1:
        return Estimate(value)
    drawn = runs.resampled(resamples, np.random.default_rng(seed))
    return Estimate(value, *_percentiles(metric(drawn)))


def probability_of_improvement(x: Runs, y: Runs) -> FloatArray:
    """Return the probability that a run of ``x`` beats one of ``y`` on the same game.

    The mean over games of the Mann-Whitney statistic; a tie is half a win.

    Args:
      x: runs of one rule.
      y: runs of another, on the same games in the same order.
    """
    if len(x.sizes) != len(y.sizes):
        raise ValueError("x and y: both need the same games")
    wins = []
    for ours, theirs in zip(x.by_game(), y.by_game(), strict=True):
        difference = ours[..., :, None] - theirs[..., None, :]
        wins.append((0.5 + 0.5 * np.sign(difference)).mean(axis=(-2, -1)))
    return np.asarray(np.mean(wins, axis=0), np.float64)


def improvement_interval(
    x: Runs, y: Runs, *, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """Return the probability of improvement with its interval, both resampled.

    There is none where either rule has a game with a single run.
    """
    value = float(probability_of_improvement(x, y))
    if min(x.smallest, y.smallest) == 1:
        return Estimate(value)
    rng = np.random.default_rng(seed)
    drawn = probability_of_improvement(
        x.resampled(resamples, rng), y.resampled(resamples, rng)
    )
    return Estimate(value, *_percentiles(drawn))


@dataclasses.dataclass(frozen=True, eq=False)
class Profile:
    """A performance profile with its pointwise band.

    Attributes:
      thresholds: ``[M]``.
      values: ``[M]``, the part of runs whose score is above each, in [0, 1].
      low: ``[M]``, of the band; None as in `Estimate`.
      high: ``[M]``, likewise.
    """

    thresholds: FloatArray
    values: FloatArray
    low: FloatArray | None = None
    high: FloatArray | None = None


def performance_profile(
    runs: Runs, thresholds: npt.ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0
) -> Profile:
    """Return the part of runs above each threshold, with a pointwise 95 % band.

    The run-score distribution of the paper, section 4.2; every game counts alike.

    Args:
      runs: of one rule.
      thresholds: ``[M]``, scores.
      resamples: of the stratified bootstrap.
      seed: of the draws.
    """
    taus = np.asarray(thresholds, np.float64)
    values = _parts_above(runs, taus)
    if runs.smallest == 1:
        return Profile(taus, values)
    drawn = runs.resampled(resamples, np.random.default_rng(seed))
    low, high = np.quantile(_parts_above(drawn, taus), _tails(), axis=0)
    return Profile(taus, values, low, high)


def _game_means(runs: Runs) -> FloatArray:
    """Return ``[..., G]``."""
    return np.stack([scores.mean(axis=-1) for scores in runs.by_game()], axis=-1)


def _parts_above(runs: Runs, thresholds: FloatArray) -> FloatArray:
    """Return ``[..., M]``."""
    parts = [
        np.mean(runs_of_game[..., None] > thresholds, axis=-2)
        for runs_of_game in runs.by_game()
    ]
    return np.asarray(np.mean(parts, axis=0), np.float64)


def _tails() -> tuple[float, float]:
    return (1 - LEVEL) / 2, (1 + LEVEL) / 2


def _percentiles(drawn: FloatArray) -> tuple[float, float]:
    low, high = np.quantile(drawn, _tails())
    return float(low), float(high)
