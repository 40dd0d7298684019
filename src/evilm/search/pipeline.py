"""Decoding and encoding side by side: files in, finished entries of the catalogue out, in bounded memory.

Each decoder has a thread that hands pictures into a queue of limited length; the caller's thread takes them out,
encodes them in batches that cross files, and gives back each file when all of it is encoded.
"""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from evilm.data.video import DecoderPool, Limits
from evilm.search.decoding import PATIENCE, Outcome, Piece, moments_of
from evilm.search.embedder import unit
from evilm.search.records import Entry
from evilm.search.scan import Found, content_print

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from evilm.search.decoding import DecodeConfig
    from evilm.search.embedder import Embedder

_WAITING = 8  # pieces that may wait to be encoded, whatever their number of files


class _Event(NamedTuple):
    """What a decoder's thread says about the file numbered ``file``."""

    file: int
    piece: Piece | None = None
    outcome: Outcome | None = None
    print: bytes = b""
    failure: BaseException | None = None


@dataclass
class _Open:
    """A file on its way: what is encoded of it so far."""

    found: Found
    spans: list[tuple[float, float]] = field(default_factory=lambda: [])
    vectors: list[NDArray[np.float32]] = field(default_factory=lambda: [])
    last: _Event | None = None

    @property
    def done(self) -> bool:
        return self.last is not None and sum(map(len, self.vectors)) == len(self.spans)

    def entry(self) -> Entry:
        assert self.last is not None
        assert self.last.outcome is not None
        status, reason, duration, _ = self.last.outcome
        whole = bool(self.spans) and status in ("ok", "partial")
        return Entry(
            *self.found, self.last.print, status, reason, duration,
            self.spans if whole else (), np.concatenate(self.vectors) if whole else None,
        )  # fmt: skip


@dataclass
class Pipeline:
    """Files to entries.

    Args:
        model: encodes.
        config: what to decode.
        workers: decoding processes.
        batch: moments that are encoded together.
        limits: what a file may cost.

    Attributes:
        decoding, encoding: seconds spent so far, summed over workers.
    """

    model: Embedder
    config: DecodeConfig
    workers: int = 2
    batch: int = 16
    limits: Limits = PATIENCE
    decoding: float = field(default=0.0, init=False)
    encoding: float = field(default=0.0, init=False)

    def run(self, files: Sequence[Found]) -> Iterator[Entry]:
        """The entry of each file, in the order in which they are finished. A file that vanished gives none."""
        todo: queue.SimpleQueue[tuple[int, Found]] = queue.SimpleQueue()
        for job in enumerate(files):
            todo.put(job)
        events: queue.Queue[_Event] = queue.Queue(_WAITING)
        stop = threading.Event()
        count = max(1, min(self.workers, len(files)))
        pool = DecoderPool(count, self.limits)
        threads = [
            threading.Thread(target=_feed, args=(pool, self.config, todo, events, stop), daemon=True)
            for _ in range(count)
        ]
        for thread in threads:
            thread.start()
        try:
            yield from self._collect(files, events)
        finally:
            stop.set()
            _drain(events, threads)
            pool.close()

    def _collect(self, files: Sequence[Found], events: queue.Queue[_Event]) -> Iterator[Entry]:
        open_files: dict[int, _Open] = {}
        batch: list[tuple[int, NDArray[np.uint8]]] = []
        left = len(files)
        while left:
            event = events.get()
            if event.failure is not None:
                raise event.failure
            own = open_files.setdefault(event.file, _Open(files[event.file]))
            if event.piece is not None:
                own.spans += event.piece.spans
                batch += [(event.file, pixels) for pixels in event.piece.pixels]
            else:
                own.last = event
                left -= 1
                self.decoding += event.outcome.seconds if event.outcome else 0.0
            while len(batch) >= self.batch or (batch and not left):
                self._encode(batch[: self.batch], open_files)
                del batch[: self.batch]
            for number in [n for n, each in open_files.items() if each.done]:
                finished = open_files.pop(number)
                if finished.last is not None and finished.last.outcome is not None:
                    yield finished.entry()

    def _encode(self, batch: list[tuple[int, NDArray[np.uint8]]], open_files: dict[int, _Open]) -> None:
        began = time.perf_counter()
        vectors = unit(self.model.embed_frames(np.stack([pixels for _, pixels in batch])), self.model.fingerprint)
        self.encoding += time.perf_counter() - began
        for (number, _), vector in zip(batch, vectors, strict=True):
            open_files[number].vectors.append(vector[None])


def _feed(
    pool: DecoderPool, config: DecodeConfig, todo: queue.SimpleQueue[tuple[int, Found]], events: queue.Queue[_Event],
    stop: threading.Event,
) -> None:  # fmt: skip
    """Decode files until there are no more; what happens to each goes into ``events``."""
    try:
        while not stop.is_set():
            number, found = todo.get_nowait()
            try:
                mark = content_print(found.path)
            except FileNotFoundError:
                events.put(_Event(number))  # vanished since the scan
                continue
            except OSError as error:
                reason = f"cannot be read: {error.strerror}"
                events.put(_Event(number, outcome=Outcome("not_a_file", reason, 0.0, 0.0)))
                continue
            pieces = moments_of(pool, found.path, config)
            outcome = None
            while outcome is None and not stop.is_set():
                try:
                    events.put(_Event(number, piece=next(pieces)))
                except StopIteration as end:
                    outcome = end.value
            events.put(_Event(number, outcome=outcome, print=mark))
    except queue.Empty:
        return
    except BaseException as error:  # noqa: BLE001 - a fault in this thread must reach the caller, not end in silence
        events.put(_Event(-1, failure=error))


def _drain(events: queue.Queue[_Event], threads: Sequence[threading.Thread]) -> None:
    """Let threads that wait to hand something over come to their end."""
    while any(thread.is_alive() for thread in threads):
        try:
            events.get(timeout=0.05)
        except queue.Empty:
            continue
