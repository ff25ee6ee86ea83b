"""Which training runs made the rules of an evaluation.

Between `inputs.py`, `scores.py` and the page. A cell says where its rule was read from,
relative to its results; a run there is shown without being named.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from metarl.errors import UserError
from metarl.evaluation.cell_records import (
    CellRecord,
)
from metarl.report.inputs import TrainingRun, is_run, manifest_of, read_run
from metarl.report.scores import Evaluation, Rule

_DEPTH = 3
"""How far a rule can be below its run: RUN/validation/meta_step_NNNNNN/rule."""


def find_runs(
    evaluation: Evaluation, given: Sequence[TrainingRun]
) -> tuple[list[TrainingRun], list[str]]:
    """Return the runs that made the evaluated rules, beyond those that were given.

    Args:
      evaluation: all cells.
      given: runs that are on the page already.

    Returns:
      The others, and the names of the rules whose run is on the page in neither way.
    """
    runs = {run.path.resolve(): run for run in given}
    without = []
    for rule in evaluation.rules:
        # Hand-written rules, a user's own class among them, come from no run.
        if not rule.sha256 or rule.kind == "custom":
            continue
        if any(_made(run, rule) for run in runs.values()):
            continue
        found = _run_of(evaluation, rule)
        if found is None:
            without.append(rule.name)
        else:
            runs.setdefault(found.path.resolve(), found)
    return list(runs.values())[len(given) :], without


def _made(run: TrainingRun, rule: Rule) -> bool:
    """Return whether a rule is a run's, now or at another time."""
    hashes = {manifest.sha256 for manifest in (run.manifest, run.best) if manifest}
    return rule.sha256 in hashes or _is_named_after(run.path.resolve(), rule.name)


def _run_of(evaluation: Evaluation, rule: Rule) -> TrainingRun | None:
    """Return the run that a rule's cells lead to, if it is there and can be read."""
    places = {
        place
        for cell in evaluation.records_of(rule.name)
        if (place := _place(evaluation.folder_of(cell), cell)) is not None
    }
    for place in sorted(places):
        for path in place.parents[:_DEPTH]:
            if not is_run(path):
                continue
            try:
                # Another run may be in its place by now.
                manifest = manifest_of(place)
                is_same = manifest is not None and manifest.sha256 == rule.sha256
                if is_same or _is_named_after(path, rule.name):
                    return read_run(path)
            except UserError:  # such as one that has just begun
                continue
    return None


def _place(results: Path, cell: CellRecord) -> Path | None:
    """Return where a cell's rule was read from; None where it does not say."""
    path = cell.about.get("rule_path")
    return (results.resolve() / path).resolve() if isinstance(path, str) else None


def _is_named_after(run: Path, rule: str) -> bool:
    name = rule.partition(" (groups of ")[0]
    return name in (run.name, f"{run.name}__best")
