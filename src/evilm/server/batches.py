"""A thread that takes all work that waits at a moment as one batch, with a bounded queue in front of it."""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")
R = TypeVar("R")


class BusyError(Exception):
    """More work waits than the server takes, or the server stops."""


class Batches(Generic[T, R]):
    """Work that is done in batches by one thread, in the order in which it came.

    If a batch fails, each of its items is done alone, so that one wrong item fails alone.

    Args:
        work: gives the results of some items.
        name: of the thread.
        size: items of a batch at most.
        waiting: items that wait at most.

    Attributes:
        batches, items: that were taken from the queue so far.
    """

    def __init__(self, work: Callable[[Sequence[T]], Sequence[R]], name: str, size: int, waiting: int) -> None:
        self.batches = 0
        self.items = 0
        self._work, self._size, self._most = work, size, waiting
        self._waiting: deque[tuple[T, Future[R]]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, item: T) -> Future[R]:
        """Put an item into the queue.

        Raises:
            BusyError: the queue is full or closed.
        """
        future: Future[R] = Future()
        with self._changed:
            if self._closed or len(self._waiting) >= self._most:
                raise BusyError
            self._waiting.append((item, future))
            self._changed.notify()
        return future

    def close(self, seconds: float = 10.0) -> None:
        """Take no more items, and wait until those that wait are done; safe to call twice."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(seconds)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._closed):
                    self._changed.wait()
                if not self._waiting:
                    return
                taken = [self._waiting.popleft() for _ in range(min(self._size, len(self._waiting)))]
            self.batches += 1
            self.items += len(taken)
            # An item whose asker has gone is not done; the others can no longer be cancelled.
            self._do([(item, future) for item, future in taken if future.set_running_or_notify_cancel()])

    def _do(self, batch: Sequence[tuple[T, Future[R]]]) -> None:
        if not batch:
            return
        try:
            results = self._work([item for item, _ in batch])
        except Exception as error:  # noqa: BLE001, whoever submitted the item gets it
            if len(batch) == 1:
                batch[0][1].set_exception(error)
                return
            for each in batch:
                self._do([each])
            return
        for (_, future), result in zip(batch, results, strict=True):
            future.set_result(result)
