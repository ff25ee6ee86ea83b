"""`metarl report`: read folders, write the page and its figures, tell W&B.

Host code: files, the clock and tracking.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from metarl.atomic_files import write_file
from metarl.config import TrackingConfig
from metarl.console import say
from metarl.errors import UserError
from metarl.provenance import git_commit
from metarl.report.cautions import cautions
from metarl.report.contents import Contents
from metarl.report.evaluation_page import evaluation_sections, facts, legend
from metarl.report.figures import FOLDER, write_figures
from metarl.report.inputs import Inputs, read_inputs
from metarl.report.markup import Markup, count_of
from metarl.report.origins import find_runs
from metarl.report.page import Front, write_page
from metarl.report.recipes import parse_recipes, with_recipes
from metarl.report.run_page import rules_section, run_section
from metarl.report.scores import Evaluation, gather
from metarl.tracking import RunLabels, Tracker, wandb_mode

PAGE = "report.html"


def main(
    paths: Sequence[Path],
    output: Path | None,
    baseline: str | None,
    tracking: TrackingConfig,
    together: Sequence[str] = (),
) -> int:
    """Run `metarl report` and return its exit code.

    Args:
      paths: folders of results, runs and rules.
      output: where to write; None: the first folder that is no rule.
      baseline: the rule to compare with; None: actor_critic where it is there.
      tracking: whether W&B gets the same.
      together: rules that one recipe discovered, such as ``mine=mine1,mine2``.
    """
    page, contents = write_report(paths, output, baseline, together)
    say(f"wrote {page} ({len(contents.figures)} figures in {page.parent / FOLDER})")
    if wandb_mode(tracking) != "disabled":
        _track(page, contents, tracking)
    return 0


def write_report(
    paths: Sequence[Path],
    output: Path | None = None,
    baseline: str | None = None,
    together: Sequence[str] = (),
) -> tuple[Path, Contents]:
    """Write the page and its figures.

    Args:
      paths: folders of results, runs and rules.
      output: where to write; None: the first folder that is no rule.
      baseline: the rule to compare with; None: actor_critic where it is there.
      together: rules that one recipe discovered, such as ``mine=mine1,mine2``.

    Returns:
      The page, and what is in it.

    Raises:
      UserError: a folder holds nothing to report, folders contradict each other, or
        there is no such baseline, or rules cannot be taken together.
    """
    recipes = parse_recipes(together)
    inputs = read_inputs(paths)
    if baseline is not None and not inputs.results:
        raise UserError(f"--baseline {baseline}: there are no results to compare")
    if recipes and not inputs.results:
        raise UserError(f"--together {together[0]}: there are no results to compare")
    evaluation = None
    if inputs.results:
        evaluation = with_recipes(gather(inputs.records, baseline), recipes)
    contents = _contents(inputs, evaluation)
    folder = output or _first(inputs, paths)
    text = write_page(
        _front(inputs, evaluation),
        contents.sections,
        has_scores=evaluation is not None,
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_figures(folder, contents.figures)
        write_file(folder / PAGE, text.encode())
    except OSError as error:
        raise UserError(f"report: cannot write to {folder}: {error.strerror}") from None
    return folder / PAGE, contents


def _contents(inputs: Inputs, evaluation: Evaluation | None) -> Contents:
    runs = list(inputs.runs)
    contents = Contents()
    if evaluation is not None:
        found_runs, without = find_runs(evaluation, runs)
        runs += found_runs
        contents = evaluation_sections(evaluation, without_run=without)
    sections = contents.sections
    # A rule's discovery is told after its scores, before what was not run.
    at = next((i for i, s in enumerate(sections) if s.name == "not-run"), 0)
    for run in reversed(runs):
        found = run_section(run, evaluation, is_only=len(runs) == 1)
        sections[at:at] = found.sections
        contents.figures += found.figures
        contents.tables += found.tables
    if (rules := rules_section(inputs.rules)) is not None:
        sections.append(rules)
    return contents


def _front(inputs: Inputs, evaluation: Evaluation | None) -> Front:
    made = time.strftime("%Y-%m-%d %H:%M %Z")
    if evaluation is not None:
        every = evaluation.rules
        names = [r.name for r in every if not r.is_random] or [every[0].name]
        games = count_of(len(evaluation.tasks), "game")
        return Front(
            f"{', '.join(names[:4])}{' and others' if names[4:] else ''} on {games}",
            f"Update rules compared on fresh agents · metarl report of {made}",
            facts(evaluation),
            legend(evaluation),
            cautions(evaluation),
        )
    names = [run.name for run in inputs.runs]
    return Front(
        ", ".join(names),
        f"Discovery of an update rule · metarl report of {made}",
        [("runs", str(len(names)))] if len(names) > 1 else [],
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


def _track(page: Path, contents: Contents, tracking: TrackingConfig) -> None:
    """Give W&B the page, and its figures, tables and videos."""
    commit = git_commit()
    labels = RunLabels(
        name=f"report-{page.resolve().parent.name}",
        group="report",
        tags=(commit,) if commit else (),
        job_type="report",
    )
    with Tracker(page.parent / "tracking" / "report", tracking, {}, labels) as tracker:
        for table in contents.tables:
            columns, rows = table.plain()
            tracker.log_table(f"report/{table.name}", columns, rows)
        for figure in contents.figures:
            path = page.parent / FOLDER / f"{figure.name}.png"
            caption = f"{figure.title}. {figure.caption}"
            tracker.log_image(f"report/{figure.name}", path, caption=caption)
        for clip in contents.clips:
            name = f"{clip.task.name}/{clip.rule.name}/{clip.video.stage}"
            tracker.log_video(name, clip.path, global_step=clip.video.env_steps)
        tracker.log_html("report/page", page)
