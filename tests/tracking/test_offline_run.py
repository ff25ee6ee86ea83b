"""W&B runs that were written offline, read back."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tracked_run import LABELS, logged_rows

from metarl.config import TrackingConfig, TrainConfig
from metarl.rule_files import new_manifest, save_rule
from metarl.tracking import Position, Tracker


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
    assert [r.get("meta_step") for r in logged_rows(run_dir)] == [1, 2, 3, 4, 4]


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
