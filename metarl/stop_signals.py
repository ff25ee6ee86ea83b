"""Being told to stop: by SLURM (SIGTERM, SIGUSR1) or from the keyboard. Host code."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


@contextlib.contextmanager
def stop_signals(
    until: str = "after this meta-step, and saving",
) -> Iterator[Callable[[], bool]]:
    """Note the signals while the block runs; yield whether one has come.

    A second interrupt from the keyboard is one.

    Args:
      until: when the work stops, for the line that answers a signal.
    """
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        if number == signal.SIGINT and received:
            raise KeyboardInterrupt
        received.append(number)
        # Not through the console, whose lock the interrupted code may hold.
        os.write(
            sys.stderr.fileno(),
            f"stopping {until} (interrupt again: at once)\n".encode(),
        )

    before = [signal.signal(number, note) for number in SIGNALS]
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in zip(SIGNALS, before, strict=True):
            signal.signal(number, handler)
