"""Whether and how W&B is used, and what happens where it fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tracked_run import LABELS, logged_rows

from metarl import tracking
from metarl.config import TrackingConfig, TrainConfig
from metarl.tracking import Tracker, flat_config, is_logged_in, wandb_mode


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
    assert [row["meta/loss"] for row in logged_rows(tmp_path)] == [1.0, 2.0]
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
