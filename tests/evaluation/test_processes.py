"""`metarl evaluate` as processes: told to stop, killed, and two at the same cells."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from metarl.evaluation import evaluate, main
from metarl.evaluation.results import (
    read_cells,
)
from metarl.evaluation.shared_folder import claimed

SETTINGS = [
    "environment.num_envs=4",
    "rollout_length=6",
    "agent.network.torso.hidden=[8]",
    "curve_points=2",
]
SUITE = ["environment.suite=catch_5x5"]
LONG_S = 120  # far more than any of this takes


def start(folder: Path, *overrides: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "metarl", "evaluate", "policy_gradient"]
    words += ["--suite", "catch_5x5", *SETTINGS, *overrides, f"results_dir={folder}"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )


def wait_for_cell(folder: Path, process: subprocess.Popen[str]) -> None:
    """Return once a first cell is finished."""
    until = time.monotonic() + LONG_S
    while not list((folder / "cells").glob("*.json")):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < until
        time.sleep(0.02)


def learned(folder: Path) -> dict[int, object]:
    return {r.result.seed: (r.result.mean_return, r.curve) for r in read_cells(folder)}


@pytest.mark.slow
def test_stopped_it_says_how_to_go_on_and_killed_it_goes_on(tmp_path):
    folder = tmp_path / "results"
    grid = ["seeds=[1, 2, 3]", "cells_at_once=1", "env_steps=3000"]
    process = start(folder, *grid, "--jobs", "1/1")
    wait_for_cell(folder, process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=LONG_S)
    assert process.returncode == 75, output
    before = {path.name: path.read_bytes() for path in (folder / "cells").iterdir()}
    assert 1 <= len(before) < 3
    command = output.splitlines()[-1].partition("go on with: ")[2]
    words = shlex.split(command)
    assert words[:5] == [
        "metarl",
        "evaluate",
        "policy_gradient",
        "--suite",
        "catch_5x5",
    ]
    assert words[5:7] == ["--jobs", "1/1"]
    assert set(words[7:]) == {*SETTINGS, *grid, f"results_dir={folder}"}

    other = tmp_path / "killed"
    process = start(other, *grid)
    wait_for_cell(other, process)
    process.kill()
    process.wait(LONG_S)
    process.stdout.close()
    assert 1 <= len(learned(other)) < 3

    # The same words, in this process, whose JAX is warm.
    for place in (folder, other):
        overrides = [*SETTINGS, *grid, f"results_dir={place}"]
        assert main(["policy_gradient"], "catch_5x5", [], overrides) == 0
    for name, data in before.items():
        assert (folder / "cells" / name).read_bytes() == data
    assert learned(folder) == learned(other)
    assert list(learned(folder)) == [1, 2, 3]


def test_two_at_the_same_cells_leave_what_one_leaves(tmp_path):
    settings = [*SUITE, *SETTINGS, "seeds=[1, 2]", "env_steps=400"]

    def run(folder: Path) -> None:
        evaluate(["policy_gradient"], overrides=[*settings, f"results_dir={folder}"])

    alone, together = tmp_path / "alone", tmp_path / "together"
    run(alone)
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(run, [together, together]))
    assert learned(together) == learned(alone)
    for file in (together / "tracking").rglob("metrics.jsonl"):
        rows = [
            json.loads(line)["global_step"] for line in file.read_text().splitlines()
        ]
        assert rows == sorted(set(rows))


def test_the_metrics_of_a_claimed_cell_go_elsewhere(tmp_path):
    name = "policy_gradient__Catch-v0__seed1"
    tracking = tmp_path / "tracking"
    settings = [*SUITE, *SETTINGS, "seeds=[1]", "env_steps=100"]
    with claimed(tracking / f".{name}.lock") as is_ours:
        assert is_ours
        evaluate(["policy_gradient"], overrides=[*settings, f"results_dir={tmp_path}"])
    (folder,) = (path for path in tracking.iterdir() if path.is_dir())
    assert folder.name.startswith(f"{name}__")
    with claimed(tracking / f".{name}.lock") as is_ours:
        assert is_ours  # given back


def test_parts_in_different_folders_make_the_whole(tmp_path):
    settings = [*SUITE, *SETTINGS, "seeds=[1, 2, 3]", "env_steps=100"]
    for job in ("1/2", "2/2"):
        place = f"results_dir={tmp_path / job[0]}"
        overrides = [*SETTINGS, *settings[len(SUITE) + len(SETTINGS) :], place]
        assert main(["policy_gradient"], "catch_5x5", [], overrides, jobs=job) == 0
    parts = [learned(tmp_path / job) for job in "12"]
    evaluate(
        ["policy_gradient"], overrides=[*settings, f"results_dir={tmp_path / 'w'}"]
    )
    assert [sorted(part) for part in parts] == [[1, 3], [2]]
    assert parts[0] | parts[1] == learned(tmp_path / "w")
