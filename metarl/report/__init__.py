"""`metarl report`: results and training runs as one self-contained HTML page.

`inputs.py` reads folders; `scores.py` says what was played and normalises, and
`compare.py` aggregates. `evaluation_figures.py`, `game_cards.py` and `run_figures.py`
draw on what `figures.py` gives them; `evaluation_page.py`, `run_page.py` and `page.py`
put together, by `markup.py`, which escapes; `command.py` is the command.
"""

from __future__ import annotations

from metarl.report.command import main, write_report

__all__ = ["main", "write_report"]
