"""A folder into which several processes write, perhaps on several machines.

Host code and a leaf. Each cell is a file of its own that appears whole and once. What
is made of all of them, added to one, or added to line by line, needs a lock, which goes
with the process that holds it, however that ends. Where the file system has none, work
goes on without: the tables are then right again after the next cells.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from metarl.errors import UserError

_BUSY = (errno.EACCES, errno.EAGAIN)


def require_writable(folder: Path, *, field: str) -> None:
    """Make a folder and refuse one that cannot be written to, before any work.

    Args:
      folder: that results will go to.
      field: that names it, for the message.

    Raises:
      UserError: it cannot be made, or no file in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{field}: {folder}: {error.strerror}") from None


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of the file ``path``, made where missing; wait for it."""
    with _open(path) as descriptor:
        with contextlib.suppress(OSError):  # no locks here
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Try to hold the lock of the file ``path``; yield False where another has it."""
    with _open(path) as descriptor:
        is_ours = True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            is_ours = error.errno not in _BUSY
        yield is_ours


@contextlib.contextmanager
def _open(path: Path) -> Iterator[int]:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)  # and with it the lock
