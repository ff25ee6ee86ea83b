"""Measure a case in a fresh process, so that what it holds and compiles is its own.

Host code; must not import jax, whose threads and memory would stand beside the case.
"""

from __future__ import annotations

import json
import subprocess
import sys

from metarl.bench.measure import Record
from metarl.config import BenchConfig
from metarl.errors import UserError


class CaseFailed(Exception):
    """The process of a case ended without a record."""


def measure_apart(name: str, config: BenchConfig) -> Record:
    """Return the record of one case, whose process says on stderr what it does.

    Raises:
      UserError: the case cannot be made of this configuration.
      CaseFailed: it failed, as one that takes too much memory does.
    """
    job = {"case": name, "config": config.model_dump(mode="json")}
    with subprocess.Popen(
        [sys.executable, "-m", "metarl.bench.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # Ctrl-C reaches this process alone, which then ends the other.
        start_new_session=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
            # Not closed before it ends: see `worker.py`.
            answer = process.stdout.read()
            code = process.wait()
        finally:
            process.kill()
    if code != 0 or not answer:
        raise CaseFailed(f"{name}: {_reason(code)}")
    outcome = json.loads(answer)
    if "mistake" in outcome:
        raise UserError(outcome["mistake"])
    record: Record = outcome["record"]
    return record


def _reason(code: int) -> str:
    if code == -9:
        return "its process was killed; was there enough memory?"
    if code < 0:
        return f"its process ended by signal {-code}"
    return f"its process failed with exit code {code}"
