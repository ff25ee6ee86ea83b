"""Evaluation: train fresh agents with frozen rules and score them.

`cells.py` what is trained, `defaults.py` with which settings, `jobs.py` and
`batches.py` where and beside what, `runner.py` how; `tuning_grid.py` and `tuning.py`
the learning-rate grid; `results.py` a file per cell, and `results_tables.py` the tables
that are merged from them; `training.py` writes cells and `amendments.py` changes them
later, `videos.py` films their agents; `summary.py` the table at the end; `command.py`
`metarl evaluate`.
"""

from __future__ import annotations

from metarl.evaluation.cell_records import (
    CurveRow,
    Result,
)
from metarl.evaluation.command import evaluate, main
from metarl.evaluation.summary import summary_table

__all__ = ["CurveRow", "Result", "evaluate", "main", "summary_table"]
