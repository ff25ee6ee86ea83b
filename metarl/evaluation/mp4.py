"""Writes frames to a video file that browsers play: MP4, H.264, yuv420p.

A host module and a leaf. PyAV, which brings its own FFmpeg, is imported where it is
used: everything else works without it.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.video.stream import VideoStream

MISSING = "videos need PyAV, which is not installed (pip install av)"
"""Said where there is no encoder."""

# A page holds many videos. Quality 26 (x264's own is 23, less is better) is sharp on
# flat colours; slower presets take half again as long for files of the same size; the
# maximum rate, in bits per second, bounds a game that shows noise (Yars' Revenge).
_OPTIONS = {
    "crf": "26",
    "preset": "veryfast",
    "tune": "animation",
    "maxrate": "160k",
    "bufsize": "640k",
    # So that the same frames give the same file on any machine.
    "threads": "1",
}
_BT601 = 6
"""FFmpeg's number for SMPTE 170M, what its converter from RGB writes."""
_LIMITED_RANGE = 1


def can_encode() -> bool:
    """Return whether videos can be written here."""
    return importlib.util.find_spec("av") is not None


class Mp4Writer:
    """Writes one video; use as a context manager."""

    def __init__(self, path: Path, *, fps: int) -> None:
        """Describe the file, which is opened at the first frame.

        Args:
          path: of the file; its folder exists.
          fps: frames per second.
        """
        self._path, self._fps = path, fps
        self._container: OutputContainer | None = None
        self._stream: VideoStream | None = None
        self.num_frames = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def add(self, frame: npt.NDArray[np.uint8]) -> None:
        """Write the next frame ``[H, W, 3]``, as large as the first."""
        import av

        height, width = (size + size % 2 for size in frame.shape[:2])
        if self._container is None or self._stream is None:
            # The index comes first, so that a browser starts before it has it all.
            self._container = av.open(
                str(self._path),
                "w",
                format="mp4",
                options={"movflags": "+faststart"},
            )
            stream = self._container.add_stream(
                "libx264", rate=self._fps, options=_OPTIONS
            )
            stream.width, stream.height = width, height
            stream.pix_fmt = "yuv420p"  # the one that all browsers know
            context = stream.codec_context
            context.colorspace, context.color_range = _BT601, _LIMITED_RANGE
            context.color_primaries = context.color_trc = _BT601
            self._stream = stream
        if (width, height) != (self._stream.width, self._stream.height):
            raise ValueError(
                f"frame: {width} x {height} after others of {self._stream.width} x "
                f"{self._stream.height}"
            )
        if frame.shape[:2] != (height, width):  # H.264 halves the colours' sides
            frame = np.pad(
                frame,
                ((0, height - frame.shape[0]), (0, width - frame.shape[1]), (0, 0)),
                mode="edge",
            )
        picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
        self._container.mux(self._stream.encode(picture))
        self.num_frames += 1

    def close(self) -> None:
        """Write what is left; safe to call twice."""
        if self._container is None or self._stream is None:
            return
        container, self._container = self._container, None
        try:
            container.mux(self._stream.encode(None))
        finally:
            container.close()
