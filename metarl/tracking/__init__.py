"""Metrics of a run: always as JSON lines, and in Weights & Biases where it can be had.

`metrics_file.py` has the lines, `wandb_mode.py` says whether W&B gets them too,
`names.py` what runs and metrics are called there; `tracker.py` writes to both. Host
code; `docs/metrics.md` says what every key means.
"""

from __future__ import annotations

from metarl.tracking.metrics_file import Position
from metarl.tracking.names import RunLabels, flat_config, logged_name
from metarl.tracking.tracker import Tracker, without_wandb
from metarl.tracking.wandb_mode import is_logged_in, wandb_mode

__all__ = [
    "Position",
    "RunLabels",
    "Tracker",
    "flat_config",
    "is_logged_in",
    "logged_name",
    "wandb_mode",
    "without_wandb",
]
