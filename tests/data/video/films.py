"""Videos for tests: each frame shows its own number, so that a test can tell which frame it got."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

import av
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

SIDE = 64
LEVELS = (16, 235)  # black and white of a bit


def numbered(number: int, height: int = SIDE, width: int = SIDE) -> NDArray[np.uint8]:
    """A frame that shows its number as 8 grey bars, the highest bit on the left."""
    bits = [(number >> shift) & 1 for shift in range(7, -1, -1)]
    row = np.repeat([LEVELS[bit] for bit in bits], width // 8).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(row[None, :, None], (height, width, 3)))


def number_of(picture: NDArray[np.uint8]) -> int:
    """The number that ``numbered`` drew, read from the middle of each bar."""
    width = picture.shape[1]
    row = picture[picture.shape[0] // 2, :, 1]
    return sum(int(row[width * (2 * i + 1) // 16] > 128) << (7 - i) for i in range(8))


def write(
    path: Path, stamps: Sequence[int], codec: str = "libx264", gop: int = 10, second: int = 100,
    size: tuple[int, int] = (SIDE, SIDE), aspect: Fraction | None = None, tries: int = 20, **options: str,
) -> Path:  # fmt: skip
    """A video whose i-th frame shows i (mod 256) and has the time stamp ``stamps[i]`` / ``second`` seconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width = size
        stream.pix_fmt = {"gif": "rgb8", "mjpeg": "yuvj420p"}.get(codec, "yuv420p")
        stream.gop_size = gop
        stream.codec_context.time_base = Fraction(1, second)
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        stream.options = options
        container.start_encoding()
        for i, stamp in enumerate(stamps):
            frame = av.VideoFrame.from_ndarray(numbered(i % 256, *size), format="rgb24")
            if stream.pix_fmt != "yuv420p":
                frame = frame.reformat(format=stream.pix_fmt)
            frame.pts, frame.time_base = stamp, Fraction(1, second)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    if codec == "libx265" and tries and not _is_right(path, len(stamps)):
        return write(path, stamps, codec, gop, second, size, aspect, tries - 1, **options)
    return path


def _is_right(path: Path, count: int) -> bool:
    """Whether a plain decode shows every number: this x265 writes wrong pictures in about one file of four."""
    with av.open(str(path)) as container:
        shown = [number_of(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    return shown == [i % 256 for i in range(count)]
