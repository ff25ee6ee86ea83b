"""What was played, by which rules, and how raw returns become scores.

Between `inputs.py` and `compare.py`; draws and writes nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from metarl.envs.suites import GAMES, Game
from metarl.errors import UserError, nearest
from metarl.evaluation.cell_records import (
    CellRecord,
)
from metarl.evaluation.cells import completed_identity
from metarl.evaluation.results import (
    flatten,
)
from metarl.report.sound_cells import (
    is_infinite,
    require_sound,
    without_infinities,
    words_of,
)
from metarl.statistics import Estimate, Runs, interval, mean

Kind = Literal["human", "best", "baseline", "raw"]
"""What a score of 1 is: a human, the highest return there is, the baseline rule's mean;
or that there is no score, only returns."""

DEFAULT_BASELINE = "actor_critic"
WANTED_EPISODES = 100
_DESCRIBES_NOTHING = ("curve_points",)
"""Settings that do not decide a result."""
LEAST_TRUSTED_FIRST = ("seen", "validation", "unknown", "held_out")


@dataclasses.dataclass(frozen=True)
class Rule:
    """A rule as results name it.

    Attributes:
      name: in every table and figure.
      kind: of its configuration.
      sha256: of its meta-parameters; empty for a rule without.
      color_index: which colour it has; -1 is that of the rule `random`.
      members: of a recipe, the rules that it discovered; else empty.
    """

    name: str
    kind: str
    sha256: str
    color_index: int = 0
    members: tuple[str, ...] = ()

    @property
    def is_random(self) -> bool:
        """Whether it learns nothing: the floor of every comparison."""
        return self.kind == "random"


@dataclasses.dataclass(frozen=True, order=True)
class Task:
    """A game as it was played.

    Attributes:
      game: task id.
      options: environment options beyond the configuration's, such as a board's size.
    """

    game: str
    options: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        """In every table and figure."""
        if not self.options:
            return self.game
        return f"{self.game} ({', '.join(f'{k} {v}' for k, v in self.options)})"


@dataclasses.dataclass(frozen=True)
class Scale:
    """How returns on a task become scores: (x - random) / (reference - random).

    Attributes:
      kind: of the reference.
      random: mean return of a random policy; None where unknown.
      reference: that is worth 1; None where there is no score.
      random_is_measured: by the rule `random` in these results; else published.
      why_raw: why there is no score; empty where there is one.
    """

    kind: Kind
    random: float | None = None
    reference: float | None = None
    random_is_measured: bool = False
    why_raw: str = ""

    def score(self, episode_return: float) -> float:
        """Return the normalised score; there must be one (`kind` is not raw)."""
        assert self.random is not None
        assert self.reference is not None
        return (episode_return - self.random) / (self.reference - self.random)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """All cells of all results folders.

    Attributes:
      rules: discovered ones, then others, `random` last.
      tasks: by name.
      cells: by rule name and task, in the order of their seeds.
      folders: where each cell is from.
      baseline: name of the rule that others are compared with; None: not in there.
      scales: of every task.
      recipes: by which several of the rules were discovered, to be compared as one.
    """

    rules: tuple[Rule, ...]
    tasks: tuple[Task, ...]
    cells: Mapping[tuple[str, Task], tuple[CellRecord, ...]]
    folders: Mapping[int, Path]
    baseline: str | None
    scales: Mapping[Task, Scale]
    recipes: tuple[Rule, ...] = ()

    def records(self) -> Iterator[CellRecord]:
        """Yield every cell, by rule, task and seed."""
        for rule in self.rules:
            yield from self.records_of(rule.name)

    def records_of(self, rule: str) -> Iterator[CellRecord]:
        """Yield every cell of a rule, by task and seed."""
        for task in self.tasks:
            yield from self.cells.get((rule, task), ())

    def returns(self, rule: str, task: Task) -> list[float]:
        """Return the raw return of each seed in which an episode finished."""
        found = self.cells.get((rule, task), ())
        values = [cell.result.mean_return for cell in found]
        return [value for value in values if value is not None]

    def scores(self, rule: str, task: Task) -> list[float]:
        """Return the same, normalised."""
        return [self.scales[task].score(x) for x in self.returns(rule, task)]

    def status(self, rule: str, task: Task) -> str:
        """Return what the rule's manifest said of the game; empty where not run.

        Of seeds that differ, as where the game validated the rule in between, the one
        that claims the least.
        """
        found = {cell.result.status for cell in self.cells.get((rule, task), ())}
        known = [status for status in LEAST_TRUSTED_FIRST if status in found]
        return known[0] if known else min(found, default="")

    def has_infinite(self, rule: str, task: Task) -> bool:
        """Return whether some seed has no return since it is not finite."""
        return any(map(is_infinite, self.cells.get((rule, task), ())))

    def folder_of(self, cell: CellRecord) -> Path:
        """Return the results_dir that a cell is from."""
        return self.folders[id(cell)]

    def rule(self, name: str) -> Rule:
        """Return a rule, or a recipe, by its name."""
        every = (*self.recipes, *self.rules)
        return next(rule for rule in every if rule.name == name)


def gather(
    records: Sequence[tuple[Path, CellRecord]], baseline: str | None
) -> Evaluation:
    """Return the cells of all folders together.

    Args:
      records: cells and where they are from.
      baseline: as asked for; None: actor_critic where it is there.

    Raises:
      UserError: two folders contradict each other, cells of one rule on one game
        differ in their settings, a return is no number, or there is no such baseline.
    """
    cells: dict[tuple[str, Task], dict[int, tuple[Path, CellRecord]]] = {}
    for path, stored in records:
        require_sound(path, stored)
        record = without_infinities(stored)
        by_seed = cells.setdefault((rule_name(record), task_of(record)), {})
        seed = record.result.seed
        if seed in by_seed:
            _refuse_contradiction(by_seed[seed], (path, record))
        else:
            by_seed[seed] = (path, record)
    _refuse_mixtures(cells)
    names = dict.fromkeys(name for name, _ in cells)
    chosen = _choose_baseline(baseline, names)
    kept = {
        key: tuple(record for _, (_, record) in sorted(by_seed.items()))
        for key, by_seed in sorted(cells.items())
    }
    folders = {id(r): p for by_seed in cells.values() for p, r in by_seed.values()}
    tasks = tuple(sorted({task for _, task in kept}))
    without_scales = Evaluation(_rules(kept, chosen), tasks, kept, folders, chosen, {})
    scales = {task: _scale(without_scales, task) for task in tasks}
    return dataclasses.replace(without_scales, scales=scales)


def rule_name(record: CellRecord) -> str:
    """Return the name of a cell's rule, groups of another size apart."""
    return record.result.label


def task_of(record: CellRecord) -> Task:
    """Return what a cell played."""
    environment = record.settings.get("environment", {})
    options = environment.get("options", {}) if isinstance(environment, dict) else {}
    pairs = tuple(sorted((str(k), str(v)) for k, v in dict(options).items()))
    return Task(record.result.game, pairs)


def interval_of(returns: Sequence[float]) -> Estimate:
    """Return the mean of some seeds and its bootstrap interval."""
    return interval(mean, Runs.of([returns]))


def first_difference(one: CellRecord, other: CellRecord) -> str:
    """Return a setting that two cells differ in, as text; empty where there is none.

    A cell of an earlier version has the settings that came later at their defaults, as
    an evaluation that goes on takes it.
    """
    if one.settings == other.settings:
        return ""
    first, second = (flatten(completed_identity(x.settings)) for x in (one, other))
    for name in dict.fromkeys([*first, *second]):
        values = [str(found.get(name, "nothing")) for found in (first, second)]
        if name not in _DESCRIBES_NOTHING and first.get(name) != second.get(name):
            return f"{name} = {' and '.join(values)}"
    return ""


def _refuse_contradiction(
    first: tuple[Path, CellRecord], second: tuple[Path, CellRecord]
) -> None:
    """Raise UserError where two folders have one cell with different contents."""
    (path, one), (other_path, other) = first, second
    if difference := first_difference(one, other):
        raise UserError(
            f"report: {path} and {other_path} both have {words_of(one)}, with "
            f"{difference}; report them apart"
        )
    if one.result.mean_return != other.result.mean_return:
        raise UserError(
            f"report: {path} and {other_path} both have {words_of(one)}, with other "
            "returns; give one of the two"
        )


def _refuse_mixtures(
    cells: Mapping[tuple[str, Task], Mapping[int, tuple[Path, CellRecord]]],
) -> None:
    """Raise UserError where a mean over seeds would be one over settings too."""
    hashes: dict[str, tuple[str, Path]] = {}
    for (name, task), by_seed in cells.items():
        members = list(by_seed.values())
        for path, record in members:
            sha256 = str(record.settings.get("rule_sha256", ""))
            known, where = hashes.setdefault(name, (sha256, path))
            if known != sha256:
                raise UserError(
                    f"report: the rule '{name}' of {path} is another one than that of "
                    f"{where}; report them apart"
                )
            if difference := first_difference(members[0][1], record):
                raise UserError(
                    f"report: {name} on {task.name} has cells with {difference}; "
                    "report them apart"
                )


def _choose_baseline(asked: str | None, names: Iterable[str]) -> str | None:
    names = list(names)
    if asked is None:
        return DEFAULT_BASELINE if DEFAULT_BASELINE in names else None
    if asked not in names:
        raise UserError(
            f"--baseline {asked}: no such rule in the results{nearest(asked, names)} "
            f"(there are: {', '.join(names) or 'none'})"
        )
    return asked


def _rules(
    cells: Mapping[tuple[str, Task], tuple[CellRecord, ...]], baseline: str | None
) -> tuple[Rule, ...]:
    """Return the rules in the order of all tables, each with its colour."""
    found: dict[str, Rule] = {}
    for (name, _), records in cells.items():
        settings = records[0].settings
        update_rule = settings.get("update_rule", {})
        kind = update_rule.get("kind", "") if isinstance(update_rule, dict) else ""
        found[name] = Rule(name, str(kind), str(settings.get("rule_sha256", "")))
    ordered = sorted(
        found.values(),
        key=lambda r: (r.is_random, not r.sha256, r.name == baseline, r.name),
    )
    learning = [rule for rule in ordered if not rule.is_random]
    colored = [dataclasses.replace(r, color_index=i) for i, r in enumerate(learning)]
    others = [dataclasses.replace(r, color_index=-1) for r in ordered if r.is_random]
    return (*colored, *others)


def _scale(evaluation: Evaluation, task: Task) -> Scale:
    """Return how returns on a task are normalised."""
    game = GAMES.get(task.game) or Game(task.game, "atari")
    if game.random_score is not None and game.human_score is not None:
        return Scale("human", game.random_score, game.human_score)
    measured = [
        x
        for rule in evaluation.rules
        if rule.is_random
        for x in evaluation.returns(rule.name, task)
    ]
    random, is_measured = game.random_score, False
    if random is None and measured:
        random, is_measured = sum(measured) / len(measured), True
    if random is None:
        why = "no random score is known: evaluate the rule `random` too"
        return Scale("raw", why_raw=why)
    if game.best_score is not None:
        return Scale("best", random, game.best_score, is_measured)
    why = ""
    baseline = evaluation.baseline
    returns = [] if baseline is None else evaluation.returns(baseline, task)
    if baseline is None:
        why = "neither a human nor a best score is known, and there is no baseline rule"
    elif not returns:
        why = f"the baseline {baseline} has no return on it"
    elif not lies_above(interval_of(returns), interval_of(measured or [random])):
        why = f"the baseline {baseline} does not end above random"
    if why:
        return Scale("raw", random, None, is_measured, why)
    return Scale("baseline", random, sum(returns) / len(returns), is_measured)


def lies_above(one: Estimate, other: Estimate) -> bool:
    """Return whether ``one`` is higher, intervals apart where there are any."""
    low = one.value if one.low is None else one.low
    high = other.value if other.high is None else other.high
    return low > high
