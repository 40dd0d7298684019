"""Decode and embed the segments of files, with decoding and encoding side by side in bounded memory.

Each decoder process has a thread that puts decoded segments into a queue of limited length. The caller's thread takes
them out, encodes them in batches that may span files, and returns the files that are complete. ``decode_segments`` and
``embed_segments`` are also what a search by example uses, so that equal pictures give equal vectors.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from evilm.data.sampling import frame_times
from evilm.data.video import DecoderPool, Limits
from evilm.errors import VideoError
from evilm.search.database import READABLE, NewFile
from evilm.search.model import unit_rows
from evilm.search.remote import local_copy
from evilm.search.scan import FoundFile, content_hash
from evilm.search.segments import cut

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from evilm.data.video import Fit, Mode
    from evilm.inference import Embedder
    from evilm.search.model import IndexConfig

LIMITS = Limits(timeout=30.0)  # a request to a decoder covers several segments
FLUSH_FILES = 16  # complete files that are returned together, to be committed together
FLUSH_SECONDS = 2.0  # after so long, waiting segments are encoded and complete files are returned in any case
_SEGMENTS = 4  # segments in one request to a decoder
_QUEUE = 8  # decoded requests that may wait for encoding


class DecodedSegments(NamedTuple):
    """Some segments of a file: (start, end) of each in seconds, and their pixels (n, T, H, W, 3) uint8."""

    spans: list[tuple[float, float]]
    pixels: NDArray[np.uint8]


class Outcome(NamedTuple):
    """Result for a file: its status, the reason if that is not ``ok``, its duration, and the seconds of decoding."""

    status: str
    reason: str
    duration: float
    seconds: float


class PooledFile:
    """A file that a decoder pool reads, with the methods of ``segments.Reader``; counts the seconds of decoding."""

    def __init__(self, pool: DecoderPool, path: Path) -> None:
        self._pool, self._path = pool, path
        self.known_duration: float | None = None
        self.seconds = 0.0

    @property
    def duration(self) -> float:
        if self.known_duration is None:
            began = time.perf_counter()
            self.known_duration = self._pool.duration(self._path)
            self.seconds += time.perf_counter() - began
        return self.known_duration

    def frames_at(
        self, times: Sequence[float] | NDArray[np.float64], mode: Mode = "exact", size: int | None = None,
        fit: Fit = "crop",
    ) -> NDArray[np.uint8]:  # fmt: skip
        began = time.perf_counter()
        try:
            return self._pool.frames_at(self._path, times, mode, size, fit)
        finally:
            self.seconds += time.perf_counter() - began


def decode_segments(
    file: PooledFile, spans: Sequence[tuple[float, float]], model: Embedder, mode: Mode
) -> NDArray[np.uint8]:
    """Decode segments as the model sees them: one frame from the middle of each of T equal parts, (n, T, H, W, 3).

    Raises:
        VideoError: a frame cannot be decoded.
    """
    times = np.concatenate([frame_times(model.num_frames, end - start, None, start) for start, end in spans])
    pixels = file.frames_at(times, mode, model.image_size, model.resize_mode)
    return pixels.reshape(len(spans), model.num_frames, *pixels.shape[1:])


def embed_segments(model: Embedder, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Unit vectors (n, D) of decoded segments (n, T, H, W, 3).

    Raises:
        VideoIndexError: the model gives a vector that is zero or not finite.
    """
    return unit_rows(model.embed_frames(pixels), model.fingerprint)


def read_file(
    pool: DecoderPool, path: Path, model: Embedder, config: IndexConfig
) -> Generator[DecodedSegments, None, Outcome]:
    """Cut and decode a file, some segments at a time; the generator's return value is the outcome.

    A segment that cannot be decoded is left out, and the file is ``partial``.
    """
    file = PooledFile(pool, path)
    sent, failure = 0, None
    try:
        spans = cut(file, config.segments)
        for i in range(0, len(spans), _SEGMENTS):
            pieces, error = _decode(file, spans[i : i + _SEGMENTS], model, config.mode)
            for piece in pieces:
                sent += len(piece.spans)
                yield piece
            failure = error or failure
            if error is not None and error.status in ("timeout", "crashed"):
                break  # each further request could take as long again
    except VideoError as error:
        failure = error
    duration = file.known_duration or 0.0
    if failure is None:
        return Outcome("ok", "", duration, file.seconds)
    if sent:
        return Outcome("partial", f"only {sent} segments: {failure.reason}", duration, file.seconds)
    return Outcome(failure.status, failure.reason, duration, file.seconds)


def _decode(
    file: PooledFile, spans: list[tuple[float, float]], model: Embedder, mode: Mode
) -> tuple[list[DecodedSegments], VideoError | None]:
    """Decode segments together or, if that fails, each alone; with the last error."""
    try:
        return [DecodedSegments(spans, decode_segments(file, spans, model, mode))], None
    except VideoError as error:
        if len(spans) == 1 or error.status in ("timeout", "crashed"):
            return [], error
        failure = error
    pieces: list[DecodedSegments] = []
    for span in spans:
        some, error = _decode(file, [span], model, mode)
        pieces += some
        failure = error or failure
    return pieces, failure


class _Event(NamedTuple):
    """Message of a decoder's thread about the file with the number ``file``; without segments it is the last one."""

    file: int
    segments: DecodedSegments | None = None
    outcome: Outcome | None = None
    content_hash: bytes = b""
    failure: BaseException | None = None


@dataclass
class _OpenFile:
    """A file that is not complete yet, and what is encoded of it."""

    found: FoundFile
    spans: list[tuple[float, float]] = field(default_factory=lambda: [])
    vectors: list[NDArray[np.float32]] = field(default_factory=lambda: [])
    last: _Event | None = None

    @property
    def complete(self) -> bool:
        return self.last is not None and len(self.vectors) == len(self.spans)

    def result(self) -> list[NewFile]:
        """What is written to the database: nothing for a file that was deleted since the scan."""
        if self.last is None or self.last.outcome is None:
            return []
        status, reason, duration, _ = self.last.outcome
        readable = bool(self.spans) and status in READABLE
        spans, vectors = (self.spans, np.stack(self.vectors)) if readable else ((), None)
        return [NewFile(*self.found, self.last.content_hash, status, reason, duration, spans, vectors)]


@dataclass
class Pipeline:
    """Decode and embed files.

    Args:
        model: encodes the segments.
        config: how files are cut and decoded.
        workers: number of decoder processes.
        batch: segments that are encoded together at most.
        limits: of each file.

    Attributes:
        decoding, encoding: seconds spent so far, summed over workers.
    """

    model: Embedder
    config: IndexConfig
    workers: int = 2
    batch: int = 16
    limits: Limits = LIMITS
    decoding: float = field(default=0.0, init=False)
    encoding: float = field(default=0.0, init=False)

    def run(self, files: Sequence[FoundFile], pool: DecoderPool | None = None) -> Iterator[list[NewFile]]:
        """Yield the complete files in groups, at most ``FLUSH_FILES`` together and at least every ``FLUSH_SECONDS``.

        They come in the order in which they are completed. A file that was deleted since the scan is left out.

        Args:
            files: to decode and embed.
            pool: decoders that stay open afterwards; None starts and closes some.
        """
        jobs: queue.SimpleQueue[tuple[int, FoundFile]] = queue.SimpleQueue()
        for job in enumerate(files):
            jobs.put(job)
        events: queue.Queue[_Event] = queue.Queue(_QUEUE)
        stop = threading.Event()
        count = max(1, min(self.workers, len(files)))
        decoders = pool or DecoderPool(count, self.limits)
        threads = [
            threading.Thread(target=self._decode_files, args=(decoders, jobs, events, stop), daemon=True)
            for _ in range(count)
        ]
        for thread in threads:
            thread.start()
        try:
            yield from self._collect(files, events)
        finally:
            stop.set()
            while any(thread.is_alive() for thread in threads):  # empty the queue, so that no thread waits for room
                with contextlib.suppress(queue.Empty):
                    events.get(timeout=0.05)
            if pool is None:
                decoders.close()

    def _collect(self, files: Sequence[FoundFile], events: queue.Queue[_Event]) -> Iterator[list[NewFile]]:
        open_files: dict[int, _OpenFile] = {}
        waiting: list[tuple[int, NDArray[np.uint8]]] = []  # segments to encode, with the number of their file
        complete: list[NewFile] = []
        left, flushed = len(files), time.monotonic()
        while left:
            event = None
            with contextlib.suppress(queue.Empty):
                event = events.get(timeout=max(0.0, flushed + FLUSH_SECONDS - time.monotonic()))
            if event is not None:
                left -= self._receive(event, files, open_files, waiting)
            due = not left or time.monotonic() - flushed >= FLUSH_SECONDS
            while len(waiting) >= self.batch or (waiting and due):
                self._encode(waiting[: self.batch], open_files)
                del waiting[: self.batch]
            for number in [number for number, each in open_files.items() if each.complete]:
                complete += open_files.pop(number).result()
            due = due or time.monotonic() - flushed >= FLUSH_SECONDS
            while len(complete) >= FLUSH_FILES or (complete and due):
                yield complete[:FLUSH_FILES]
                del complete[:FLUSH_FILES]
                flushed = time.monotonic()
            if due:
                flushed = time.monotonic()

    def _receive(
        self, event: _Event, files: Sequence[FoundFile], open_files: dict[int, _OpenFile],
        waiting: list[tuple[int, NDArray[np.uint8]]],
    ) -> bool:  # fmt: skip
        """Note what a decoder did; returns whether it was the last event of a file."""
        if event.failure is not None:
            raise event.failure
        file = open_files.setdefault(event.file, _OpenFile(files[event.file]))
        if event.segments is not None:
            file.spans += event.segments.spans
            waiting += [(event.file, pixels) for pixels in event.segments.pixels]
            return False
        file.last = event
        self.decoding += event.outcome.seconds if event.outcome else 0.0
        return True

    def _encode(self, batch: list[tuple[int, NDArray[np.uint8]]], open_files: dict[int, _OpenFile]) -> None:
        began = time.perf_counter()
        vectors = embed_segments(self.model, np.stack([pixels for _, pixels in batch]))
        self.encoding += time.perf_counter() - began
        for (number, _), vector in zip(batch, vectors, strict=True):
            open_files[number].vectors.append(vector)

    def _decode_files(
        self, pool: DecoderPool, jobs: queue.SimpleQueue[tuple[int, FoundFile]], events: queue.Queue[_Event],
        stop: threading.Event,
    ) -> None:  # fmt: skip
        """Decode files until there are no more jobs, and put what happens to each into ``events``."""
        try:
            while not stop.is_set():
                number, found = jobs.get_nowait()
                with contextlib.ExitStack() as stack:
                    try:
                        path = stack.enter_context(local_copy(found.path))
                        own_hash = content_hash(os.fsencode(path))
                    except FileNotFoundError:
                        events.put(_Event(number))  # deleted since the scan
                        continue
                    except OSError as error:
                        reason = f"cannot be read: {error.strerror}"
                        events.put(_Event(number, outcome=Outcome("not_a_file", reason, 0.0, 0.0)))
                        continue
                    pieces, outcome = read_file(pool, path, self.model, self.config), None
                    while outcome is None and not stop.is_set():
                        try:
                            events.put(_Event(number, segments=next(pieces)))
                        except StopIteration as end:
                            outcome = end.value
                    events.put(_Event(number, outcome=outcome, content_hash=own_hash))
        except queue.Empty:
            return
        except BaseException as error:  # noqa: BLE001 - the caller must receive a fault of this thread
            events.put(_Event(-1, failure=error))
