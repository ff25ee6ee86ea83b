"""Time what was prepared, and describe it as one flat record.

Host code, in the process of the case: clocks, and the process's own memory. Imports
JAX only where the case has a program.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from metarl.config import BenchConfig, BenchOptions

Value = float | int | str | bool | None
Record = dict[str, Value]
"""What `--json` prints of a case: flat."""

REPEATS = 10
FEWEST_REPEATS = 3
PATIENCE = 6
"""How many times `bench.seconds` the ten repeats may take before three will do."""


@dataclasses.dataclass(frozen=True)
class Compiled:
    """How long a program took to become one.

    Attributes:
      trace_s: Python: tracing and lowering.
      xla_s: compiling what that led to.
    """

    trace_s: float
    xla_s: float


@dataclasses.dataclass(frozen=True)
class Subject:
    """A case that is ready to be timed.

    Attributes:
      call: does the work and waits for its end.
      steps: how many steps one call does.
      env_steps: environment steps that one step makes or learns from.
      compiled: how long its program took; None: the first call compiles it, and is
        timed for that, if ``compiles``.
      compiles: whether there is a program.
      facts: what makes the figures mean something.
    """

    call: Callable[[], object]
    env_steps: int
    steps: int = 1
    compiled: Compiled | None = None
    compiles: bool = True
    facts: Mapping[str, Value] = dataclasses.field(default_factory=dict)


Prepare = Callable[[BenchConfig], contextlib.AbstractContextManager[Subject]]
"""Makes a case ready, and frees what it holds."""


def measure(
    name: str,
    subject: Subject,
    options: BenchOptions,
    say: Callable[[str], None] = lambda _: None,
) -> Record:
    """Return the record of one case.

    Args:
      name: of the case.
      subject: prepared.
      options: how long to go on.
      say: is told what goes on.
    """
    if subject.compiled is not None:
        trace_s, xla_s = subject.compiled.trace_s, subject.compiled.xla_s
        say(f"tracing took {trace_s:.1f}s, compiling {xla_s:.1f}s")
    first = _timed(subject.call)
    say(f"the first call took {first:.3g}s; timing")
    # A second one apart: what the first leaves behind is allocated and paged in.
    _timed(subject.call)
    seconds = np.array(list(_timings(subject.call, options)))
    low, median, high = np.quantile(seconds / subject.steps, (0.1, 0.5, 0.9))
    compile_s, split = _compile_times(subject, first, float(np.median(seconds)))
    return {
        "case": name,
        "step_median_s": float(median),
        "step_p10_s": float(low),
        "step_p90_s": float(high),
        "compile_s": compile_s,
        "env_steps_per_s": subject.env_steps / float(median),
        "peak_rss_bytes": peak_rss_bytes(),
        **(_device_memory() if subject.compiles else {}),
        **split,
        "repeats": len(seconds),
        "steps_per_repeat": subject.steps,
        "env_steps_per_step": subject.env_steps,
        "cpus": len(os.sched_getaffinity(0)),
        **(_backend() if subject.compiles else {}),
        **subject.facts,
    }


def _compile_times(
    subject: Subject, first: float, median: float
) -> tuple[float, Record]:
    if subject.compiled is not None:
        trace_s, xla_s = subject.compiled.trace_s, subject.compiled.xla_s
        return trace_s + xla_s, {"trace_s": trace_s, "xla_s": xla_s}
    return (max(first - median, 0.0) if subject.compiles else 0.0), {}


def _timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _timings(call: Callable[[], object], options: BenchOptions) -> Iterator[float]:
    """Yield the seconds of call after call, until there are enough."""
    total, count = 0.0, 0
    while not _enough(count, total, options):
        seconds = _timed(call)
        yield seconds
        total, count = total + seconds, count + 1


def _enough(count: int, total: float, options: BenchOptions) -> bool:
    if options.repeats is not None:
        return count >= options.repeats
    if count >= REPEATS:
        return total >= options.seconds
    return count >= FEWEST_REPEATS and total >= PATIENCE * options.seconds


def peak_rss_bytes() -> int:
    """Return the most memory that this process has held at once.

    From the kernel's counter of this program where there is one: that of `getrusage`
    starts at what the parent held, since a new process begins as a copy of it.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _device_memory() -> Record:
    import jax

    stats = jax.local_devices()[0].memory_stats()
    if not stats or "peak_bytes_in_use" not in stats:
        return {}
    return {"device_memory_bytes": int(stats["peak_bytes_in_use"])}


def _backend() -> Record:
    import jax

    device = jax.local_devices()[0]
    return {
        "backend": device.platform,
        "device": device.device_kind,
        "devices": jax.local_device_count(),
        "jax": jax.__version__,
    }
