"""Groups of games that may be aggregated together, and their aggregates.

Between `scores.py` and the figures and tables; draws and writes nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from metarl import statistics
from metarl.evaluation.cell_records import (
    CellRecord,
)
from metarl.evaluation.cells import completed_identity
from metarl.report.recipes import compared, join, members_of, returns_of, runs_of
from metarl.report.scores import Evaluation, Kind, Task, interval_of
from metarl.statistics import Estimate, FloatArray, Profile

Evidence = Literal["informative", "uninformative", "undecided"]
"""Whether some rule ends above random; or that nobody can tell."""

STATUS_TITLES = {
    "held_out": "Held-out games",
    "mixed": "Games that only some of the rules have seen",
    "validation": "Validation games",
    "unknown": "Games that the rule may have seen: its origin is unknown",
    "seen": "Games that the rule was meta-trained on (seen)",
}
"""In the order of the page."""
STATUS_WORDS = {
    "held_out": "held out",
    "validation": "validation",
    "seen": "seen",
    "unknown": "unknown",
}
KIND_TITLES: dict[Kind, str] = {
    "human": "human-normalised scores (0 = random, 1 = human)",
    "best": "scores between random (0) and the best possible return (1)",
    "baseline": "scores between random (0) and the baseline (1)",
    "raw": "raw returns (no score is known)",
}
_CURVE_POINTS = 20
_OF_THE_GAME = (
    "sticky_actions",
    "max_episode_frames",
    "noop_max",
    "frame_skip",
    "fire_reset",
)
"""Options of Atari by which one and the same policy gets other returns."""


@dataclasses.dataclass(frozen=True)
class Group:
    """Games of one status and one kind of score: all that is ever averaged.

    Attributes:
      status: a key of `STATUS_TITLES`.
      kind: of the score.
      tasks: all of them.
      common: those that the aggregates are of: they are not uninformative, and every
        rule that has half of the others or more has a score of each seed.
      rules: names of the rules that have all of `common`.
      statuses: of each discovered rule where `status` is mixed; else empty.
      index: tells mixed groups apart, from 1.
    """

    status: str
    kind: Kind
    tasks: tuple[Task, ...]
    common: tuple[Task, ...]
    rules: tuple[str, ...]
    statuses: tuple[tuple[str, str], ...] = ()
    index: int = 0

    @property
    def name(self) -> str:
        """For files and anchors."""
        return f"{self.status}{self.index or ''}-{self.kind}"

    @property
    def title(self) -> str:
        """For people."""
        title = STATUS_TITLES[self.status]
        if self.status == "mixed":
            of_rules = (f"{r}: {STATUS_WORDS.get(s, s)}" for r, s in self.statuses)
            title += f" ({', '.join(of_rules)})"
        return f"{title}: {KIND_TITLES[self.kind]}"


@dataclasses.dataclass(frozen=True)
class Aggregate:
    """One rule on the common games of a group."""

    rule: str
    iqm: Estimate
    median: Estimate
    mean: Estimate
    optimality_gap: Estimate


@dataclasses.dataclass(frozen=True, eq=False)
class Curve:
    """One rule's scores on the common games while its agents learned.

    Attributes:
      rule: its name.
      frames: ``[M]``.
      estimates: IQM at each, None where not all runs have finished an episode.
    """

    rule: str
    frames: FloatArray
    estimates: tuple[Estimate | None, ...]


def evidence(evaluation: Evaluation, task: Task) -> Evidence:
    """Return whether a compared rule's interval lies above random's.

    Random is what the rule `random` got here, where it was evaluated, else the
    published score. A rule with one seed has no interval, and no say: otherwise it
    would decide which games the others are compared on.
    """
    random = random_of(evaluation, task)
    if random is None:
        return "undecided"
    ceiling = random.value if random.high is None else random.high
    lows = [
        low
        for rule in evaluation.rules
        if not rule.is_random and (returns := evaluation.returns(rule.name, task))
        if (low := interval_of(returns).low) is not None
    ]
    if not lows:
        return "undecided"
    return "informative" if max(lows) > ceiling else "uninformative"


def is_scored(evaluation: Evaluation, rule: str, task: Task) -> bool:
    """Return whether a rule was run on a task, and every seed finished an episode.

    A mean over those seeds alone that did would favour agents whose episodes are short.
    Of a recipe: whether all its rules were.
    """
    if members := evaluation.rule(rule).members:
        return all(is_scored(evaluation, member, task) for member in members)
    cells = evaluation.cells.get((rule, task), ())
    return bool(cells) and len(evaluation.returns(rule, task)) == len(cells)


def random_of(evaluation: Evaluation, task: Task) -> Estimate | None:
    """Return what a random policy gets, with its interval where it was measured."""
    for rule in evaluation.rules:
        returns = evaluation.returns(rule.name, task)
        if rule.is_random and returns:
            return interval_of(returns)
    random = evaluation.scales[task].random
    return None if random is None else Estimate(random)


def played_unlike(evaluation: Evaluation, task: Task) -> list[str]:
    """Return the options by which not all rules have played the same Atari game."""
    found: dict[str, dict[str, None]] = {}
    for rule in evaluation.rules:
        for cell in evaluation.cells.get((rule.name, task), ())[:1]:
            if not cell.result.protocol:
                continue  # not Atari
            atari = completed_identity(cell.settings)["environment"]["atari"]
            for name in _OF_THE_GAME:
                if name in atari:
                    found.setdefault(name, {})[str(atari[name])] = None
    return [
        f"{name} = {' and '.join(values)}"
        for name, values in found.items()
        if len(values) > 1
    ]


def make_groups(evaluation: Evaluation) -> list[Group]:
    """Return the groups, held-out games first.

    A rule without meta-parameters has learned from no game: it has no say in what
    status a game has here, unless there are only such rules.
    """
    members: dict[tuple[str, Kind, tuple[tuple[str, str], ...]], list[Task]] = {}
    for task in evaluation.tasks:
        statuses = _statuses(evaluation, task)
        kinds = set(statuses.values()) or {"held_out"}
        signature = tuple(sorted(statuses.items())) if len(kinds) > 1 else ()
        status = "mixed" if len(kinds) > 1 else kinds.pop()
        if status not in STATUS_TITLES:
            status = "unknown"
        key = (status, evaluation.scales[task].kind, signature)
        members.setdefault(key, []).append(task)
    order, kinds_order = list(STATUS_TITLES), list(KIND_TITLES)
    ordered = sorted(
        members.items(),
        key=lambda m: (order.index(m[0][0]), kinds_order.index(m[0][1]), m[0][2]),
    )
    signatures = sorted({signature for (_, _, signature), _ in ordered} - {()})
    return [
        dataclasses.replace(
            _group(evaluation, status, kind, tasks),
            statuses=signature,
            index=signatures.index(signature) + 1 if signature else 0,
        )
        for (status, kind, signature), tasks in ordered
    ]


def aggregates(
    evaluation: Evaluation, group: Group, tasks: Sequence[Task] | None = None
) -> list[Aggregate]:
    """Return the aggregates of every rule and recipe of a group, best IQM first.

    Args:
      evaluation: all cells.
      group: with normalised scores.
      tasks: in place of the group's common ones.
    """
    chosen = group.common if tasks is None else tasks
    found = []
    for rule in compared(evaluation, group.rules):
        runs = runs_of(evaluation, rule, chosen)
        numbers = [
            statistics.interval(metric, runs)
            for metric in (
                statistics.iqm,
                statistics.median,
                statistics.mean,
                statistics.optimality_gap,
            )
        ]
        found.append(Aggregate(rule, *numbers))
    return sorted(found, key=lambda a: -a.iqm.value)


def improvements(evaluation: Evaluation, group: Group) -> dict[str, Estimate]:
    """Return each rule's probability of improvement over the baseline, by name."""
    baseline = evaluation.baseline
    if baseline is None or baseline not in group.rules or not group.common:
        return {}
    # Ranks within a game: raw returns and scores say the same.
    theirs = returns_of(evaluation, baseline, group.common)
    return {
        rule: statistics.improvement_interval(
            returns_of(evaluation, rule, group.common), theirs
        )
        for rule in compared(evaluation, group.rules)
        if rule != baseline
    }


def profiles(evaluation: Evaluation, group: Group) -> dict[str, Profile]:
    """Return each rule's performance profile, all on the same thresholds."""
    runs = {
        rule: runs_of(evaluation, rule, group.common)
        for rule in compared(evaluation, group.rules)
    }
    together = np.concatenate([r.values for r in runs.values()])
    low = min(0.0, float(np.quantile(together, 0.02)))
    # The highest few are as the IQM treats them: one game must not squeeze the rest.
    high = float(np.quantile(together, 0.98))
    pad = 0.02 * (high - low) or 0.5
    thresholds = np.linspace(low - pad, high + pad, 151)
    return {
        rule: statistics.performance_profile(r, thresholds) for rule, r in runs.items()
    }


def curves(evaluation: Evaluation, group: Group) -> list[Curve]:
    """Return each rule's IQM while its agents learned, on one grid of frames.

    Up to the smallest budget in the group. At each point a run has the return of the
    newest episodes that had finished by then.
    """
    members = {
        (rule, task): evaluation.cells[rule, task]
        for rule in group.rules
        for task in group.common
    }
    end = min(cell.result.frames for cells in members.values() for cell in cells)
    grid = np.linspace(end / _CURVE_POINTS, end, _CURVE_POINTS)
    scored = {
        (rule, task): np.array(
            [
                [evaluation.scales[task].score(x) for x in _on_grid(cell, grid)]
                for cell in cells
                if cell.result.mean_return is not None
            ]
        )
        for (rule, task), cells in members.items()
    }
    found = []
    for name in compared(evaluation, group.rules):
        rules = members_of(evaluation, name)
        games = [[scored[rule, task] for rule in rules] for task in group.common]
        estimates = [
            _iqm_at([[runs[:, i] for runs in game] for game in games])
            for i in range(_CURVE_POINTS)
        ]
        found.append(Curve(name, grid, tuple(estimates)))
    return found


def frames_of(cell: CellRecord) -> list[float]:
    """Return the frames of each row of a cell's curve."""
    result = cell.result
    skip = result.frames / result.env_steps if result.env_steps else 1.0
    return [row.env_steps * (skip or 1.0) for row in cell.curve]


def _statuses(evaluation: Evaluation, task: Task) -> dict[str, str]:
    """Return the status of a task for each rule that has a say in it."""
    found = {}
    for rule in evaluation.rules:
        status = evaluation.status(rule.name, task)
        if status and (rule.sha256 or status != "held_out"):
            found[rule.name] = status
    return found


def _group(
    evaluation: Evaluation,
    status: str,
    kind: Kind,
    tasks: Sequence[Task],
) -> Group:
    """Return a group, and which of its tasks and rules can be compared."""
    informative = [t for t in tasks if evidence(evaluation, t) != "uninformative"]
    played = {
        rule.name: {t for t in informative if is_scored(evaluation, rule.name, t)}
        for rule in evaluation.rules
    }
    # The floor is shown where it can be, and takes no game from the others; nor does a
    # rule that has but few of them.
    learning = [
        rule.name
        for rule in evaluation.rules
        if not rule.is_random and 2 * len(played[rule.name]) >= len(informative)
    ]
    common = tuple(
        t for t in informative if learning and all(t in played[r] for r in learning)
    )
    rules = tuple(
        rule.name
        for rule in evaluation.rules
        if common and played[rule.name].issuperset(common)
    )
    return Group(status, kind, tuple(tasks), common, rules)


def _on_grid(cell: CellRecord, grid: FloatArray) -> list[float]:
    """Return the newest return at each point of the grid; NaN before the first."""
    frames, values = [0.0], [float("nan")]
    for at, row in zip(frames_of(cell), cell.curve, strict=True):
        if row.mean_return is not None:
            frames.append(at)
            values.append(row.mean_return)
    # Rows come a little after their point: a rollout is not divided.
    slack = 0.5 * grid[0]
    places = np.searchsorted(frames, grid + slack, side="right") - 1
    return [values[i] for i in places]


def _iqm_at(games: Sequence[Sequence[FloatArray]]) -> Estimate | None:
    """Return the IQM at one point; None where a run has no episode by then."""
    if any(np.isnan(runs).any() for game in games for runs in game):
        return None
    return statistics.interval(statistics.iqm, join(games), resamples=1000)


def missing_seeds(
    evaluation: Evaluation,
) -> Mapping[tuple[str, Task], tuple[int, ...]]:
    """Return the seeds that each rule lacks on each task, of the grid there is."""
    seeds = {record.result.seed for record in evaluation.records()}
    found = {}
    for rule in evaluation.rules:
        for task in evaluation.tasks:
            cells = evaluation.cells.get((rule.name, task), ())
            lacking = seeds - {cell.result.seed for cell in cells}
            if lacking:
                found[rule.name, task] = tuple(sorted(lacking))
    return found
