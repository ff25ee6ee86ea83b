"""Being told to stop by SIGTERM or SIGUSR1, as SLURM does before a kill. Host code."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Note the signals while the block runs; yield whether one has come."""
    received: list[int] = []
    before = [
        signal.signal(s, lambda number, _: received.append(number)) for s in SIGNALS
    ]
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in zip(SIGNALS, before, strict=True):
            signal.signal(number, handler)
