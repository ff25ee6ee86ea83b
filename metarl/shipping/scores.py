"""What fresh agents came to by the rule that ships, and by those beside it.

Reads folders of `metarl evaluate`; every number comes from their cells. Host code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from metarl.errors import UserError
from metarl.evaluation.cell_records import (
    CellRecord,
)
from metarl.evaluation.results import (
    read_cells,
)
from metarl.report import compare
from metarl.report.compare import STATUS_WORDS
from metarl.report.inputs import INITIAL_RULE
from metarl.report.markup import number
from metarl.report.scores import (
    LEAST_TRUSTED_FIRST,
    Evaluation,
    Rule,
    Task,
    gather,
    interval_of,
    task_of,
)
from metarl.report.tables import Cell, DataTable, describe
from metarl.rule_files import BUILT_IN, LoadedRule, load_rule, shipped_rules
from metarl.rule_files import folder as rule_folder
from metarl.shipping.recipes import command, recipe
from metarl.shipping.record import Record

AT_START = "at meta-step 0"
"""What the rule from before the meta-training is called."""
_SHORT_KINDS = {
    "human": "0 = random, 1 = human",
    "best": "0 = random, 1 = best possible",
    "baseline": "0 = random, 1 = actor_critic",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
    """One folder of results.

    Attributes:
      folder: where the commands put it, `results/NAME`.
      evaluation: its cells.
      own: what the rule that ships is called there.
      labels: what each rule is called on the card, that one first.
      commands: that give the cells again.
      without: labels of the rules of which some cells have no command.
    """

    folder: str
    evaluation: Evaluation
    own: str
    labels: Mapping[str, str]
    commands: tuple[str, ...]
    without: tuple[str, ...]

    @property
    def records(self) -> list[CellRecord]:
        """All cells."""
        return list(self.evaluation.records())


def read_scores(folder: Path, record: Record, index: int = 1) -> Scores:
    """Return the results in ``folder``.

    Args:
      folder: of `metarl evaluate`.
      record: of the rule that ships.
      index: of the folder among all of this rule, from 1.

    Raises:
      UserError: there are none, none is of this rule, or they contradict each other.
    """
    found = read_cells(folder)
    if not found:
        raise UserError(f"--results {folder}: holds no finished cell of an evaluation")
    evaluation = gather([(folder, cell) for cell in found], None)
    sha256 = record.manifest.sha256
    own = [rule.name for rule in evaluation.rules if rule.sha256 == sha256]
    if not own:
        raise UserError(
            f"--results {folder}: none of its cells is of this rule, whose sha256 is "
            f"{sha256[:12]} (it has {', '.join(r.name for r in evaluation.rules)})"
        )
    labels = {own[0]: record.name}
    for rule in evaluation.rules:
        is_start = rule.sha256 and rule.sha256 == record.initial_sha256
        labels.setdefault(rule.name, AT_START if is_start else rule.name)
    target = f"results/{record.name}" + (f"_{index}" if index > 1 else "")
    commands, without = _commands(evaluation, labels, record, (folder, target))
    # What has not learned from any game has no say in which are held out.
    rules = [
        dataclasses.replace(rule, sha256="") if labels[rule.name] == AT_START else rule
        for rule in evaluation.rules
    ]
    shown = dataclasses.replace(evaluation, rules=tuple(rules))
    return Scores(target, shown, own[0], labels, commands, without)


def table(scores: Scores, record: Record) -> DataTable:
    """Return a row per game and per aggregate, a column per rule; raw returns."""
    evaluation, labels = scores.evaluation, scores.labels
    rows: list[tuple[Cell, ...]] = []
    for task in evaluation.tasks:
        cells = [c for rule in labels for c in evaluation.cells.get((rule, task), ())]
        seeds = [len(evaluation.cells.get((rule, task), ())) for rule in labels]
        rows.append(
            (
                task.name,
                STATUS_WORDS[status(scores, record, task)],
                _range([count for count in seeds if count]),
                _range([cell.result.env_steps for cell in cells]),
                *(_returns(scores, record, rule, task) for rule in labels),
            )
        )
    for group in compare.make_groups(evaluation):
        if group.kind == "raw" or len(group.common) < 2:
            continue
        found = {a.rule: a.iqm for a in compare.aggregates(evaluation, group)}
        some = "" if len(group.common) == len(group.tasks) else " informative"
        rows.append(
            (
                f"IQM of the scores ({_SHORT_KINDS[group.kind]}) on "
                f"{number(len(group.common))}{some} games",
                STATUS_WORDS.get(group.status, group.status),
                "",
                "",
                *(found.get(rule) for rule in labels),
            )
        )
    columns = ("game", "status", "seeds", "env steps", *labels.values())
    return DataTable("scores", columns, tuple(rows))


def status(scores: Scores, record: Record, task: Task, rule: str | None = None) -> str:
    """Return what a rule has seen of a task: of what is known, the least flattering.

    Args:
      scores: results.
      record: of the rule that ships.
      task: that was played.
      rule: by its name in the results; None: the one that ships, whose manifest has a
        say too.
    """
    own = rule is None or rule == scores.own
    found = {scores.evaluation.status(scores.own if own else str(rule), task)}
    if own:
        found.add(record.rule.status(task.game))
    return next(word for word in LEAST_TRUSTED_FIRST if word in found)


def csv_rows(
    every: Sequence[Scores], record: Record
) -> tuple[tuple[str, ...], list[tuple[object, ...]]]:
    """Return the columns and rows of all cells."""
    columns = (
        "results",
        "rule",
        "game",
        "status",
        "seed",
        "env_steps",
        "frames",
        "mean_return",
        "scored_episodes",
        "human_normalized_score",
        "learning_rate",
        "tuned",
        "wall_s",
    )
    rows: list[tuple[object, ...]] = []
    for scores in every:
        for rule, cell in _cells(scores):
            result, task = cell.result, task_of(cell)
            rows.append(
                (
                    scores.folder,
                    scores.labels[rule],
                    task.name,
                    status(scores, record, task, rule),
                    result.seed,
                    result.env_steps,
                    result.frames,
                    result.mean_return,
                    result.scored_episodes,
                    result.human_normalized_score,
                    result.learning_rate,
                    result.tuned,
                    result.wall_s,
                )
            )
    return columns, rows


def _cells(scores: Scores) -> Iterator[tuple[str, CellRecord]]:
    for rule in scores.labels:
        for cell in scores.evaluation.records_of(rule):
            yield rule, cell


def _returns(scores: Scores, record: Record, rule: str, task: Task) -> str | None:
    """Return a rule's mean return with its interval, and what has to be added."""
    evaluation = scores.evaluation
    cells = evaluation.cells.get((rule, task))
    if not cells:
        return None
    returns = evaluation.returns(rule, task)
    shown = describe(interval_of(returns)) if returns else "no episode finished"
    if returns and len(returns) < len(cells):
        shown += f" ({len(returns)} of {len(cells)} seeds)"
    if not evaluation.rule(rule).sha256 or rule == scores.own:
        return shown
    theirs, ours = status(scores, record, task, rule), status(scores, record, task)
    return shown if theirs == ours else f"{shown} ({STATUS_WORDS[theirs]})"


def _range(values: Sequence[int]) -> str:
    ends = dict.fromkeys((min(values), max(values)))
    return "–".join(number(value) for value in ends)


def _commands(
    evaluation: Evaluation,
    labels: Mapping[str, str],
    record: Record,
    folders: tuple[Path, str],
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the commands that give all cells again, and whose cells have none.

    Args:
      evaluation: all cells.
      labels: of its rules.
      record: of the rule that ships.
      folders: where the cells are, and where the commands are to put them.
    """
    folder, target = folders
    rules_of: dict[tuple[str, ...], list[str]] = {}
    without: dict[str, None] = {}
    for name, label in labels.items():
        rule = evaluation.rule(name)
        records = list(evaluation.records_of(name))
        found = _loaded(rule, records, record, folder)
        recipes = [None] if found is None else _recipes(found[1], records)
        for words in recipes:
            if found is None or words is None:
                without[label] = None
            else:
                rules_of.setdefault(words, []).append(found[0])
    commands = [command(rules, words, target) for words, rules in rules_of.items()]
    return tuple(commands), tuple(without)


def _recipes(
    rule: LoadedRule, records: Sequence[CellRecord]
) -> list[tuple[str, ...] | None]:
    """Return what gives the cells of a rule: a recipe per suite, or suite and budget.

    One folder may be of several commands.
    """
    found: list[tuple[str, ...] | None] = []
    for cells in _by(records, lambda cell: cell.about.get("suite")):
        words = recipe(rule, cells)
        if words is not None:
            found.append(words)
            continue
        parts = _by(cells, lambda cell: cell.settings.get("env_steps"))
        found += [recipe(rule, part) for part in parts] if len(parts) > 1 else [None]
    return found


def _by(
    records: Sequence[CellRecord], key: Callable[[CellRecord], object]
) -> list[list[CellRecord]]:
    """Return the cells in groups of equal keys, in their order."""
    groups: dict[object, list[CellRecord]] = {}
    for cell in records:
        groups.setdefault(key(cell), []).append(cell)
    return list(groups.values())


def _loaded(
    rule: Rule, records: Sequence[CellRecord], record: Record, folder: Path
) -> tuple[str, LoadedRule] | None:
    """Return how a rule is named in a command, and the rule; None where it is gone."""
    if rule.sha256 == record.manifest.sha256:
        return record.name, record.rule
    if rule.name in BUILT_IN and not rule.sha256:
        return rule.name, load_rule(rule.name)
    initial = f"runs/{record.name}/{INITIAL_RULE}"
    places = {record.run.path / INITIAL_RULE: initial}
    places |= {place: name for name, place in shipped_rules().items()}
    for cell in records:
        if isinstance(path := cell.about.get("rule_path"), str):
            place = (folder.resolve() / path).resolve()
            places.setdefault(place, _usual_place(place))
    for place, word in places.items():
        try:
            arrays, _ = rule_folder.read(place)
            if rule_folder.sha256(arrays) == rule.sha256:
                return word, load_rule(place)
        except (OSError, UserError):
            continue
    return None


def _usual_place(place: Path) -> str:
    """Return where others will have a rule: below `runs/` or `rules/`."""
    if not (place.parent / "config.yaml").is_file():
        return f"rules/{place.name}"
    run = f"runs/{place.parent.name}"
    return run if place.name == "rule" else f"{run}/{place.name}"
