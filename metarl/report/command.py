"""`metarl report`: read folders, write the page and its figures, tell W&B.

Host code: files, the clock and tracking.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from metarl.config import TrackingConfig
from metarl.console import say
from metarl.errors import UserError
from metarl.provenance import git_commit
from metarl.report.evaluation_page import (
    cautions,
    evaluation_sections,
    facts,
    legend,
)
from metarl.report.figures import FOLDER, Figure, write_figures
from metarl.report.inputs import Inputs, read_inputs
from metarl.report.markup import Markup
from metarl.report.page import Front, Section, write_page
from metarl.report.run_page import rules_section, run_section, summary
from metarl.report.scores import Evaluation, gather
from metarl.report.tables import DataTable
from metarl.rule_files import folder as rule_folder
from metarl.tracking import RunLabels, Tracker, wandb_mode

PAGE = "report.html"


def main(
    paths: Sequence[Path],
    output: Path | None,
    baseline: str | None,
    tracking: TrackingConfig,
) -> int:
    """Run `metarl report` and return its exit code.

    Args:
      paths: folders of results, runs and rules.
      output: where to write; None: the first folder that is no rule.
      baseline: the rule to compare with; None: actor_critic where it is there.
      tracking: whether W&B gets the same.
    """
    page, figures, tables = write_report(paths, output, baseline)
    say(f"wrote {page} ({len(figures)} figures in {page.parent / FOLDER})")
    if wandb_mode(tracking) != "disabled":
        _track(page, figures, tables, tracking)
    return 0


def write_report(
    paths: Sequence[Path], output: Path | None = None, baseline: str | None = None
) -> tuple[Path, list[Figure], list[DataTable]]:
    """Write the page and its figures.

    Args:
      paths: folders of results, runs and rules.
      output: where to write; None: the first folder that is no rule.
      baseline: the rule to compare with; None: actor_critic where it is there.

    Returns:
      The page, its figures and its tables.

    Raises:
      UserError: a folder holds nothing to report, folders contradict each other, or
        there is no such baseline.
    """
    inputs = read_inputs(paths)
    if baseline is not None and not inputs.results:
        raise UserError(f"--baseline {baseline}: there are no results to compare")
    evaluation = gather(inputs.records, baseline) if inputs.results else None
    sections, figures, tables = _sections(inputs, evaluation)
    folder = output or _first(inputs, paths)
    text = write_page(
        _front(inputs, evaluation), sections, has_scores=evaluation is not None
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_figures(folder, figures)
        rule_folder.write_file(folder / PAGE, text.encode())
    except OSError as error:
        raise UserError(f"report: cannot write to {folder}: {error.strerror}") from None
    return folder / PAGE, figures, tables


def _sections(
    inputs: Inputs, evaluation: Evaluation | None
) -> tuple[list[Section], list[Figure], list[DataTable]]:
    sections: list[Section] = []
    figures: list[Figure] = []
    tables: list[DataTable] = []
    if evaluation is not None:
        sections, figures, tables = evaluation_sections(evaluation)
    of_runs = []
    for run in inputs.runs:
        section, drawn, found = run_section(
            run, evaluation, is_only=len(inputs.runs) == 1
        )
        of_runs.append(section)
        figures += drawn
        tables += found
    # A rule's discovery is told after its scores, before what was not run.
    at = next((i for i, s in enumerate(sections) if s.name == "not-run"), 0)
    sections[at:at] = of_runs
    if (rules := rules_section(inputs.rules)) is not None:
        sections.append(rules)
    return sections, figures, tables


def _front(inputs: Inputs, evaluation: Evaluation | None) -> Front:
    made = time.strftime("%Y-%m-%d %H:%M %Z")
    if evaluation is not None:
        names = [rule.name for rule in evaluation.rules if not rule.is_random]
        return Front(
            f"{', '.join(names[:4])}{' and others' if names[4:] else ''}",
            f"Update rules compared on fresh agents · metarl report of {made}",
            facts(evaluation),
            legend(evaluation),
            cautions(evaluation),
        )
    names = [run.name for run in inputs.runs]
    only = inputs.runs[0]
    return Front(
        ", ".join(names),
        f"Discovery of an update rule · metarl report of {made}",
        summary(only)[:2] if len(inputs.runs) == 1 else [("runs", str(len(names)))],
        Markup(""),
        [],
    )


def _first(inputs: Inputs, paths: Sequence[Path]) -> Path:
    """Return the first folder that is no rule: nothing else may be in those."""
    rules = {rule.path for rule in inputs.rules}
    return next(
        (path for path in paths if path not in rules),
        inputs.runs[0].path if inputs.runs else paths[0],
    )


def _track(
    page: Path,
    figures: Sequence[Figure],
    tables: Sequence[DataTable],
    tracking: TrackingConfig,
) -> None:
    """Give W&B the page, its figures and its tables."""
    commit = git_commit()
    name = page.resolve().parent.name
    labels = RunLabels(
        name=f"report-{name}",
        group="report",
        tags=(commit,) if commit else (),
        job_type="report",
    )
    with Tracker(page.parent / "tracking" / "report", tracking, {}, labels) as tracker:
        for table in tables:
            columns, rows = table.plain()
            tracker.log_table(f"report/{table.name}", columns, rows)
        for figure in figures:
            path = page.parent / FOLDER / f"{figure.name}.png"
            tracker.log_image(f"report/{figure.name}", path, caption=figure.caption)
        tracker.log_html("report/page", page)
