"""What a person sees while something runs: a bar and a table, or one line per interval.

A host module and a leaf. On a terminal rich draws; elsewhere (SLURM, CI, a pipe)
every line is `key=value` pairs that grep finds. Nothing is silent for long: while no
line is due, a thread says that work goes on.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Self

import rich.progress
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

CONSOLE = Console()
INTERVAL_S = 10.0
"""Seconds between lines, where a caller does not say."""

Value = float | int | str | None


def say(line: str, *, console: Console = CONSOLE) -> None:
    """Print one line as it is, above a bar that may be on the terminal."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def format_duration(seconds: float) -> str:
    """Return ``seconds`` as people write them: 45s, 3m20s, 1h02m, 2d03h."""
    whole = max(0, round(seconds))
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if days:
        return f"{days}d{hours % 24:02d}h"
    if hours:
        return f"{hours}h{minutes % 60:02d}m"
    if minutes:
        return f"{minutes}m{whole % 60:02d}s"
    return f"{whole}s"


def format_value(value: Value) -> str:
    """Return ``value`` without blanks: whole numbers whole, others to 4 digits."""
    if value is None:
        return "-"
    if isinstance(value, str):
        return value.replace(" ", "_") or "-"
    if isinstance(value, int):
        return str(value)
    magnitude = abs(value)
    return f"{value:.0f}" if 1e3 <= magnitude < 1e15 else f"{value:.4g}"


@contextlib.contextmanager
def heartbeat(
    message: str, *, interval_s: float = INTERVAL_S, console: Console = CONSOLE
) -> Iterator[None]:
    """Say that ``message`` goes on until the block ends, and then how long it took.

    Args:
      message: what goes on, like "compiling the meta-step".
      interval_s: seconds between lines.
      console: where to.
    """
    start = time.monotonic()
    say(f"{message} ...", console=console)
    with _Every(
        interval_s,
        lambda: say(
            f"{message} ... {format_duration(time.monotonic() - start)}",
            console=console,
        ),
    ):
        yield
    say(f"{message}: done in {time.monotonic() - start:.1f}s", console=console)


class Progress:
    """How far a loop is, and its newest numbers.

    Use as a context manager; `update` after every step, `total` steps in all.
    """

    def __init__(
        self,
        total: int,
        description: str,
        unit: str,
        *,
        done: int = 0,
        interval_s: float = INTERVAL_S,
        console: Console = CONSOLE,
    ) -> None:
        """Describe the loop.

        Args:
          total: steps at the end.
          description: beside the bar.
          unit: key of the step in each line, like "meta_step".
          done: steps already done (a resumed run).
          interval_s: seconds between lines where there is no terminal.
          console: where to.
        """
        self._total, self._unit, self._interval_s = total, unit, interval_s
        self._console = console
        self._done = done
        self._timed_from: tuple[float, int] | None = None  # first update: compiled
        self._last_line = time.monotonic()
        self._lock = threading.Lock()
        self._values: dict[str, Value] = {}
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TimeElapsedColumn(),
            rich.progress.TextColumn("eta {task.fields[eta]}"),
            console=console,
        )
        self._task = self._bar.add_task(
            description, total=total, completed=done, eta="-"
        )
        self._live: Live | None = None
        self._waiting: _Every | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live = Live(
                get_renderable=self._render, console=self._console, refresh_per_second=4
            )
            self._live.__enter__()
        else:
            self._last_line = time.monotonic()
            self._waiting = _Every(self._interval_s / 2, self._fill_silence)
            self._waiting.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._waiting is not None:
            self._waiting.__exit__(kind, error, trace)
        if self._live is not None:
            self._live.__exit__(kind, error, trace)

    def update(self, done: int, values: Mapping[str, Value] | None = None) -> None:
        """Show that ``done`` steps are done, and ``values`` beside.

        Args:
          done: steps so far, those of before a resume included.
          values: by name, in the order they are shown; None is shown as "-".
        """
        now = time.monotonic()
        with self._lock:
            is_first = self._timed_from is None
            if is_first:
                self._timed_from = now, done
            self._done, self._values = done, dict(values or {})
            eta = self._eta(now)
            is_due = now - self._last_line >= self._interval_s
            if self._live is None and (is_first or is_due or done >= self._total):
                pairs = {self._unit: done, **self._values, "eta": eta}
                self._say(" ".join(f"{k}={format_value(v)}" for k, v in pairs.items()))
        self._bar.update(self._task, completed=done, eta=eta)

    @contextlib.contextmanager
    def suspended(self) -> Iterator[None]:
        """Leave the terminal to another loop while the block goes on."""
        self.__exit__(None, None, None)
        try:
            yield
        finally:
            self.__enter__()

    def _eta(self, now: float) -> str:
        assert self._timed_from is not None
        since, first = self._timed_from
        if self._done >= self._total:
            return "0s"
        if self._done <= first:
            return "-"
        per_step = (now - since) / (self._done - first)
        return format_duration(per_step * (self._total - self._done))

    def _fill_silence(self) -> None:
        """Say that work goes on where a step takes longer than two intervals."""
        with self._lock:
            silent = time.monotonic() - self._last_line
            if silent >= 2 * self._interval_s:
                self._say(
                    f"{self._unit}={self._done} of {self._total}, the next is being "
                    "worked on"
                )

    def _say(self, line: str) -> None:
        self._last_line = time.monotonic()
        say(line, console=self._console)

    def _render(self) -> Group:
        table = Table.grid(padding=(0, 2))
        for name, value in self._values.items():
            table.add_row(name, format_value(value))
        return Group(self._bar, table)


class _Every:
    """Calls a function every so often, on a thread, until the block ends."""

    def __init__(self, interval_s: float, call: Callable[[], None]) -> None:
        self._interval_s, self._call = interval_s, call
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            self._call()
