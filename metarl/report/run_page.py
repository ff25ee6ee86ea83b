"""The sections of the page that show a training run, finished or not.

Puts together what `inputs.py` read and `run_figures.py` draws; `page.py` frames it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import yaml

from metarl.console import format_duration
from metarl.report import run_figures
from metarl.report.contents import Contents, Section
from metarl.report.inputs import RuleFolder, TrainingRun
from metarl.report.markup import Markup, details, join, number, slug, tag
from metarl.report.page import show_figures
from metarl.report.scores import Evaluation
from metarl.report.tables import DataTable, render
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
    of_games = [
        f for f in figures if f.name.startswith((f"{prefix}agents_", f"{prefix}eval_"))
    ]
    others = [f for f in figures if f not in of_games]
    metrics = metrics_table(run, prefix)
    parts = [
        _facts(run),
        _made(run, evaluation),
        show_figures(others),
    ]
    if of_games:
        text = "Raw returns of the population, and of fresh agents on validation games."
        parts += [
            tag("h3", "Games"),
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
    return Contents([section], figures, [metrics])


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
        ("rows", number(len(run.rows))),
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
        f"Not at its end: the newest row was written at {written}."
        if is_going_on(run)
        else f"The newest row was written at {written}."
    )
    items = join(
        tag("div", tag("dt", name), tag("dd", value)) for name, value in summary(run)
    )
    return join([tag("dl", items, class_="facts"), tag("p", going_on)])


def _made(run: TrainingRun, evaluation: Evaluation | None) -> Markup | None:
    """Return which of the evaluated rules the run made."""
    if evaluation is None:
        return None
    sha256 = run.manifest.sha256 if run.manifest else ""
    for rule in evaluation.rules:
        if sha256 and rule.sha256 == sha256:
            return tag("p", f"Its newest rule is {rule.name} of this evaluation.")
    for rule in evaluation.rules:
        if rule.sha256 and rule.name == run.name:
            text = f"{rule.name} of this evaluation is this run's rule at another time."
            return tag("p", text)
    return tag("p", "None of the rules of this evaluation is its newest rule.")


def _about(manifest: Manifest) -> str:
    return _yaml(manifest.model_dump(mode="json"))


def _yaml(tree: Mapping[str, Any]) -> str:
    if not tree:
        return ""
    return yaml.safe_dump(dict(tree), sort_keys=False, allow_unicode=True, width=80)
