"""A rule's folder on disk: `rule.npz` and `manifest.json`, always of the same rule.

A host module. Knows bytes and arrays, not rules. A folder is written beside its
place and the two are exchanged in one step of the file system; readers hold on to
the folder they opened, not to its name. So a reader sees the rule before or the one
after, whole, and so does whoever comes after a kill at any moment.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import io
import os
import shutil
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from metarl.atomic_files import write_synced
from metarl.errors import UserError

ARRAYS = "rule.npz"
MANIFEST = "manifest.json"
CARD = "README.md"  # stays when its rule is written anew
_ATTEMPTS = 100  # far more than a writer can get ahead of one reader
_AT_FDCWD = -100  # linux/fcntl.h
_RENAME_EXCHANGE = 2  # linux/fs.h


def pack(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Return ``arrays`` as the bytes of an npz file; equal arrays, equal bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in sorted(arrays):
            array = np.asarray(arrays[name], order="C")
            if array.dtype.kind not in "biufc":
                raise ValueError(f"{name}: npz files hold no {array.dtype} arrays")
            # ZipInfo's default date makes the bytes independent of the clock.
            member = zipfile.ZipInfo(f"{name}.npy")
            member.external_attr = 0o644 << 16  # the mode that unzip gives the file
            with archive.open(member, "w") as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
    return buffer.getvalue()


def unpack(data: bytes, *, where: Path) -> dict[str, np.ndarray]:
    """Return the arrays in the bytes of the npz file ``where``."""
    try:
        archive = np.load(io.BytesIO(data), allow_pickle=False)
        if isinstance(archive, np.lib.npyio.NpzFile):  # else the file of one array
            return {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile):
        pass
    raise UserError(f"{where}: not an npz file of arrays")


def sha256(data: bytes) -> str:
    """Return the hash by which manifests name a file."""
    return hashlib.sha256(data).hexdigest()


def write(folder: Path, arrays: bytes, manifest: str) -> None:
    """Put a rule in ``folder``, in place of the one there.

    One process writes to a folder; any number may read it.

    Raises:
      UserError: the folder holds something that is not a rule's.
    """
    files = {ARRAYS: arrays, MANIFEST: manifest.encode()}
    write_whole(folder, files, replaceable=(), carried=(CARD,))


def write_whole(
    folder: Path,
    files: Mapping[str, bytes],
    *,
    replaceable: Collection[str],
    carried: Collection[str] = (),
) -> None:
    """Put a rule and the files that go with it in ``folder``, all at once.

    Args:
      folder: made where missing; one process writes to it, any number may read it.
      files: by name, the rule's own among them; none else will be there.
      replaceable: names that may be there already, besides those of ``files``.
      carried: names of files there that stay as they are.

    Raises:
      UserError: the folder holds something else.
    """
    folder = Path(os.path.realpath(folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    there = _refuse_foreign(folder, {*files, *replaceable, *carried})
    for stale in folder.parent.glob(f".{folder.name}.new-*"):
        shutil.rmtree(stale, ignore_errors=True)
    new = folder.parent / f".{folder.name}.new-{os.getpid()}"
    new.mkdir()
    for name, data in files.items():
        write_synced(new / name, data)
    for path in there:
        if path.name in carried and path.name not in files:
            shutil.copy2(path, new / path.name)
    _swap(new, folder)


def read(folder: Path) -> tuple[bytes, str | None]:
    """Return the bytes of `rule.npz` and the text of `manifest.json` beside it.

    Raises:
      FileNotFoundError: there is no `rule.npz`.
    """
    for _ in range(_ATTEMPTS):
        descriptor = _open(folder)
        try:
            arrays = _read_at(ARRAYS, descriptor)
            with contextlib.suppress(FileNotFoundError):
                return arrays, _read_at(MANIFEST, descriptor).decode()
            if _is_current(folder, descriptor):
                return arrays, None
        except FileNotFoundError:
            if _is_current(folder, descriptor):
                raise
        finally:
            os.close(descriptor)
        # Replaced and deleted while we read: the new one is in place by now.
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))


def holds_rule(folder: Path) -> bool:
    """Return whether there is a rule in ``folder``."""
    return (folder / ARRAYS).is_file() or (_previous(folder) / ARRAYS).is_file()


def refuse_another(folder: Path, arrays: bytes) -> None:
    """Raise UserError where ``folder`` holds a rule other than ``arrays``."""
    if holds_rule(folder) and read(folder)[0] != arrays:
        raise UserError(f"{folder} holds another rule; name a new folder")


def _previous(folder: Path) -> Path:
    """Return where a rule waits while it is replaced without an atomic exchange."""
    return folder.parent / f".{folder.name}.old"


def _open(folder: Path) -> int:
    """Return a descriptor of the folder, so that its files are read from one folder.

    Another folder may take its name at any time.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY
    with contextlib.suppress(FileNotFoundError):
        return os.open(folder, flags)
    with contextlib.suppress(FileNotFoundError):
        return os.open(_previous(folder), flags)
    return os.open(folder, flags)  # the replacement may have ended in between


def _is_current(folder: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(folder), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _read_at(name: str, folder: int) -> bytes:
    with open(os.open(name, os.O_RDONLY, dir_fd=folder), "rb") as file:
        return file.read()


def _refuse_foreign(folder: Path, allowed: Collection[str]) -> list[Path]:
    """Return what is there; refuse to replace a folder that holds more."""
    if not folder.exists():
        return []
    if not folder.is_dir():
        raise UserError(f"{folder} is a file; name a folder for the rule")
    entries = list(folder.iterdir())
    foreign = sorted(path.name for path in entries if path.name not in allowed)
    if foreign:
        raise UserError(
            f"{folder} holds more than a rule ('{foreign[0]}'); name a new folder"
        )
    return entries


def _swap(new: Path, folder: Path) -> None:
    """Give ``new`` the name ``folder`` and delete what had it."""
    previous = _previous(folder)
    if not folder.exists():
        new.rename(folder)
    elif _exchange(new, folder):
        shutil.rmtree(new)
    else:
        # A file system without exchange (NFS): between the two renames readers
        # find the rule under its waiting name.
        shutil.rmtree(previous, ignore_errors=True)
        folder.rename(previous)
        new.rename(folder)
    shutil.rmtree(previous, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names atomically; False where the system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    names = os.fsencode(one), os.fsencode(other)
    if not renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE):
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), str(other))
