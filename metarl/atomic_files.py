"""Files that appear whole or not at all, whoever reads or kills in the meantime.

Host code and a leaf: the standard library alone.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def write_file(path: Path, data: bytes) -> None:
    """Write one file so that no reader sees a part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Process ids of several machines on one file system may be equal.
    new = path.with_name(f".{path.name}.new-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        write_synced(new, data)
        new.replace(path)
    except OSError:  # such as a full disk
        new.unlink(missing_ok=True)
        raise


def write_synced(path: Path, data: bytes) -> None:
    """Write a file in place, and return when it is on the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
