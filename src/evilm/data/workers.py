"""Decode ahead of the training loop: worker processes, a prefetching thread, and the limit of unreadable videos."""

from __future__ import annotations

import queue
import threading
import weakref
from collections import deque
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING, Generic, Self, TypeVar

from evilm.data.video import LIMITS, DecoderPool, Limits
from evilm.errors import TooManyBadSamplesError, VideoError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from evilm.data.pixels import Job

    Frames = NDArray[np.uint8]
    Decoder = Callable[[Job], Frames]
    Jobs = queue.PriorityQueue[tuple[bool, int, Job | None, Future[Frames]]]

TIMEOUT = 9.0  # seconds for one sample
T = TypeVar("T")


class Workers:
    """Decode samples ahead in the processes of a ``DecoderPool``.

    Threads of this process wait for the decoder processes. They are daemons, so that a decoder that hangs does not
    keep this process from ending.

    Args:
        count: number of processes, at least 1.
        decoder: makes the frames of a sample; is pickled into the processes.
        timeout: seconds that one sample may take, for frames of at most 1920x1080 pixels.
        limits: limits of each file.
    """

    def __init__(self, count: int, decoder: Decoder, timeout: float = TIMEOUT, limits: Limits = LIMITS) -> None:
        self.pool = DecoderPool(count, replace(limits, timeout=timeout), decoder)
        self._jobs: Jobs = queue.PriorityQueue()
        self._number = 0
        for _ in range(self.pool.count):
            threading.Thread(target=_work, args=(self.pool, self._jobs), name="evilm-decode", daemon=True).start()
        self._finalizer = weakref.finalize(self, _stop, self.pool, self._jobs)

    def close(self) -> None:
        """End the processes; safe to call twice."""
        self._finalizer()

    def submit(self, job: Job, *, first: bool = False) -> Future[Frames]:
        """Request a sample; ``first`` puts it before all that wait.

        Returns:
            a future of its frames (T, size, size, 3) uint8. Its ``result`` raises VideoError if they could not be
            decoded (``crashed`` or ``timeout`` if the process died or hung), and EvilmError if no process starts.
        """
        self._number += 1
        future: Future[Frames] = Future()
        self._jobs.put((not first, self._number, job, future))
        return future

    def map(self, jobs: Iterable[Job | VideoError], ahead: int = 32) -> Iterator[Frames | VideoError]:
        """The frames of each job, or why there are none, in the order of the jobs.

        Args:
            jobs: what to decode; an error, for a clip that is known to be unreadable, is passed through.
            ahead: number of jobs that are requested before they are needed.
        """
        requested: deque[Future[Frames] | VideoError] = deque()
        source = iter(jobs)
        try:
            while True:
                while len(requested) < ahead and (job := next(source, None)) is not None:
                    requested.append(job if isinstance(job, VideoError) else self.submit(job))
                if not requested:
                    return
                result = requested.popleft()
                try:
                    yield result if isinstance(result, VideoError) else result.result()
                except VideoError as error:
                    yield error
        finally:
            for each in requested:
                if isinstance(each, Future):
                    each.cancel()


def _work(pool: DecoderPool, jobs: Jobs) -> None:
    """The life of a thread: take a job, wait for its frames, until there is an empty job."""
    while True:
        _, _, job, future = jobs.get()
        if job is None:
            return
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(pool.decode(job, job.clip.path))
            except BaseException as error:  # noqa: BLE001 - raised again by ``Future.result``
                future.set_exception(error)


def _stop(pool: DecoderPool, jobs: Jobs) -> None:
    """Cancel what waits, end the threads, and kill the processes."""
    while True:
        try:
            jobs.get_nowait()[3].cancel()
        except queue.Empty:
            break
    for number in range(pool.count):
        jobs.put((False, -1 - number, None, Future()))
    pool.close()


class Background(Generic[T]):
    """The items of a generator, made ahead by a thread; its errors are raised by the iteration.

    Args:
        source: is closed by the thread when it ends or when ``close`` is called.
        depth: number of items made ahead, at most.
    """

    def __init__(self, source: Generator[T], depth: int) -> None:
        self._source = source
        self._items: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="evilm-prefetch", daemon=True)
        self._thread.start()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        if self._stop.is_set():
            raise StopIteration
        item, error = self._items.get()
        if item is None:
            self.close()
            raise error or StopIteration
        return item

    def close(self) -> None:
        """End the thread and wait for it; safe to call twice."""
        self._stop.set()
        while self._thread.is_alive():  # it may be waiting for room
            try:
                self._items.get_nowait()
            except queue.Empty:
                self._thread.join(0.01)

    def _run(self) -> None:
        try:
            for item in self._source:
                self._items.put((item, None))
                if self._stop.is_set():
                    break
            self._items.put((None, None))
        except BaseException as error:  # noqa: BLE001 - raised again by the iteration
            self._items.put((None, error))
        finally:
            self._source.close()


def check_bad(problems: Sequence[str], clips: int, max_ratio: float) -> None:
    """Raise if too many videos cannot be read.

    Args:
        problems: one line for each unreadable video.
        clips: number of videos.
        max_ratio: fraction of them that may be unreadable.

    Raises:
        TooManyBadSamplesError: more are unreadable.
    """
    if len(problems) > max_ratio * clips:
        raise TooManyBadSamplesError(
            f"{len(problems)} of {clips} videos cannot be read, more than data.max_bad_ratio = {max_ratio:g} allows: "
            f"repair or remove them, or raise it; the first: {problems[0]}"
        )
