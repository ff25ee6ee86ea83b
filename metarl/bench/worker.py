"""The process of one case: `python -m metarl.bench.worker`, started by `run.py`.

Reads the job as one line of JSON, and answers with the case's record, or the user's
mistake, as another; all else that is printed goes to the standard error. The parent
holds the other end of the standard input: when it is gone, so is this process, and
neither leaves a file.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
import traceback
from typing import Any

from metarl import config_loader
from metarl.bench import cache
from metarl.bench.measure import Prepare, Record, measure
from metarl.bench.plan import CASES
from metarl.config import BenchConfig
from metarl.console import say
from metarl.errors import UserError

STDOUT, STDERR = 1, 2


def main() -> int:
    """Measure the case that the standard input names; return the exit code."""
    answer = os.dup(STDOUT)
    os.dup2(STDERR, STDOUT)
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
    with open(answer, "w") as file:
        file.write(json.dumps(outcome))
    return 0


def run(name: str, config: BenchConfig) -> Record:
    """Return the record of one case, measured in this process."""
    case = CASES[name]
    use = cache.start_jax(config) if case.uses_jax else None
    module = importlib.import_module(f"metarl.bench.{case.module}")
    prepare: Prepare = module.CASES[name]
    with prepare(config) as subject:
        record = measure(name, subject, config.bench, say=_say)
    if use is not None:
        record |= {"warm_cache": use.is_warm, "programs_from_cache": use.hits}
    return record


def _say(line: str) -> None:
    say(f"  {line}")


def _leave_with_the_parent() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
