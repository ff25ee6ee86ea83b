"""Measure a case in a fresh process, so that what it holds and compiles is its own.

Host code; must not import jax, whose threads and memory would stand beside the case.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from metarl.bench.measure import Record
from metarl.config import BenchConfig
from metarl.errors import UserError

STDERR = 2


class CaseFailed(Exception):
    """The process of a case ended without a record."""


def measure_apart(name: str, config: BenchConfig) -> Record:
    """Return the record of one case, whose process says on stderr what it does.

    Raises:
      UserError: the case cannot be made of this configuration.
      CaseFailed: it failed, as one that takes too much memory does.
    """
    job = {"case": name, "config": config.model_dump(mode="json")}
    with tempfile.TemporaryDirectory(prefix="metarl-bench-") as folder:
        result = Path(folder) / "result.json"
        process = subprocess.Popen(
            [sys.executable, "-m", "metarl.bench.worker", str(result)],
            stdin=subprocess.PIPE,
            stdout=STDERR,
            text=True,
            # Ctrl-C reaches this process alone, which then ends the other.
            start_new_session=True,
        )
        try:
            assert process.stdin is not None
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
            # Not closed before it ends: see `worker.py`.
            code = process.wait()
        finally:
            process.kill()
            process.communicate()
        if code != 0 or not result.is_file():
            raise CaseFailed(f"{name}: {_reason(code)}")
        outcome = json.loads(result.read_text())
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
