"""Lines on the console: progress, heartbeats, numbers and durations."""

from __future__ import annotations

import io
import re
import time

import pytest
from rich.console import Console

from metarl.console import Progress, format_duration, format_value, heartbeat


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
