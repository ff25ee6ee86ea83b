"""The labels of a tracked run, and the rows that it wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from metarl.config import TrackingConfig
from metarl.tracking import RunLabels

LABELS = RunLabels("catch__1__now", "catch", ("abc123",))
NO_WANDB = TrackingConfig(wandb="disabled")


def logged_rows(run_dir: Path) -> list[dict[str, Any]]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]
