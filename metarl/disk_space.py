"""A full disk: told in one line, with what was kept and how to go on. Host code."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

_FULL = (errno.ENOSPC, errno.EDQUOT)


class DiskFullError(Exception):
    """There is no space left; one line says what was kept, and how to go on."""


@contextlib.contextmanager
def told_if_full(kept: str) -> Iterator[None]:
    """Turn a failure for lack of space into one line.

    Args:
      kept: what there is all the same, and how to go on.

    Raises:
      DiskFullError: the block failed because a disk is full.
    """
    try:
        yield
    except DiskFullError:
        raise  # told already, by who knows more
    except Exception as error:  # writers have errors of their own, as Orbax has
        full = _full(error)
        if full is None:
            raise
        raise DiskFullError(f"{full}; {kept}") from error


def _full(error: BaseException) -> str | None:
    """Return a few words on the error if it is one of a full disk, or is due to one."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if isinstance(cause, OSError) and cause.errno in _FULL:
            where = f": {cause.filename}" if cause.filename else ""
            return f"{cause.strerror or 'No space left on device'}{where}"
        # TensorStore's, which Orbax writes with: a ValueError that quotes the system's.
        if any(f"os_error_code='{code}'" in str(cause) for code in _FULL):
            return "No space left on device"
        cause = cause.__cause__ or cause.__context__
    return None
