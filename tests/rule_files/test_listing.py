"""What `metarl rules list` and `show` print."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_rules import save_small, small_params

from metarl.config import EnvironmentConfig
from metarl.errors import UserError
from metarl.rule_files import list_rules, show_rule


def _cells(table: str) -> dict[str, list[str]]:
    rows = [line.split() for line in table.splitlines()]
    return {row[0]: row[1:] for row in rows if row}


def test_list_names_every_rule_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_small(Path("runs/first/rule"), games_seen=["Pong-v5"], meta_steps=1234)
    save_small(Path("runs/second"))
    save_small(Path("runs/broken"))
    Path("runs/broken/manifest.json").unlink()
    save_small(Path("checkpoints/shipped"))
    Path("runs/unrelated").mkdir()
    table = list_rules(["runs", "runs/second"])
    rows = _cells(table)
    size = f"{save_small(Path('size')).num_parameters:,}"
    assert rows["first"] == ["disco", size, "1,234", "1", "runs/first/rule"]
    assert rows["second"] == ["disco", size, "0", "0", "runs/second"]
    assert rows["shipped"][-1] == "checkpoints/shipped"
    assert rows["actor_critic"] == ["actor_critic", "0", "-", "0", "built", "in"]
    assert rows["broken"][-2:] == ["no", "manifest.json"]
    assert table.count("runs/second") == 1
    assert "unrelated" not in table
    with pytest.raises(UserError, match="'nowhere' does not exist"):
        list_rules(["nowhere"])


def test_show_prints_manifest_and_tensors(tmp_path: Path) -> None:
    written = save_small(tmp_path / "mine", games_seen=["Pong-v5"], meta_steps=1234)
    text = show_rule(tmp_path / "mine")
    rows = _cells(text)
    assert rows["meta-steps"] == ["1,234"]
    assert rows["games"] == ["for", "validation", "none"]
    assert "1: Pong-v5" in text
    assert rows["parameters"] == [f"{written.num_parameters:,}"]
    assert rows["sha256"] == [written.sha256]
    assert rows["trajectory/gate/w"][:5] == ["3", "x", "6", "float32", "18"]
    gate = small_params()["trajectory"]["gate"]["w"]  # type: ignore[index]
    assert float(rows["trajectory/gate/w"][5]) == pytest.approx(
        np.sqrt(np.mean(gate**2)), rel=1e-3
    )
    assert "hand-written" in show_rule("policy_gradient")


def test_show_tells_families_of_agents_apart_where_they_differ(tmp_path: Path) -> None:
    environment = EnvironmentConfig().model_dump(mode="json")
    section = {"rollout_length": 16, "num_envs": 4, "environment": environment}
    clipped = {**section, "environment": {**environment, "clip_rewards": True}}
    families = {
        "catch": section,
        "minigrid": {**section, "environment": {**environment, "games": ["x"]}},
        "atari": clipped,
    }
    save_small(tmp_path / "mine", agent={**section, "families": families})
    lines = show_rule(tmp_path / "mine").splitlines()
    assert [line.split("  ")[0] for line in lines if line.startswith("agents")] == [
        "agents",
        "agents (atari)",
    ]
    (first, other) = (line for line in lines if line.startswith("agents"))
    assert first.endswith("  rollout_length=16, num_envs=4")
    assert other.endswith("num_envs=4, environment.clip_rewards=True")
