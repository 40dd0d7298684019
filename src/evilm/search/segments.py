"""Cut a video into segments, so that a hit names a place in a file.

A short video is one segment. A longer one is cut where the picture changes (``shots``) and, within long shots, evenly;
or evenly throughout (``windows``). Finding the shots decodes one small picture a second, from keyframes.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from pydantic import Field

from evilm.config import Config

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from evilm.data.video import Fit, Mode

_SIDE = 32  # width and height of the compared pictures, in pixels
_LEVELS = 8  # histogram bins of each colour channel
_STEP = 1.0  # seconds between compared pictures
_PICTURES = 64  # pictures that are decoded together
_DIVISIONS = 8  # a shot change is located in two rounds, each to an eighth of the interval


class SegmentConfig(Config):
    """How videos are cut into segments."""

    method: Literal["shots", "windows"] = "shots"
    max_seconds: float = Field(default=8.0, gt=0.1, le=3600, description="maximum length of a segment")
    min_seconds: float = Field(default=1.5, ge=0, description="a shorter shot is joined to the one before")
    cut_threshold: float = Field(default=0.45, gt=0, le=1, description="fraction of the colours that changes at a cut")
    max_segments: int = Field(default=10_000, gt=0, description="per file; in a longer file the segments are longer")


class Reader(Protocol):
    """The part of ``data.video.VideoReader`` that cutting needs."""

    @property
    def duration(self) -> float: ...

    def frames_at(
        self, times: Sequence[float] | NDArray[np.float64], mode: Mode = "exact", size: int | None = None,
        fit: Fit = "crop",
    ) -> NDArray[np.uint8]: ...  # fmt: skip


def cut(reader: Reader, config: SegmentConfig) -> list[tuple[float, float]]:
    """Start and end of each segment in seconds; together they cover the video.

    Raises:
        VideoError: a picture that is needed cannot be decoded.
    """
    duration = max(0.0, reader.duration)
    longest = max(config.max_seconds, duration / config.max_segments)
    if duration <= longest:
        return [(0.0, duration)]
    changes = shot_changes(reader, duration, config) if config.method == "shots" else []
    shortest = max(config.min_seconds, duration / config.max_segments)
    edges = [0.0]
    for change in sorted(changes):
        if change - edges[-1] >= shortest and duration - change >= shortest:
            edges.append(change)
    edges.append(duration)
    result = [window for start, end in itertools.pairwise(edges) for window in windows(start, end, longest)]
    return result if len(result) <= config.max_segments else windows(0.0, duration, longest)


def windows(start: float, end: float, longest: float) -> list[tuple[float, float]]:
    """Divide [start, end) into the fewest equal parts that are at most ``longest`` seconds long."""
    count = max(1, math.ceil((end - start) / longest - 1e-9))
    edges = [start + (end - start) * i / count for i in range(count)] + [end]
    return list(itertools.pairwise(edges))


def shot_changes(reader: Reader, duration: float, config: SegmentConfig) -> list[float]:
    """Times in seconds at which the picture changes abruptly, increasing."""
    times = np.arange(0.0, duration, max(_STEP, duration / config.max_segments))
    spans: list[tuple[float, float]] = []
    first_seen, last = 0.0, None  # time and histogram of the picture that was compared last
    for some in np.array_split(times, max(1, math.ceil(len(times) / _PICTURES))):
        for time, histogram in zip(some, histograms(reader.frames_at(some, "fast", _SIDE, "squash")), strict=True):
            if last is not None and np.array_equal(last, histogram):
                continue  # the same keyframe
            if last is not None and distance(last, histogram) > config.cut_threshold:
                spans.append((first_seen, float(time)))
            first_seen, last = float(time), histogram
    for _ in range(2):  # narrow each span around the change
        closer: list[tuple[float, float]] = []
        for start, end in spans:
            grid = np.linspace(start, end, _DIVISIONS + 1)
            seen = histograms(reader.frames_at(grid, "exact", _SIDE, "squash"))
            after = [distance(each, seen[-1]) <= distance(each, seen[0]) for each in seen]
            at = max(1, after.index(True))
            closer.append((float(grid[at - 1]), float(grid[at])))
        spans = closer
    return [end for _, end in spans]


def histograms(pictures: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(n, H, W, 3) to (n, 3 * levels): fraction of pixels in each bin of each colour channel."""
    levels = pictures.reshape(len(pictures), -1, 3) // (256 // _LEVELS)
    return np.stack([(levels == level).mean(1) for level in range(_LEVELS)], -1).reshape(len(pictures), -1)


def distance(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Fraction of the colours that differs between two histograms, 0 to 1."""
    return float(np.abs(one - other).sum() / 6)
