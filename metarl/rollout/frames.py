"""Stacked frames, each kept once however many observations show it.

Host code in NumPy, under the replay. Frames are told apart by their content alone, so
whatever an environment shows (a stack filled anew after a reset, a picture that stands
still, the last observation of one rollout and the first of the next) is kept once and
comes back to the byte.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from metarl.rollout.memory import empty_for_device

Array = npt.NDArray[Any]

_MIN_GROWTH = 16
_GROWTH_SHARE = 32
"""Memory grows by a 32nd, and is given back where more than a 16th is not in use."""
_INT_BYTES = 32
"""Of a Python integer, as two of which every frame is known."""


class FrameStore:
    """Frames with a count of the places that refer to each."""

    def __init__(self, frame_stack: int) -> None:
        """Make an empty store.

        Args:
          frame_stack: frames that lie behind one another on an observation's last
            axis, oldest first.
        """
        self._frame_stack = frame_stack
        self._frames: Array = np.empty((0, 0), np.uint8)  # [slots, bytes of a frame]
        self._references = np.zeros(0, np.int32)
        self._keys = np.zeros(0, np.int64)
        self._slot_of_key: dict[int, int] = {}
        self._shape: tuple[int, ...] = ()
        self._dtype = np.dtype(np.uint8)

    def __len__(self) -> int:
        """Return how many frames are referred to."""
        return int(np.count_nonzero(self._references))

    @property
    def nbytes(self) -> int:
        """Memory of the frames and of what is known about them."""
        arrays = self._frames.nbytes + self._references.nbytes + self._keys.nbytes
        known = len(self._slot_of_key) * 2 * _INT_BYTES
        return arrays + sys.getsizeof(self._slot_of_key) + known

    def put(self, observations: Array) -> npt.NDArray[np.int32]:
        """Return the slots ``[..., frame_stack]`` of the frames of observations.

        Every slot that is returned counts as one reference.

        Args:
          observations: ``[..., H, W, C]``, with ``C / frame_stack`` colours.
        """
        *lead, height, width, channels = observations.shape
        stack = self._frame_stack
        self._shape = (height, width, channels // stack)
        self._dtype = observations.dtype
        frames = np.moveaxis(
            observations.reshape(-1, *self._shape[:2], stack, self._shape[2]), 3, 1
        )
        slots = np.empty((len(frames), stack), np.int32)
        free = list(np.flatnonzero(self._references == 0)[::-1])
        previous: list[bytes] = [b""] * stack
        for i, frames_of_one in enumerate(frames):
            contents = [frame.tobytes() for frame in frames_of_one]
            for s, content in enumerate(contents):
                # Most frames are the one before's, moved on by one.
                if s + 1 < stack and content == previous[s + 1]:
                    slot = int(slots[i - 1, s + 1])
                else:
                    slot = self._find_or_add(content, free)
                self._references[slot] += 1
                slots[i, s] = slot
            previous = contents
        return slots.reshape(*lead, stack)

    def release(self, slots: npt.NDArray[np.int32]) -> None:
        """Take back one reference for every entry of ``slots``."""
        np.subtract.at(self._references, slots.ravel(), 1)
        touched = np.unique(slots)
        for slot in touched[self._references[touched] == 0]:
            key = int(self._keys[slot])
            if self._slot_of_key.get(key) == slot:
                del self._slot_of_key[key]

    def compact(self) -> npt.NDArray[np.int32] | None:
        """Give memory back if much of it is not in use.

        Returns:
          The new slot of every old one, or None where all stayed.
        """
        used = np.flatnonzero(self._references)
        count, size = len(used), len(self._references)
        if size - count <= _MIN_GROWTH + size // (_GROWTH_SHARE // 2):
            return None
        movers = used[used >= count]
        holes = np.flatnonzero(self._references[:count] == 0)
        for array in (self._frames, self._references, self._keys):
            array[holes] = array[movers]
        for old, new in zip(movers, holes, strict=True):
            key = int(self._keys[new])
            if self._slot_of_key.get(key) == old:
                self._slot_of_key[key] = int(new)
        self._slot_of_key = dict(self._slot_of_key)  # deleting alone frees nothing
        self._resize(count)
        table = np.arange(size, dtype=np.int32)
        table[movers] = holes
        return table

    def stacked(self, slots: npt.NDArray[np.int32]) -> Array:
        """Return the observations ``[T, B, H, W, C]`` of slots ``[B, T, stack]``."""
        batch, length, stack = slots.shape
        height, width, colours = self._shape
        out = empty_for_device(
            (length, batch, height, width, stack * colours), self._dtype
        )
        by_frame = out.reshape(length, batch, height, width, stack, colours)
        frames = self._frames.view(self._dtype).reshape(-1, *self._shape)
        for t in range(length):
            for s in range(stack):
                by_frame[t, :, :, :, s] = frames[slots[:, t, s]]
        return out

    def state(
        self, slots: npt.NDArray[np.int32]
    ) -> tuple[Array, npt.NDArray[np.int32]]:
        """Return the frames ``[n, H, W, C]`` that ``slots`` refer to, and these anew.

        Args:
          slots: all that are referred to.
        """
        used, numbers = np.unique(slots, return_inverse=True)
        frames = self._frames[used].view(self._dtype).reshape(-1, *self._shape)
        return frames, numbers.reshape(slots.shape).astype(np.int32)

    def restore(self, frames: Array, slots: npt.NDArray[np.int32]) -> None:
        """Hold what `state` returned, in place of all that there was."""
        self._shape, self._dtype = frames.shape[1:], frames.dtype
        flat = np.ascontiguousarray(frames).reshape(len(frames), -1).view(np.uint8)
        self._frames = np.empty(flat.shape, np.uint8)  # its own, to be resized
        self._frames[:] = flat
        self._references = np.bincount(slots.ravel(), minlength=len(frames)).astype(
            np.int32
        )
        # Python's hashes of bytes differ between processes.
        keys = [_key(frame.tobytes()) for frame in self._frames]
        self._keys = np.array(keys, np.int64)
        self._slot_of_key = {}
        for slot, key in enumerate(keys):
            self._slot_of_key.setdefault(key, slot)

    def _find_or_add(self, content: bytes, free: list[int]) -> int:
        key = _key(content)
        known = self._slot_of_key.get(key)
        if known is not None and self._frames[known].tobytes() == content:
            return known
        if not free:
            free += self._grow(len(content))
        slot = int(free.pop())
        self._frames[slot] = np.frombuffer(content, np.uint8)
        self._keys[slot] = key
        if known is None:  # else two contents have one key: the newer is not shared
            self._slot_of_key[key] = slot
        return slot

    def _grow(self, frame_bytes: int) -> list[int]:
        """Add slots; return them, the first one last."""
        size = len(self._references)
        if size == 0:
            self._frames = np.empty((0, frame_bytes), np.uint8)
        self._resize(size + max(_MIN_GROWTH, size // _GROWTH_SHARE))
        return list(range(len(self._references) - 1, size - 1, -1))

    def _resize(self, size: int) -> None:
        # In place, so that the memory is never needed twice; nobody has a view.
        self._frames.resize((size, *self._frames.shape[1:]), refcheck=False)
        self._references.resize(size, refcheck=False)
        self._keys.resize(size, refcheck=False)


def _key(content: bytes) -> int:
    """Return what a frame is looked up by; equal keys are then compared in full."""
    return hash(content)
