"""The sections of the page that show a training run, finished or not.

Puts together what `inputs.py` read and `run_figures.py` draws; `page.py` frames it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import yaml

from metarl.console import format_duration
from metarl.report import run_figures, validation_figures
from metarl.report.contents import Contents, Section
from metarl.report.figures import Figure
from metarl.report.inputs import RuleFolder, TrainingRun
from metarl.report.markup import Markup, details, join, number, slug, tag
from metarl.report.page import show_figures
from metarl.report.scores import Evaluation
from metarl.report.tables import DataTable, render
from metarl.report.validations import Validations
from metarl.rule_files import Manifest


def run_section(
    run: TrainingRun, evaluation: Evaluation | None, *, is_only: bool
) -> Contents:
    """Return the section of a run, and what is in it.

    Args:
      run: to show.
      evaluation: on the same page; says which of its rules the run made.
      is_only: whether it is the page's only run: its figures need no name then.
    """
    prefix = "" if is_only else f"{slug(run.name)}_"
    figures = run_figures.run_figures(run, prefix)
    of_games = [f for f in figures if f.name.startswith(f"{prefix}agents_")]
    others = [f for f in figures if f not in of_games]
    metrics = metrics_table(run, prefix)
    parts, tables = [_facts(run), *_made(run, evaluation)], [metrics]
    if run.validations is not None:
        drawn = validation_figures.validation_figures(run.validations, prefix)
        table = validation_figures.validation_table(run.validations, prefix)
        parts.append(_validation(run, run.validations, drawn, table))
        figures, tables = drawn + figures, [table, metrics]
    parts += [tag("h3", "Meta-training"), show_figures(others)]
    if of_games:
        text = "Mean raw return of the episodes that finished since the row before."
        parts += [
            tag("h3", "Games of the meta-training"),
            tag("p", text, class_="caption"),
            show_figures(of_games, class_="cards", has_caption=False),
        ]
    parts += [
        details("All metrics", render(metrics), is_long=True),
        details("Configuration", tag("pre", _yaml(run.config)), is_long=True),
        details("Versions", tag("pre", _yaml(run.versions) or "unknown")),
    ]
    if run.manifest is not None:
        parts.append(
            details("Newest rule", tag("pre", _about(run.manifest)), is_long=True)
        )
    section = Section(f"run-{slug(run.name)}", f"Discovery: {run.name}", join(parts))
    return Contents([section], figures, tables)


def _validation(
    run: TrainingRun, found: Validations, figures: list[Figure], table: DataTable
) -> Markup:
    """Return how fresh agents learned by the rule, meta-step by meta-step."""
    has_whole, is_one = found.best is not None, len(found.games) == 1
    said = validation_figures.sentences(found)
    section = run.config.get("validation")
    if isinstance(section, Mapping) and section.get("allow_seen"):
        said.append(
            "validation.allow_seen is set: games of the meta-training may be among "
            "them."
        )
    return join(
        [
            tag("h3", "Validation: fresh agents that learn by the rule"),
            *(tag("p", sentence) for sentence in said),
            # One game stands beside the whole.
            show_figures(figures[: has_whole + is_one]),
            show_figures(figures[has_whole + is_one :], class_="cards"),
            *([render(table, label="validations")] if found.points else []),
        ]
    )


def rules_section(rules: tuple[RuleFolder, ...]) -> Section | None:
    """Return what rule files say of themselves; None without any."""
    if not rules:
        return None
    shown = join(
        details(
            f"{rule.name} ({rule.path})",
            tag("pre", _about(rule.manifest)),
            is_long=True,
        )
        for rule in rules
    )
    return Section("rules", "Rule files", shown)


def metrics_table(run: TrainingRun, prefix: str = "") -> DataTable:
    """Return every key of the metrics with its first, newest, least and greatest."""
    keys = dict.fromkeys(key for row in run.rows for key in row)
    rows = []
    for key in sorted(keys):
        values = [row[key] for row in run.rows if row.get(key) is not None]
        known = [value for value in values if value is not None]
        if known:
            rows.append((key, known[0], known[-1], min(known), max(known), len(known)))
    columns = ("metric", "first", "newest", "least", "greatest", "rows")
    return DataTable(f"{prefix}metrics", columns, tuple(rows))


def summary(run: TrainingRun) -> list[tuple[str, str]]:
    """Return where a run stands, in a few numbers."""
    newest = _newest(run)
    planned = run.config.get("meta_steps")
    done = newest.get("meta_step")
    facts = [
        ("meta-steps", f"{number(done)} of {number(planned)}" if planned else "–"),
        ("environment steps", number(newest.get("global_step"))),
        ("rows of metrics", number(len(run.rows))),
    ]
    seconds = sum(run_figures.stage_times(run).values())
    if seconds:
        facts.append(("time in stages", format_duration(seconds)))
    skipped = newest.get("meta/skipped")
    if skipped is not None:
        facts.append(("meta-gradients skipped", number(skipped)))
    return facts


def is_going_on(run: TrainingRun) -> bool:
    """Return whether the run has meta-steps left to do."""
    planned, done = run.config.get("meta_steps"), _newest(run).get("meta_step")
    return bool(planned and done is not None and done < planned)


def _newest(run: TrainingRun) -> Mapping[str, float | None]:
    """Return the newest value of every key."""
    found: dict[str, float | None] = {}
    for row in run.rows:
        found |= {key: value for key, value in row.items() if value is not None}
    return found


def _facts(run: TrainingRun) -> Markup:
    written = time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(run.written_at))
    going_on = (
        f"Not finished: its newest metrics are of {written}."
        if is_going_on(run)
        else f"Finished; its newest metrics are of {written}."
    )
    items = join(
        tag("div", tag("dt", name), tag("dd", value)) for name, value in summary(run)
    )
    return join([tag("dl", items, class_="facts"), tag("p", going_on)])


def _made(run: TrainingRun, evaluation: Evaluation | None) -> list[Markup]:
    """Return which of the evaluated rules the run made."""
    if evaluation is None:
        return []
    said = []
    for manifest, words in ((run.manifest, "newest rule"), (run.best, "rule_best")):
        sha256 = manifest.sha256 if manifest else ""
        names = [r.name for r in evaluation.rules if sha256 and r.sha256 == sha256]
        said += [f"Its {words} is {name} of this evaluation." for name in names]
    for rule in evaluation.rules:
        if not said and rule.sha256 and rule.name == run.name:
            said.append(
                f"{rule.name} of this evaluation is this run's rule at another time."
            )
    said = said or ["This evaluation has neither its newest nor its best rule."]
    return [tag("p", sentence) for sentence in said]


def _about(manifest: Manifest) -> str:
    return _yaml(manifest.model_dump(mode="json"))


def _yaml(tree: Mapping[str, Any]) -> str:
    if not tree:
        return ""
    return yaml.safe_dump(dict(tree), sort_keys=False, allow_unicode=True, width=80)
