"""A rule on disk is replaced as a whole or not at all."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from small_rules import SMALL, save_small, small_params

from metarl.errors import UserError
from metarl.rule_files import folder as rule_folder
from metarl.rule_files import load_rule, new_manifest, save_rule


def _pair(folder: Path) -> tuple[bool, int]:
    """Return whether the two files of a folder belong together, and their meta-step."""
    data, text = rule_folder.read(folder)
    assert text is not None
    manifest = json.loads(text)
    return rule_folder.sha256(data) == manifest["sha256"], manifest["meta_steps"]


def _cannot_exchange(*_: Path) -> bool:
    return False


@pytest.mark.parametrize("exchange", [True, False])
def test_readers_never_see_half_a_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    if not exchange:
        monkeypatch.setattr(rule_folder, "_exchange", _cannot_exchange)
    folder = tmp_path / "rule"
    manifests = [new_manifest(SMALL, meta_steps=step) for step in range(2)]
    params = [small_params(seed) for seed in range(2)]
    save_rule(folder, params[0], manifests[0])
    stop, seen, failures = threading.Event(), set(), []

    def read() -> None:
        while not stop.is_set():
            try:
                matches, step = _pair(folder)
            except Exception as error:
                failures.append(error)
                return
            seen.add(step)
            if not matches:
                failures.append(AssertionError("half a rule"))

    reader = threading.Thread(target=read)
    reader.start()
    written = 0
    end = time.monotonic() + 1.0
    while time.monotonic() < end or written < 20:
        written += 1
        save_rule(folder, params[written % 2], manifests[written % 2])
    stop.set()
    reader.join()
    assert failures == []
    assert seen == {0, 1}
    assert [path.name for path in tmp_path.iterdir()] == ["rule"]


_WRITE_FOR_EVER = """
import itertools, json, sys
from pathlib import Path
import numpy as np
from metarl.rule_files import folder
for step in itertools.count():
    data = folder.pack({"w": np.full(100_000, step)})
    manifest = {"sha256": folder.sha256(data), "meta_steps": step}
    folder.write(Path(sys.argv[1]), data, json.dumps(manifest))
    print(step, flush=True)
"""


def test_a_kill_at_any_moment_leaves_a_whole_rule(tmp_path: Path) -> None:
    folder, delays = tmp_path / "rule", random.Random(0)
    for _ in range(3):
        writer = subprocess.Popen(
            [sys.executable, "-c", _WRITE_FOR_EVER, str(folder)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
        )
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(delays.uniform(0.02, 0.1))
        writer.send_signal(signal.SIGKILL)
        rest = writer.stdout.read().split()
        writer.wait()
        writer.stdout.close()
        confirmed = int(rest[-1]) if rest else 0
        matches, step = _pair(folder)
        assert matches
        assert step in (confirmed, confirmed + 1)
    save_small(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["rule"]  # what was left


def test_a_kill_between_the_two_renames_is_survived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the file system cannot exchange, the old rule waits under another name."""
    folder = tmp_path / "rule"
    save_small(folder, meta_steps=1)

    def rename(self: Path, target: Path) -> Path:
        if target == folder:
            raise KeyboardInterrupt  # stands for the kill
        os.rename(self, target)
        return target

    with monkeypatch.context() as patch:
        patch.setattr(rule_folder, "_exchange", _cannot_exchange)
        patch.setattr(Path, "rename", rename)
        with pytest.raises(KeyboardInterrupt):
            save_small(folder, meta_steps=2)
    assert not folder.exists()
    assert load_rule(folder).manifest.meta_steps == 1
    save_small(folder, meta_steps=3)
    assert load_rule(folder).manifest.meta_steps == 3
    assert [path.name for path in tmp_path.iterdir()] == ["rule"]


def test_only_a_rule_is_replaced(tmp_path: Path) -> None:
    save_small(tmp_path / "mine")
    (tmp_path / "mine" / "README.md").write_text("model card")
    save_small(tmp_path / "mine", seed=1)
    assert (tmp_path / "mine" / "README.md").read_text() == "model card"
    (tmp_path / "mine" / "thesis.tex").write_text("three years")
    with pytest.raises(UserError, match=r"'thesis\.tex'"):
        save_small(tmp_path / "mine", seed=2)
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "three years"
    with pytest.raises(UserError, match="is a file"):
        save_small(tmp_path / "mine" / "thesis.tex")


def test_a_linked_folder_stays_linked(tmp_path: Path) -> None:
    save_small(tmp_path / "real")
    (tmp_path / "link").symlink_to("real")
    save_small(tmp_path / "link", meta_steps=5)
    assert (tmp_path / "link").is_symlink()
    assert load_rule(tmp_path / "real").manifest.meta_steps == 5
