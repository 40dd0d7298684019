"""Progress of long work: done, rate, time left. A live bar on a terminal, a line every 15 seconds elsewhere."""

from __future__ import annotations

import math
import os
import time
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.progress import TaskID

QUIET_SECONDS = 15.0  # between two lines without a terminal


class Meter:
    """A progress bar, as a context manager.

    Args:
        label: of the work.
        total: number of units.
        unit: name of the units.
        done: units that were done before (a resumed run).
    """

    def __init__(self, label: str, total: int, unit: str = "steps", done: int = 0) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.console = Console(stderr=True)
        self.first = self.done = done
        self.began = self.printed = time.monotonic()
        self._quiet = int(os.environ.get("RANK", "0")) > 0  # rank 0 prints
        self._bar: Progress | None = None
        self._row: TaskID | None = None

    def __enter__(self) -> Self:
        if self.console.is_terminal and not self._quiet:
            before, after = TextColumn("{task.description}"), TextColumn("{task.fields[note]}")
            self._bar = Progress(before, BarColumn(bar_width=24), MofNCompleteColumn(), after, console=self.console)
            self._bar.start()
            self._row = self._bar.add_task(self.label, total=self.total, completed=self.done, note="")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self.done > self.first:
            self._print(f"{self.done}/{self.total} {self.unit} in {clock(time.monotonic() - self.began)}")

    def update(self, done: int, note: str = "") -> None:
        """Show that ``done`` units are done; ``note`` is added at the end of the line."""
        self.done = done
        now = time.monotonic()
        rate = (done - self.first) / max(1e-9, now - self.began)
        left = clock((self.total - done) / rate) if rate > 0 else "?"
        text = f"{rate:.1f} {self.unit}/s, {left} left" + (f", {note}" if note else "")
        if self._bar is not None and self._row is not None:
            self._bar.update(self._row, completed=done, total=self.total, note=text)
        elif now - self.printed >= QUIET_SECONDS:
            self.printed = now
            self._print(f"{done}/{self.total} {self.unit}, {text}")

    def _print(self, text: str) -> None:
        if not self._quiet:
            self.console.print(f"{self.label}: {text}", highlight=False, soft_wrap=True, markup=False)


def say(text: str) -> None:
    """Print a line on stderr, from rank 0 only."""
    if int(os.environ.get("RANK", "0")) == 0:
        Console(stderr=True).print(text, highlight=False, soft_wrap=True, markup=False)


def spark(values: Sequence[float], width: int = 20) -> str:
    """The latest values as a line of small bars, to show a curve beside a progress bar."""
    shown = [value for value in values if math.isfinite(value)][-width:]
    if not shown:
        return ""
    low, high = min(shown), max(shown)
    return "".join("▁▂▃▄▅▆▇█"[round(7 * (value - low) / (high - low))] if high > low else "▄" for value in shown)


def clock(seconds: float) -> str:
    """Seconds as 1:02:03 or 2:03."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
