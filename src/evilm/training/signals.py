"""Ctrl-C and SIGTERM: an exception before and after training, a request to save and stop during training."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

from evilm import distributed

if TYPE_CHECKING:
    from collections.abc import Generator
    from types import FrameType


class Signals:
    """While entered, both signals raise ``KeyboardInterrupt``; inside ``gently`` the first one sets ``stop`` instead.

    A second signal raises at once, except under torchrun: it forwards the terminal's signal a second time, and ends
    processes that do not stop within half a minute.
    """

    def __init__(self) -> None:
        self.stop = threading.Event()
        self._gentle = False
        self._before: dict[int, Any] = {}
        self._inside = 0

    def __enter__(self) -> Self:
        self._inside += 1
        if self._inside == 1 and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        self._inside -= 1
        if self._inside == 0:
            for number, handler in self._before.items():
                signal.signal(number, handler)
            self._before.clear()

    @contextmanager
    def gently(self) -> Generator[None]:
        """Inside, a signal asks for a stop at the next step."""
        self._gentle = True
        try:
            yield
        finally:
            self._gentle = False

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if not self._gentle or (self.stop.is_set() and not distributed.launched()):
            raise KeyboardInterrupt
        self.stop.set()
