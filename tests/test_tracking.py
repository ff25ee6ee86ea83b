"""Metrics: JSON lines always, W&B runs that can be read back, lines on the console."""

from __future__ import annotations

import io
import json
import os
import re
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from metarl import tracking
from metarl.config import TrackingConfig, TrainConfig
from metarl.console import Progress, format_duration, format_value, heartbeat
from metarl.rule_files import new_manifest, save_rule
from metarl.tracking import (
    Position,
    RunLabels,
    Tracker,
    flat_config,
    is_logged_in,
    wandb_mode,
)

LABELS = RunLabels("catch__1__now", "catch", ("abc123",))
NO_WANDB = TrackingConfig(wandb="disabled")


def _rows(run_dir: Path) -> list[dict[str, Any]]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(autouse=True)
def _nobody_logged_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")


# --- JSON lines -------------------------------------------------------------------


def test_every_row_is_on_disk_at_once(tmp_path: Path) -> None:
    with Tracker(tmp_path, NO_WANDB, {}, LABELS) as tracker:
        tracker.log(
            {"meta/loss": np.float32(0.5), "meta/skipped": 0},
            global_step=0,
            meta_step=0,
        )
        assert _rows(tmp_path) == [
            {"global_step": 0, "meta_step": 0, "meta/loss": 0.5, "meta/skipped": 0}
        ]
        tracker.log({"charts/SPS": float("nan")}, global_step=10)
        tracker.log({"eval/iqm": float("inf")}, meta_step=2)
    assert _rows(tmp_path)[1:] == [
        {"global_step": 10, "charts/SPS": None},
        {"meta_step": 2, "eval/iqm": None},
    ]
    assert not (tmp_path / "wandb").exists()


def test_rows_need_a_step_and_metrics_are_no_steps(tmp_path: Path) -> None:
    with Tracker(tmp_path, NO_WANDB, {}, LABELS) as tracker:
        with pytest.raises(ValueError, match="needs global_step or meta_step"):
            tracker.log({"meta/loss": 1.0})
        with pytest.raises(ValueError, match="'meta_step' is an argument"):
            tracker.log({"meta_step": 1.0}, global_step=1)
    assert _rows(tmp_path) == []


def test_resumed_file_is_that_of_an_uninterrupted_run(tmp_path: Path) -> None:
    def log(folder: Path, steps: range, resume: Position | None) -> None:
        with Tracker(folder, NO_WANDB, {}, LABELS, resume=resume) as tracker:
            for step in steps:
                row = {"meta/loss": step / 3}
                tracker.log(row, global_step=10 * step, meta_step=step)
                if step % 2 == 0:
                    tracker.log({"charts/x": 1.0}, global_step=10 * step)

    log(tmp_path / "whole", range(1, 9), None)
    log(tmp_path / "killed", range(1, 7), None)
    with (tmp_path / "killed" / "metrics.jsonl").open("a") as file:
        file.write('{"global_step": 7')  # killed within a row
    log(tmp_path / "killed", range(5, 9), Position(global_step=40, meta_step=4))
    files = [tmp_path / name / "metrics.jsonl" for name in ("whole", "killed")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_rows_of_a_family_that_is_redone_are_dropped_at_the_very_step(
    tmp_path: Path,
) -> None:
    def log(steps: range, resume: Position | None) -> None:
        with Tracker(tmp_path, NO_WANDB, {}, LABELS, resume=resume) as tracker:
            for step in steps:
                tracker.log({"meta/loss": 0.5}, meta_step=step)
                tracker.log({"eval/iqm": 0.25}, meta_step=step)

    log(range(1, 4), None)
    log(range(0), Position(global_step=0, meta_step=2, redone=("eval",)))
    kept = [(row["meta_step"], "eval/iqm" in row) for row in _rows(tmp_path)]
    assert kept == [(1, False), (1, True), (2, False)]


def test_a_run_that_starts_anew_drops_all_rows(tmp_path: Path) -> None:
    for _ in range(2):
        with Tracker(tmp_path, NO_WANDB, {}, LABELS) as tracker:
            tracker.log({"meta/loss": 1.0}, meta_step=1)
    assert len(_rows(tmp_path)) == 1


def test_tracking_needs_neither_jax_nor_rules_nor_wandb() -> None:
    code = (
        "import sys, metarl.tracking; "
        "print(*{'jax', 'wandb', 'metarl.rules', 'metarl.rule_files'} & {*sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout == "\n"


# --- Whether and how W&B is used --------------------------------------------------


@pytest.mark.parametrize(
    ("config", "environment", "key", "expected"),
    [
        ("auto", None, False, "offline"),
        ("auto", None, True, "online"),
        ("online", None, False, "offline"),
        ("online", None, True, "online"),
        ("offline", None, True, "offline"),
        ("disabled", None, True, "disabled"),
        ("disabled", "offline", True, "offline"),
        ("online", "disabled", True, "disabled"),
        ("offline", "online", True, "online"),
        ("auto", "dryrun", True, "offline"),
        ("disabled", "nonsense", True, "disabled"),
    ],
)
def test_mode_is_the_environment_s_then_the_configuration_s(
    monkeypatch: pytest.MonkeyPatch,
    config: Any,
    environment: str | None,
    key: bool,
    expected: str,
) -> None:
    if environment is not None:
        monkeypatch.setenv("WANDB_MODE", environment)
    if key:
        monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert wandb_mode(TrackingConfig(wandb=config)) == expected


def test_login_is_found_in_netrc(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert not is_logged_in()
    path = tmp_path / "netrc"
    path.write_text("machine api.wandb.ai\n  login user\n  password secret\n")
    path.chmod(0o600)
    assert is_logged_in()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert not is_logged_in()
    path.write_text("machine")  # broken
    assert not is_logged_in()


def test_config_has_flat_keys_for_filters() -> None:
    config = TrainConfig.model_validate(
        {"exp_name": "e", "seed": 3, "environment": {"games": ["Pong-v5", "Hero-v5"]}}
    )
    dumped = config.model_dump(mode="json")
    flat = flat_config(dumped)
    assert (flat["env_id"], flat["exp_name"], flat["seed"]) == (
        "Pong-v5+Hero-v5",
        "e",
        3,
    )
    assert "env_id" not in dumped
    assert flat_config({"environment": {"suite": "atari5"}})["env_id"] == "atari5"
    assert flat_config({"seeds": [4]})["seed"] == 4


def test_wandb_failing_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Run:
        def define_metric(self, *args: object, **options: object) -> None: ...

        def log(self, row: object) -> None:
            raise OSError("disk full\nand more")

    monkeypatch.setattr(tracking.Tracker, "_init", lambda *_: Run())
    with Tracker(tmp_path, TrackingConfig(), {}, LABELS) as tracker:
        tracker.log({"meta/loss": 1.0}, meta_step=1)
        tracker.log({"meta/loss": 2.0}, meta_step=2)
        tracker.log_artifact(tmp_path)
    assert [row["meta/loss"] for row in _rows(tmp_path)] == [1.0, 2.0]
    assert capsys.readouterr().out.splitlines() == [
        "warning: W&B log failed (OSError: disk full); metrics.jsonl goes on"
    ]


def test_no_server_means_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    modes = []

    def init(self: Tracker, mode: str, *_: object) -> object:
        modes.append(mode)
        if mode == "online":
            raise ConnectionError("no route")
        raise RuntimeError("nothing works")

    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setattr(tracking.Tracker, "_init", init)
    with Tracker(tmp_path, TrackingConfig(), {}, LABELS) as tracker:
        tracker.log({"meta/loss": 1.0}, meta_step=1)
    assert modes == ["online", "offline"]
    assert capsys.readouterr().out.splitlines() == [
        "warning: W&B init (online) failed (ConnectionError: no route); going on "
        "offline",
        "warning: W&B init (offline) failed (RuntimeError: nothing works); "
        "metrics.jsonl goes on",
    ]


# --- An offline run, read back ----------------------------------------------------


def _records(path: Path) -> Iterator[Any]:
    """Yield the records of a W&B transaction log (LevelDB's log format)."""
    from wandb.proto import wandb_internal_pb2

    data, block = path.read_bytes(), 32768
    assert data[:4] == b":W&B"
    position, payload = 7, b""
    while position + 7 <= len(data):
        if block - position % block < 7:  # no header fits: the block's end is padded
            position += block - position % block
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        payload += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(payload)
            payload = b""
            yield record


def _history(records: list[Any]) -> list[dict[str, Any]]:
    return [
        {
            ".".join(item.nested_key) or item.key: json.loads(item.value_json)
            for item in record.history.item
        }
        for record in records
        if record.WhichOneof("record_type") == "history"
    ]


@pytest.fixture(scope="module")
def offline_runs(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Path, list[list[Any]]]]:
    """Yield the folder of a run that was resumed once, and both its W&B logs."""
    import wandb

    run_dir = tmp_path_factory.mktemp("runs") / "catch__1__now"
    config = TrainConfig.model_validate(
        {"exp_name": "catch", "seed": 3, "environment": {"games": ["Catch-v0"]}}
    )
    save_rule(run_dir / "rule", {}, new_manifest(_actor_critic(), meta_steps=4))

    def run(steps: range, resume: Position | None) -> list[Any]:
        before = set(run_dir.glob("wandb/offline-run-*/*.wandb"))
        with Tracker(
            run_dir,
            TrackingConfig(project="tests"),
            config.model_dump(mode="json"),
            LABELS,
            resume=resume,
        ) as tracker:
            for step in steps:
                tracker.log(
                    {
                        "meta/loss": step / 2,
                        "agents/Catch-v0/episodic_return": -1.0 + step,
                        "charts/SPS": float("nan"),
                    },
                    global_step=100 * step,
                    meta_step=step,
                )
            tracker.log({"eval/iqm": 0.25}, meta_step=steps[-1])
            tracker.log_artifact(run_dir / "rule")
        (log,) = set(run_dir.glob("wandb/offline-run-*/*.wandb")) - before
        return [*_records(log)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_ERROR_REPORTING", "false")
        first = run(range(1, 4), None)
        time.sleep(1.1)  # W&B names folders by the second
        second = run(range(3, 5), Position(global_step=200, meta_step=2))
        yield run_dir, [first, second]
        wandb.teardown()  # ends W&B's service process


def _actor_critic() -> Any:
    from metarl.config import ActorCriticConfig

    return ActorCriticConfig()


def test_offline_run_holds_every_row(
    offline_runs: tuple[Path, list[list[Any]]],
) -> None:
    run_dir, (first, second) = offline_runs
    rows = [
        {key: value for key, value in row.items() if not key.startswith("_")}
        for row in _history(first) + _history(second)
    ]

    def row(step: int) -> dict[str, float]:
        return {
            "global_step": 100 * step,
            "meta_step": step,
            "meta/loss": step / 2,
            "agents/Catch-v0/episodic_return": step - 1,
        }

    expected = [*map(row, (1, 2, 3)), {"meta_step": 3, "eval/iqm": 0.25}]
    expected += [*map(row, (3, 4)), {"meta_step": 4, "eval/iqm": 0.25}]
    assert rows == expected
    assert [r.get("meta_step") for r in _rows(run_dir)] == [1, 2, 3, 4, 4]


def test_offline_run_says_which_run_it_is(
    offline_runs: tuple[Path, list[list[Any]]],
) -> None:
    run_dir, logs = offline_runs
    runs = [
        next(r.run for r in log if r.WhichOneof("record_type") == "run") for log in logs
    ]
    run_id = (run_dir / "wandb_id").read_text().strip()
    assert [run.run_id for run in runs] == [run_id, run_id]  # resumed: the same run
    for run in runs:
        assert (run.project, run.run_group, run.display_name, run.job_type) == (
            "tests",
            "catch",
            "catch__1__now",
            "train",
        )
        assert list(run.tags) == ["abc123"]
        config = {item.key: json.loads(item.value_json) for item in run.config.update}
        flat = {key: config[key] for key in ("env_id", "exp_name", "seed")}
        assert flat == {"env_id": "Catch-v0", "exp_name": "catch", "seed": 3}
        assert config["meta"]["optimizer"]["learning_rate"] == 1e-3


def test_offline_run_gives_every_family_its_axis(
    offline_runs: tuple[Path, list[list[Any]]],
) -> None:
    for log in offline_runs[1]:
        metrics = [r.metric for r in log if r.WhichOneof("record_type") == "metric"]
        assert {m.glob_name: m.step_metric for m in metrics if m.glob_name} == {
            "meta/*": "meta_step",
            "eval/*": "meta_step",
            "agents/*": "global_step",
            "charts/*": "global_step",
        }


def test_offline_run_has_the_rule_as_artifact(
    offline_runs: tuple[Path, list[list[Any]]],
) -> None:
    for log in offline_runs[1]:
        (artifact,) = [
            r.artifact for r in log if r.WhichOneof("record_type") == "artifact"
        ]
        assert (artifact.type, artifact.name) == ("rule", "catch__1__now-rule")
        files = {entry.path for entry in artifact.manifest.contents}
        assert files == {"rule.npz", "manifest.json"}
        assert json.loads(artifact.metadata)["meta_steps"] == 4


# --- Console ----------------------------------------------------------------------


def _plain_console() -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, width=40), file


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (45.4, "45s"), (200, "3m20s"), (3725, "1h02m"), (183_600, "2d03h")],
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (12_345_678, "12345678"),
        (1234.5, "1234"),
        (0.123456, "0.1235"),
        (-1e-7, "-1e-07"),
        (float("nan"), "nan"),
        ("a b", "a_b"),
    ],
)
def test_values_hold_no_blanks(value: float | str | None, text: str) -> None:
    assert format_value(value) == text


def test_progress_prints_one_line_per_interval() -> None:
    console, file = _plain_console()
    with Progress(
        4, "meta-training", "meta_step", interval_s=3600, console=console
    ) as progress:
        for step in range(1, 5):
            progress.update(
                step,
                {
                    "global_step": 1000 * step,
                    "frames": 4000 * step,
                    "episodic_return": None if step == 1 else 0.5,
                    "SPS": 1234.4,
                },
            )
    first, last = file.getvalue().splitlines()  # the first and the last step
    assert first == (
        "meta_step=1 global_step=1000 frames=4000 episodic_return=- SPS=1234 eta=-"
    )
    assert last == (
        "meta_step=4 global_step=4000 frames=16000 episodic_return=0.5 SPS=1234 eta=0s"
    )


def test_progress_estimates_from_the_steps_after_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    console, file = _plain_console()
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    progress = Progress(
        15, "meta-training", "meta_step", done=10, interval_s=1, console=console
    )
    clock[0] += 500  # compiling
    progress.update(11)
    for step in (12, 13):
        clock[0] += 30
        progress.update(step)
    etas = re.findall(r"eta=(\S+)", file.getvalue())
    assert etas == ["-", "1m30s", "1m00s"]


def test_progress_is_never_silent_for_long() -> None:
    console, file = _plain_console()
    with Progress(3, "x", "meta_step", interval_s=0.05, console=console) as progress:
        progress.update(1)
        time.sleep(0.4)
    lines = file.getvalue().splitlines()
    assert len(lines) >= 3
    assert set(lines[1:]) == {"meta_step=1 of 3, the next is being worked on"}


def test_progress_draws_on_a_terminal() -> None:
    file = io.StringIO()
    console = Console(
        file=file, force_terminal=True, width=80, _environ={"TERM": "xterm"}
    )
    with Progress(10, "meta-training", "meta_step", console=console) as progress:
        progress.update(4, {"episodic_return": 0.5})
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue())
    assert "meta-training" in text
    assert "4/10" in text
    assert re.search(r"episodic_return +0\.5", text)
    assert "meta_step=4" not in text


def test_heartbeat_speaks_until_the_block_ends() -> None:
    console, file = _plain_console()
    with heartbeat("compiling the meta-step", interval_s=0.05, console=console):
        time.sleep(0.3)
    lines = file.getvalue().splitlines()
    assert lines[0] == "compiling the meta-step ..."
    assert len(lines) >= 4
    assert set(lines[1:-1]) == {"compiling the meta-step ... 0s"}
    # A machine that does other work sleeps longer.
    said = re.fullmatch(r"compiling the meta-step: done in (\d+\.\d)s", lines[-1])
    assert said is not None
    assert 0.3 <= float(said[1]) < 5
    time.sleep(0.1)
    assert file.getvalue().splitlines() == lines


def test_heartbeat_does_not_call_a_failure_done() -> None:
    console, file = _plain_console()
    with pytest.raises(RuntimeError), heartbeat("compiling", console=console):
        raise RuntimeError
    assert file.getvalue().splitlines() == ["compiling ..."]


# --- Documentation ----------------------------------------------------------------


def _documented() -> set[str]:
    text = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text()
    rows = re.findall(r"^\| `([^|]+)` \|", text, flags=re.MULTILINE)
    assert rows
    return {key for row in rows for key in re.split(r"`, `", row)}


def test_every_key_of_the_standard_is_documented() -> None:
    assert _documented() >= {
        *(f"charts/{k}" for k in ("episodic_return", "episodic_length", "SPS")),
        "charts/learning_rate",
        "agents/{game}/episodic_return",
        "agents/{game}/human_normalized_score",
        *(f"stats/{k}_time" for k in ("env", "inference", "transfer", "learn", "meta")),
        "stats/device_memory_peak_bytes",
        *(f"losses/{k}" for k in ("policy_loss", "value_loss", "entropy", "approx_kl")),
        *(f"meta/{k}" for k in ("loss", "pg_loss", "reg_loss", "grad_norm")),
        *(f"meta/{k}" for k in ("update_norm", "skipped")),
        *(f"meta/rule_entropy_{k}" for k in ("y", "z")),
        "eval/{game}/human_normalized_score",
        *(f"eval/{k}" for k in ("iqm", "iqm_lo", "iqm_hi")),
        "videos/{game}",
    }
