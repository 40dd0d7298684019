"""Scans of folders, in a process of their own: stopping or killing it leaves the index whole.

``python -m evilm.server.scans`` is that process: it brings an index up to date and prints a line of JSON for each
commit.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

from evilm.errors import EvilmError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

State = Literal["running", "stopping", "done", "stopped", "failed"]


@dataclass
class Scan:
    """A scan of a folder.

    Attributes:
        id: its number, as a string.
        state: ``running``, ``stopping``, ``done``, ``stopped`` or ``failed``.
        folder: name of the folder, for people.
        done, total: files.
        rate: files a second.
        seconds_left: estimate; None before it is known.
        added, changed, removed, unreadable: files.
        message: why it failed.
    """

    id: str
    folder: str
    state: State = "running"
    done: int = 0
    total: int = 0
    rate: float = 0.0
    seconds_left: float | None = None
    added: int = 0
    changed: int = 0
    removed: int = 0
    unreadable: int = 0
    message: str = ""


class Scans:
    """Runs one scan at a time.

    Args:
        index: folder of the index.
        notify: called with the scan at each change, from a thread.
    """

    def __init__(self, index: Path, notify: Callable[[Scan], None]) -> None:
        self.index, self.notify = index, notify
        self.current: Scan | None = None
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()
        self._count = 0

    @property
    def running(self) -> bool:
        return self.current is not None and self.current.state in ("running", "stopping")

    def start(self, folder: Path, model: str | None, *, pictures: bool | None = None) -> Scan | None:
        """Start a scan; None if one is running."""
        with self._lock:
            if self.running:
                return None
            self._count += 1
            self.current = scan = Scan(str(self._count), folder.name or str(folder))
            words = [sys.executable, "-m", "evilm.server.scans", str(self.index), str(folder), model or ""]
            words += [] if pictures is None else [str(pictures)]
            self._process = subprocess.Popen(  # noqa: S603, our own program; the folder is one argument
                words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                start_new_session=True,
            )  # fmt: skip
        threading.Thread(target=self._follow, args=(scan, self._process), daemon=True).start()
        self.notify(scan)
        return scan

    def stop(self, wait: float = 0.0) -> None:
        """Ask the scan to stop after the files in work; kill it if it has not ended after ``wait`` seconds."""
        with self._lock:
            process, scan = self._process, self.current
        if process is None or scan is None or process.poll() is not None:
            return
        scan.state = "stopping"
        self.notify(scan)
        process.send_signal(signal.SIGINT)
        if wait:
            try:
                process.wait(wait)
            except subprocess.TimeoutExpired:
                process.kill()

    def _follow(self, scan: Scan, process: subprocess.Popen[str]) -> None:
        began = time.monotonic()
        assert process.stdout is not None
        for line in process.stdout:
            try:
                values = json.loads(line)
            except ValueError:
                continue
            for name, value in values.items():
                if name in Scan.__dataclass_fields__:
                    setattr(scan, name, value)
            spent = time.monotonic() - began
            scan.rate = scan.done / spent if spent > 0 else 0.0
            scan.seconds_left = (scan.total - scan.done) / scan.rate if scan.rate else None
            self.notify(scan)
        code = process.wait()
        if code == 0:
            scan.state = "done"
        elif scan.state == "stopping" or code in (130, -signal.SIGINT, -signal.SIGTERM):
            scan.state = "stopped"
        else:
            scan.state = "failed"
            scan.message = scan.message or "the process of the scan ended unexpectedly; what it committed is kept"
        scan.seconds_left = 0.0
        self.notify(scan)


def as_json(scan: Scan | None) -> dict[str, object] | None:
    """The scan for the interface."""
    return None if scan is None else asdict(scan)


def main(index: str, folder: str, model: str, pictures: str | None = None) -> int:
    """Bring an index up to date and print progress as lines of JSON; the exit code."""
    from evilm.search.index import VideoIndex

    def show(values: dict[str, object]) -> None:
        sys.stdout.write(json.dumps(values) + "\n")
        sys.stdout.flush()

    try:
        with VideoIndex.build(
            folder, model or None, index, pictures=None if pictures is None else pictures == "True",
            on_commit=lambda _, done, total: show({"done": done, "total": total}),
        ) as built:  # fmt: skip
            report = built.report
        if report is not None:
            show({
                "added": report.new, "changed": report.changed, "removed": report.deleted,
                "unreadable": len(report.unreadable),
            })  # fmt: skip
    except EvilmError as error:
        show({"message": " ".join(str(error).split())})
        return 2
    except (KeyboardInterrupt, BrokenPipeError):  # stopped, or the server is gone
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:5]))
