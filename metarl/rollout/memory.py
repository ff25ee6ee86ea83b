"""Host memory that a device can use as it is.

Host code in NumPy, under the actor and the replay; must not import jax.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

_ALIGNMENT = 64
"""Bytes to whose multiples XLA on CPU wants arrays aligned. It uses such an array in
place, where `jax.device_put` copies others; the bits are the same."""


def empty_for_device(shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Return a new array that a CPU device reads in place.

    What was put on the device must not be written to any more.
    """
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    offset = -memory.ctypes.data % _ALIGNMENT
    return memory[offset : offset + size].view(dtype).reshape(shape)
