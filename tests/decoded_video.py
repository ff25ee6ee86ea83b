"""What is in a video file."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np


def decoded(path: Path) -> tuple[np.ndarray, dict[str, object]]:
    """Return the frames ``[N, H, W, 3]`` and what the file says of them."""
    with av.open(str(path)) as container:
        (stream,) = container.streams
        frames = [f.to_ndarray(format="rgb24") for f in container.decode(stream)]
        context = stream.codec_context
        return np.stack(frames), {
            "codec": context.name,
            "format": context.pix_fmt,
            "colours": context.colorspace,
            "rate": stream.average_rate,
            "seconds": float(stream.duration * stream.time_base),
        }
