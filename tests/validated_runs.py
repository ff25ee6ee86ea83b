"""Tiny runs that validate their rule, and what they leave behind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import tiny_run

import metarl
from metarl import train

# Rules and agents move so far in few steps that no two rules score the same.
ON = (
    "meta_steps=5",
    "checkpoint.every=100",
    "meta.optimizer.learning_rate=0.1",
    "validation={every: 2, suite: catch_5x5, seeds: [1, 2], env_steps: 400, "
    "allow_seen: true, overrides: [agent.optimizer.learning_rate=0.3]}",
)
STEPS = (2, 4, 5)


def run(folder: Path, *overrides: str) -> int:
    return train.main(tiny_run.config(folder, *ON, *overrides))


def resume(folder: Path, *overrides: str) -> int:
    return train.main(tiny_run.resumed(folder, *overrides), resume=folder)


def rows(folder: Path) -> list[dict[str, float]]:
    """Return the metrics but for times."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if k[:6] not in ("stats/", "charts")}
        for line in lines
    ]


def is_eval(row: dict[str, float]) -> bool:
    return any(key.startswith("eval/") for key in row)


def arrays(rule: Path) -> dict[str, np.ndarray]:
    with np.load(rule / "rule.npz") as file:
        return dict(file)


def place(folder: Path, step: int) -> Path:
    return folder / "validation" / f"meta_step_{step:06d}"


def cells(folder: Path, step: int) -> list[dict]:
    files = sorted((place(folder, step) / "cells").glob("*.json"))
    return [json.loads(file.read_text()) for file in files]


def assert_same_run(one: Path, other: Path) -> None:
    assert rows(one) == rows(other)
    for name in ("rule", "rule_best"):
        first, second = arrays(one / name), arrays(other / name)
        assert first.keys() == second.keys()
        for key, value in first.items():
            np.testing.assert_array_equal(value, second[key], err_msg=key)
        manifests = [metarl.load_rule(run / name).manifest for run in (one, other)]
        assert manifests[0] == manifests[1]
    for step in STEPS:
        curves = [[c["curve"] for c in cells(run, step)] for run in (one, other)]
        assert curves[0] == curves[1]
        assert curves[0]
