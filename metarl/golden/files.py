"""Golden files: which there are, and their arrays, each used or reported.

A file's keys are paths; some are inputs, all others are outputs to be met. Knows NumPy
only.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import numpy as np

from metarl.errors import UserError

FILE_NAME = re.compile(
    r"a_metanet_T\d+_B\d+_A\d+_seed\d+"
    r"|c_learner_chain_seed\d+"
    r"|d_metagrad_(disco103|randometa)_seed\d+"
    r"|e_metagrad3_(disco103|randometa)_seed\d+"
    r"|f_vjp_T\d+_B\d+_A\d+_seed\d+"
)

INPUT = re.compile(r"(initial|hyper|rollout|train|valid|in|call\d+/in)/")
"""How the keys of inputs begin."""


class GoldenFile:
    """The arrays of one golden file, which notes what has been read of its inputs."""

    def __init__(self, path: Path) -> None:
        """Load ``path``.

        Raises:
          UserError: it is missing, or no archive of arrays.
        """
        self.path, self.stem, self.part = path, path.stem, path.stem[0]
        try:
            # Raises TypeError where the file holds one array and is no archive.
            with np.load(path, allow_pickle=False) as archive:
                self._arrays = {key: archive[key] for key in archive.files}
        except FileNotFoundError:
            raise UserError(f"golden folder: {path} does not exist") from None
        except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile) as error:
            raise UserError(f"{path}: not an archive of arrays ({error})") from None
        self._read: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return key in self._arrays

    def __getitem__(self, key: str) -> np.ndarray:
        """Return an array: indices as int32, flags as bool, all else as float32."""
        if key not in self._arrays:
            raise UserError(f"{self.path}: array '{key}' is missing")
        self._read.add(key)
        array = self._arrays[key]
        dtypes: dict[str, type] = {"u": np.bool_, "b": np.bool_, "i": np.int32}
        return np.asarray(array, dtypes.get(array.dtype.kind, np.float32))

    def folder(self, prefix: str) -> dict[str, np.ndarray]:
        """Return the arrays whose keys start with ``prefix``, by the rest of the key.

        Raises:
          UserError: there is none.
        """
        keys = [key for key in self._arrays if key.startswith(prefix)]
        if not keys:
            raise UserError(f"{self.path}: arrays '{prefix}*' are missing")
        return {key.removeprefix(prefix): self[key] for key in keys}

    def numbers(self, expression: str) -> range:
        """Return ``range(n)`` for keys that start with a name and 0 ... n - 1.

        ``expression`` has one group, the number.
        """
        found = {
            int(match[1])
            for key in self._arrays
            if (match := re.match(expression, key)) is not None
        }
        if found != set(range(len(found))) or not found:
            raise UserError(
                f"{self.path}: keys '{expression}' are numbered {sorted(found)}, "
                "must be 0, 1, ..."
            )
        return range(len(found))

    def outputs(self) -> dict[str, np.ndarray]:
        """Return every array that is to be met."""
        return {
            key: value for key, value in self._arrays.items() if not INPUT.match(key)
        }

    def unread(self) -> list[str]:
        """Return the inputs that nobody has asked for."""
        keys = {key for key in self._arrays if INPUT.match(key)}
        return sorted(keys - self._read)


def find_files(folder: Path) -> list[Path]:
    """Return the golden files of ``folder``, by name.

    Raises:
      UserError: there is none, or one whose name no part has.
    """
    if not folder.is_dir():
        raise UserError(f"golden folder: {folder} is not a folder")
    paths = sorted(folder.glob("*.npz"))
    if not paths:
        raise UserError(f"golden folder: {folder} has no golden arrays (*.npz)")
    for path in paths:
        if FILE_NAME.fullmatch(path.stem) is None:
            raise UserError(
                f"golden folder: {path.name} is of no known part; names start with "
                "a_metanet_, c_learner_chain_, d_metagrad_, e_metagrad3_ or f_vjp_"
            )
    return paths
