"""A picture of a video, for paper and for browsers that show none before they play.

Host code; PyAV and Pillow are imported where they are used, and without PyAV there is
no picture.
"""

from __future__ import annotations

import base64
import importlib.util
import io
from pathlib import Path

_MAX_FRAMES = 600
"""Decoded on the way to the middle: ten milliseconds each at most."""


def poster(path: Path) -> str | None:
    """Return a frame of the video's middle as a data URI; None where it has none.

    Args:
      path: of an MP4 or WebM.
    """
    if importlib.util.find_spec("av") is None:
        return None
    import av
    from PIL import Image  # matplotlib needs it too

    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            middle = (stream.duration or 0) // 2
            container.seek(middle, stream=stream)
            chosen = None
            for i, frame in enumerate(container.decode(stream)):
                chosen = frame
                if i >= _MAX_FRAMES or (frame.pts or 0) >= middle:
                    break
            if chosen is None:
                return None
            buffer = io.BytesIO()
            pixels = chosen.to_ndarray(format="rgb24")
            Image.fromarray(pixels).save(buffer, format="JPEG", quality=80)
    except (av.error.FFmpegError, IndexError, OSError):
        return None  # not a video that can be read; the browser will say so
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
