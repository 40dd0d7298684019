"""Where a video is cut into moments, so that a hit is a place in a file and not a file.

A short video is one moment. A longer one is cut where the picture changes (``shots``) and wherever a shot is longer
than a moment may be, or evenly (``windows``). Cutting by shots looks at one small picture a second, from keyframes.
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

_SIDE = 32  # pixels of the pictures that are compared
_LEVELS = 8  # of each colour in a histogram
_STEP = 1.0  # seconds between compared pictures
_AT_ONCE = 64  # pictures that are decoded together
_DIVISIONS = 8  # a cut is looked for in this many parts of where it must be, and again in one of those


class CutConfig(Config):
    """How long moments are."""

    by: Literal["shots", "windows"] = "shots"
    seconds: float = Field(default=8.0, gt=0.1, le=3600, description="the longest moment")
    shortest: float = Field(default=1.5, ge=0, description="shots shorter than this join the one before")
    change: float = Field(default=0.45, gt=0, le=1, description="share of the colours that changes at a cut")
    most: int = Field(default=10_000, gt=0, description="moments of a file; they grow longer where there would be more")


class Reader(Protocol):
    """What is needed of ``data.video.VideoReader``."""

    @property
    def duration(self) -> float: ...

    def frames_at(
        self, times: Sequence[float] | NDArray[np.float64], mode: Mode = "exact", size: int | None = None,
        fit: Fit = "crop",
    ) -> NDArray[np.uint8]: ...  # fmt: skip


def cut(reader: Reader, config: CutConfig) -> list[tuple[float, float]]:
    """(start, end) in seconds of each moment: they follow one another and cover the video.

    Raises:
        VideoError: the pictures that decide cannot be decoded.
    """
    whole = max(0.0, reader.duration)
    longest = max(config.seconds, whole / config.most)
    if whole <= longest:
        return [(0.0, whole)]
    cuts = shots(reader, whole, config) if config.by == "shots" else []
    edges = [0.0, *_spaced(cuts, whole, max(config.shortest, whole / config.most)), whole]
    found = [piece for start, end in itertools.pairwise(edges) for piece in windows(start, end, longest)]
    return found if len(found) <= config.most else windows(0.0, whole, longest)


def windows(start: float, end: float, longest: float) -> list[tuple[float, float]]:
    """[start, end) in the fewest equal parts that are no longer than ``longest``."""
    count = max(1, math.ceil((end - start) / longest - 1e-9))
    edges = [start + (end - start) * i / count for i in range(count)] + [end]
    return list(itertools.pairwise(edges))


def shots(reader: Reader, whole: float, config: CutConfig) -> list[float]:
    """Seconds at which the picture changes abruptly, increasing."""
    step = max(_STEP, whole / config.most)
    times = np.arange(0.0, whole, step)
    spans: list[tuple[float, float]] = []
    since, last = 0.0, None  # when the picture that was compared last was seen first
    for some in np.array_split(times, max(1, math.ceil(len(times) / _AT_ONCE))):
        for moment, own in zip(some, colours(reader.frames_at(some, "fast", _SIDE, "squash")), strict=True):
            if last is not None and np.array_equal(last, own):
                continue  # the same keyframe
            if last is not None and changed(last, own) > config.change:
                spans.append((since, float(moment)))
            since, last = float(moment), own
    return _located(reader, spans)


def _located(reader: Reader, spans: list[tuple[float, float]]) -> list[float]:
    """Where within each span the picture turns from that at its start to that at its end."""
    for _ in range(2):
        closer: list[tuple[float, float]] = []
        for start, end in spans:
            times = np.linspace(start, end, _DIVISIONS + 1)
            seen = colours(reader.frames_at(times, "exact", _SIDE, "squash"))
            ends = [changed(own, seen[-1]) <= changed(own, seen[0]) for own in seen]
            at = max(1, ends.index(True))
            closer.append((float(times[at - 1]), float(times[at])))
        spans = closer
    return [end for _, end in spans]


def _spaced(cuts: Sequence[float], whole: float, shortest: float) -> list[float]:
    """The cuts that leave at least ``shortest`` before and after them."""
    kept: list[float] = []
    for each in sorted(cuts):
        if each - (kept[-1] if kept else 0.0) >= shortest and whole - each >= shortest:
            kept.append(each)
    return kept


def colours(pictures: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(n, H, W, 3) to (n, 3 * levels): the share of pixels at each level of each colour."""
    levels = pictures.reshape(len(pictures), -1, 3) // (256 // _LEVELS)
    return np.stack([(levels == level).mean(1) for level in range(_LEVELS)], -1).reshape(len(pictures), -1)


def changed(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """The share of colours that differs between two histograms, 0 to 1."""
    return float(np.abs(one - other).sum() / 6)
