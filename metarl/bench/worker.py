"""The process of one case: `python -m metarl.bench.worker RESULT`, started by `run.py`.

Reads the job as one line of JSON, and writes the case's record, or the user's mistake,
into the file RESULT. The parent holds the other end of the standard input: when it is
gone, so is this process.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

from metarl import config_loader
from metarl.bench.measure import Prepare, Record, measure
from metarl.bench.plan import CASES
from metarl.config import BenchConfig
from metarl.console import say
from metarl.errors import UserError

CACHE_HIT = "/jax/compilation_cache/cache_hits"


def main(result: Path) -> int:
    """Measure the case that the standard input names; return the exit code."""
    job: dict[str, Any] = json.loads(sys.stdin.readline())
    threading.Thread(target=_leave_with_the_parent, daemon=True).start()
    try:
        config = config_loader.validate(BenchConfig, job["config"])
        outcome: dict[str, Any] = {"record": run(job["case"], config)}
    except UserError as error:
        outcome = {"mistake": str(error)}
    except Exception:
        traceback.print_exc()
        return 1
    result.write_text(json.dumps(outcome))
    return 0


def run(name: str, config: BenchConfig) -> Record:
    """Return the record of one case, measured in this process."""
    case = CASES[name]
    hits: list[str] = []
    if case.uses_jax:
        _start_jax(config, hits)
    module = importlib.import_module(f"metarl.bench.{case.module}")
    prepare: Prepare = module.CASES[name]
    with prepare(config) as subject:
        record = measure(name, subject, config.bench, say=_say)
    if case.uses_jax:
        record["warm_cache"] = config.runtime.compilation_cache
        record["programs_from_cache"] = len(hits)
    return record


def _start_jax(config: BenchConfig, hits: list[str]) -> None:
    """Apply the runtime section; ``hits`` grows with programs read from the cache."""
    import jax

    from metarl.runtime import configure

    # Off means off, also where the environment names a cache for JAX.
    jax.config.update("jax_enable_compilation_cache", config.runtime.compilation_cache)

    def listen(event: str, **_: object) -> None:
        if event == CACHE_HIT:
            hits.append(event)

    jax.monitoring.register_event_listener(listen)
    configure(config.runtime)


def _say(line: str) -> None:
    say(f"  {line}")


def _leave_with_the_parent() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
