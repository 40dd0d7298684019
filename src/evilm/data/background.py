"""An iterator that a thread runs ahead of whoever reads it."""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING, Generic, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Generator

T = TypeVar("T")


class Background(Generic[T]):
    """The items of a generator, made by a thread, at most ``depth`` of them ahead; its errors are raised here.

    Args:
        source: closed by the thread, when it ends or when ``close`` is called.
        depth: items that wait.
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
        if error is not None:
            self.close()
            raise error
        if item is None:
            self.close()
            raise StopIteration
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
        except BaseException as error:  # noqa: BLE001, raised again where the items are read
            self._items.put((None, error))
        finally:
            self._source.close()
