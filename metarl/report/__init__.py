"""`metarl report`: results and training runs as one self-contained HTML page.

`inputs.py` reads folders; `scores.py` says what was played and normalises, and
`compare.py` aggregates; `run.py` reads a training run. `figures.py` draws what
`evaluation_figures.py` and `run_figures.py` ask for, `markup.py` escapes,
`evaluation_page.py`, `run_page.py` and `page.py` put together; `command.py` writes.
"""

from __future__ import annotations

from metarl.report.command import main, write_report

__all__ = ["main", "write_report"]
