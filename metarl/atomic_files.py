"""Files that appear whole or not at all, whoever reads or kills in the meantime.

Host code and a leaf: the standard library alone.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


def write_file(path: Path, data: bytes) -> None:
    """Write one file so that no reader sees a part of it."""
    with _written_beside(path, data) as new:
        new.replace(path)


def write_new_file(path: Path, data: bytes) -> bool:
    """Write one file like `write_file`, but leave one that is there already.

    Where the file system has no hard links, callers need a lock of their own.

    Returns:
      Whether it was written.
    """
    with _written_beside(path, data) as new:
        try:
            os.link(new, path)
        except FileExistsError:
            return False
        except OSError:
            if path.exists():
                return False
            new.replace(path)
    return True


@contextlib.contextmanager
def _written_beside(path: Path, data: bytes) -> Iterator[Path]:
    """Write a file of another name, which is gone after the block."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Process ids of several machines on one file system may be equal.
    new = path.with_name(f".{path.name}.new-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        write_synced(new, data)
        yield new
    finally:  # there still after a full disk, too
        new.unlink(missing_ok=True)


def write_synced(path: Path, data: bytes) -> None:
    """Write a file in place, and return when it is on the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
