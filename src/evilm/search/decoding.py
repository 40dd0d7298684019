"""The moments of one file and their frames, decoded in processes that may be killed."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from evilm.config import Config
from evilm.data.sampling import frame_times
from evilm.data.video import DecoderPool, Fit, Limits, Mode
from evilm.errors import VideoError
from evilm.search.segments import CutConfig, cut

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from numpy.typing import NDArray

PATIENCE = Limits(timeout=30.0)  # a question here is about several moments
_AT_ONCE = 4  # of them


class DecodeConfig(Config):
    """What to take from each file."""

    frames: int
    size: int
    fit: Fit = "crop"
    mode: Mode = "exact"
    cut: CutConfig = CutConfig()


class Piece(NamedTuple):
    """Some moments of a file: (start, end) of each, and their pixels (n, T, H, W, 3) uint8."""

    spans: list[tuple[float, float]]
    pixels: NDArray[np.uint8]


class Outcome(NamedTuple):
    """How a file ended: its status, why where it is not ``ok``, its duration, and seconds spent on decoding it."""

    status: str
    reason: str
    duration: float
    seconds: float


def moments_of(pool: DecoderPool, path: bytes, config: DecodeConfig) -> Generator[Piece, None, Outcome]:
    """The moments of a file, some at a time; its outcome is the generator's value.

    A moment that cannot be decoded is left out, and the file is ``partial``.
    """
    reader = _Pooled(pool, Path(os.fsdecode(path)))
    sent, failed = 0, None
    try:
        spans = cut(reader, config.cut)
        for i in range(0, len(spans), _AT_ONCE):
            pieces, error = _decoded(reader, spans[i : i + _AT_ONCE], config)
            for piece in pieces:
                sent += len(piece.spans)
                yield piece
            failed = error or failed
            if error is not None and error.status in ("timeout", "crashed"):
                break  # each further question could cost as much again
    except VideoError as error:
        failed = error
    whole = reader.known or 0.0
    if failed is None:
        return Outcome("ok", "", whole, reader.seconds)
    if sent:
        return Outcome("partial", f"only {sent} moments: {failed.reason}", whole, reader.seconds)
    return Outcome(failed.status, failed.reason, whole, reader.seconds)


def _decoded(
    reader: _Pooled, spans: list[tuple[float, float]], config: DecodeConfig
) -> tuple[list[Piece], VideoError | None]:
    """Some moments together; where that fails, those that can be decoded alone."""
    try:
        return [_piece(reader, spans, config)], None
    except VideoError as error:
        if len(spans) == 1 or error.status in ("timeout", "crashed"):
            return [], error
        failed = error
    pieces: list[Piece] = []
    for span in spans:
        found, error = _decoded(reader, [span], config)
        pieces += found
        failed = error or failed
    return pieces, failed


def _piece(reader: _Pooled, spans: list[tuple[float, float]], config: DecodeConfig) -> Piece:
    times = np.concatenate([frame_times(config.frames, end - start, None, start) for start, end in spans])
    pixels = reader.frames_at(times, config.mode, config.size, config.fit)
    return Piece(spans, pixels.reshape(len(spans), config.frames, *pixels.shape[1:]))


class _Pooled:
    """A file seen through a pool, as ``moments.Reader`` wants it; counts the seconds spent."""

    def __init__(self, pool: DecoderPool, path: Path) -> None:
        self._pool, self._path = pool, path
        self.known: float | None = None
        self.seconds = 0.0

    @property
    def duration(self) -> float:
        if self.known is None:
            began = time.perf_counter()
            self.known = self._pool.duration(self._path)
            self.seconds += time.perf_counter() - began
        return self.known

    def frames_at(
        self, times: Sequence[float] | NDArray[np.float64], mode: Mode = "exact", size: int | None = None,
        fit: Fit = "crop",
    ) -> NDArray[np.uint8]:  # fmt: skip
        began = time.perf_counter()
        try:
            return self._pool.frames_at(self._path, times, mode, size, fit)
        finally:
            self.seconds += time.perf_counter() - began
