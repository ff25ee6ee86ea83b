"""Runs as meta-training writes them, without training anything."""

from __future__ import annotations

import json
from pathlib import Path

import tiny_run

from metarl import config_loader


def write_run(folder: Path, rows: list[dict], **config: object) -> Path:
    """Write a run's configuration and metrics as `metarl train` does."""
    folder.mkdir(parents=True, exist_ok=True)
    overrides = [f"{k}={v}" for k, v in {"meta_steps": 100, **config}.items()]
    resolved = tiny_run.config(folder, *overrides)
    (folder / "config.yaml").write_text(config_loader.dump(resolved))
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text(text)
    return folder


def row(step: int, **more: float | None) -> dict[str, float | None]:
    """Return a row of the metrics after so many meta-steps."""
    return {
        "global_step": 40 * step,
        "meta_step": step,
        "meta/loss": 1.0 / step,
        "meta/grad_norm": 0.5,
        "meta/rule_entropy_y": 1.6,
        "agents/Catch-v0/episodic_return": -0.5,
        "stats/env_time": 2.0,
        "stats/meta_time": 6.0,
        **more,
    }
