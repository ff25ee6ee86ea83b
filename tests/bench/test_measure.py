"""Seconds and bytes of a prepared case, by a clock that the tests turn."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from metarl.bench import measure
from metarl.bench.measure import Compiled, Subject
from metarl.config import BenchOptions


class Clock:
    """Stands still but for `work`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.calls = 0.0, 0
        monkeypatch.setattr(measure.time, "perf_counter", lambda: self.now)

    def work(self, *seconds: float):
        """Return a call that takes the seconds given, the last of them ever after."""

        def call() -> None:
            self.now += seconds[min(self.calls, len(seconds) - 1)]
            self.calls += 1

        return call


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_the_record_has_the_promised_keys_first(clock: Clock) -> None:
    subject = Subject(
        clock.work(100.0, 50.0, 2.0),
        env_steps=8,
        steps=4,
        compiled=Compiled(trace_s=3.0, xla_s=5.0),
        facts={"agents": 2},
    )
    record = measure.measure("act", subject, BenchOptions(repeats=5))
    assert list(record)[:7] == [
        "case",
        "step_median_s",
        "step_p10_s",
        "step_p90_s",
        "compile_s",
        "env_steps_per_s",
        "peak_rss_bytes",
    ]
    times = [record[f"step_{key}_s"] for key in ("p10", "median", "p90")]
    assert (record["case"], times) == ("act", [0.5, 0.5, 0.5])  # warm-up left out
    assert record["env_steps_per_s"] == 8 / 0.5
    split = (record["compile_s"], record["trace_s"], record["xla_s"])
    assert split == (8.0, 3.0, 5.0)
    assert (record["repeats"], record["agents"], record["backend"]) == (5, 2, "cpu")
    assert all(isinstance(v, int | float | str | bool) for v in record.values())


def test_quantiles_are_of_steps(clock: Clock) -> None:
    times = [1.0, 1.0, *np.arange(11.0)]
    subject = Subject(clock.work(*times), env_steps=1, steps=2, compiles=False)
    record = measure.measure("env", subject, BenchOptions(repeats=11))
    assert [record[f"step_{key}_s"] for key in ("p10", "median", "p90")] == [
        0.5,
        2.5,
        4.5,
    ]
    assert "backend" not in record
    assert record["compile_s"] == 0.0


def test_without_a_program_to_compile_beforehand_the_first_call_tells(
    clock: Clock,
) -> None:
    subject = Subject(clock.work(7.0, 2.0), env_steps=1)
    record = measure.measure("act", subject, BenchOptions(repeats=3))
    assert record["compile_s"] == 5.0
    assert "trace_s" not in record


@pytest.mark.parametrize(
    ("seconds_each", "repeats"),
    [
        (0.1, 100),  # until the ten seconds are over
        (4.0, 10),  # ten, though the ten seconds are over
        (25.0, 3),  # fewer, where ten would take all too long
        (8.0, 8),
    ],
)
def test_repeats_follow_from_the_budget(
    clock: Clock, seconds_each: float, repeats: int
) -> None:
    subject = Subject(clock.work(seconds_each), env_steps=1, compiles=False)
    record = measure.measure("env", subject, BenchOptions(seconds=10))
    assert record["repeats"] == pytest.approx(repeats, abs=1)


def test_peak_memory_is_that_of_the_process_alone() -> None:
    """A child begins as a copy of its parent, whose memory must not count."""
    held = np.ones(50_000_000)  # 400 MB
    code = (
        "from metarl.bench.measure import peak_rss_bytes as peak\n"
        "before = peak(); held = bytearray(b'1') * 200_000_000; print(before, peak())"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert 10e6 < before < held.nbytes / 2
    assert 190e6 < after - before < 300e6
