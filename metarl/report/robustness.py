"""What agents that have learned do among distractors: a table.

Between `scores.py` and the page. An agent is a seed's: of a group the mean over its
peers, which learned from one another and are no runs of their own.
"""

from __future__ import annotations

from metarl.evaluation.robustness_records import Robustness, mean_over
from metarl.report.figures import color
from metarl.report.scores import Evaluation
from metarl.report.tables import Cell, DataTable
from metarl.statistics import Estimate, Runs, interval, iqm

_TITLES = {
    "unseen_return": "return, unseen distractors",
    "train_return": "return, training distractors",
    "clean_return": "return, clean frames",
    "unseen_kl": "KL, unseen distractors",
    "train_kl": "KL, training distractors",
}


def robustness_table(evaluation: Evaluation) -> DataTable:
    """Return a row for every rule and game of which agents were tested.

    Numbers are interquartile means over seeds with their 95 % intervals; none where a
    seed lacks one.
    """
    rows: list[tuple[Cell, ...]] = []
    for task in evaluation.tasks:
        for rule in evaluation.rules:
            cells = evaluation.cells.get((rule.name, task), ())
            means = [mean_over(cell.robustness) for cell in cells]
            found = [mean for mean in means if mean is not None]
            if not found:
                continue
            rows.append(
                (
                    task.name,
                    rule.name,
                    *(_over_seeds(found, name) for name in _TITLES),
                    len(found),
                    sum(mean.episodes for mean in found),
                )
            )
    columns = ("game", "rule", *_TITLES.values(), "seeds", "episodes of each kind")
    colors = {rule.name: color(rule) for rule in evaluation.rules}
    return DataTable("robustness", columns, tuple(rows), colors)


def _over_seeds(found: list[Robustness], name: str) -> Estimate | None:
    values = [getattr(mean, name) for mean in found]
    if any(value is None for value in values):
        return None
    return interval(iqm, Runs.of([values]))
