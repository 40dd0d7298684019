"""Decoding where it can be killed: long-lived processes that answer for files nobody vouches for."""

from __future__ import annotations

import math
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np

from evilm.data import frames as sampling
from evilm.data.video.check import STATUSES, Finding
from evilm.data.video.limits import LIMITS
from evilm.data.video.process import PROGRAM, DecoderProcess, OutOfTime, ProcessDied
from evilm.errors import VideoError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from evilm.data.video.limits import Fit, Limits, Mode
    from evilm.errors import VideoStatus
    from evilm.types import Clip

_QUESTIONS = 5000  # after so many a process is replaced, whatever libraries may have left lying about


class DecoderPool:
    """``read_clip``, ``frames_at`` and ``check`` in decoder processes.

    A process starts when it is first needed and stays for the next question. One that crashes, hangs or takes too much
    memory costs the file that did it, and nothing else: it is replaced. A file is only blamed for a crash that happens
    again in a fresh process, as an earlier file may have left the damage.

    Any number of threads may ask; so many are answered at once as there are processes. A copy that is pickled into
    another process, or that a fork brings there, starts processes of its own.

    Args:
        count: processes at most.
        limits: of each file.
        program: what the processes run, for tests.
    """

    def __init__(self, count: int = 1, limits: Limits = LIMITS, program: Sequence[str] = PROGRAM) -> None:
        self.count, self.limits, self.program = max(1, count), limits, tuple(program)
        self._prepare()

    def _prepare(self) -> None:
        self._owner = os.getpid()
        self._turn = threading.Semaphore(self.count)
        self._idle: list[DecoderProcess] = []

    def __getstate__(self) -> tuple[int, Limits, tuple[str, ...]]:
        return self.count, self.limits, self.program

    def __setstate__(self, state: tuple[int, Limits, tuple[str, ...]]) -> None:
        self.count, self.limits, self.program = state
        self._prepare()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_idle"):
            self.close()

    def close(self) -> None:
        """End the idle processes; a later question starts new ones."""
        self._check_owner()
        while self._idle:
            self._idle.pop().kill()

    @property
    def processes(self) -> list[int]:
        """Ids of the processes that wait for a question."""
        return [process.pid for process in self._idle]

    def read(
        self, clip: Clip, count: int, size: int, rng: np.random.Generator | None = None,
        mode: Mode = "exact", fit: Fit = "crop",
    ) -> NDArray[np.uint8]:  # fmt: skip
        """``read_clip``, with the same pixels for the same ``rng``: (T, size, size, 3) uint8 RGB.

        Raises:
            VideoError: as ``read_clip``, and ``timeout`` and ``crashed``.
        """
        within = sampling.draw(count, rng).tolist()
        question = {"ask": "clip", "start": clip.start, "end": clip.end, "frames": clip.frames, "within": within}
        return self._pixels(clip.path, question | {"size": size, "mode": mode, "fit": fit})

    def frames_at(
        self, path: Path, times: Sequence[float] | NDArray[np.float64], mode: Mode = "exact",
        size: int | None = None, fit: Fit = "crop",
    ) -> NDArray[np.uint8]:  # fmt: skip
        """``VideoReader.frames_at`` of a file: (T, H, W, 3) uint8 RGB.

        Raises:
            VideoError: as ``VideoReader``, and ``timeout`` and ``crashed``.
        """
        moments = np.asarray(times, dtype=np.float64).tolist()
        return self._pixels(path, {"ask": "frames", "times": moments, "size": size, "mode": mode, "fit": fit})

    def duration(self, path: Path) -> float:
        """``VideoReader.duration`` of a file, in seconds.

        Raises:
            VideoError: as ``VideoReader``, and ``timeout`` and ``crashed``.
        """
        facts, _ = self._ask(path, {"ask": "duration"})
        seconds = facts.get("seconds")
        if not isinstance(seconds, float) or not 0 <= seconds < math.inf:
            raise _crashed(path, "the decoder answers no length")
        return seconds

    def check(self, path: Path) -> Finding:
        """One status for a file, whatever it does."""
        try:
            facts, _ = self._ask(path, {"ask": "check"})
        except VideoError as error:
            return Finding(error.status, error.reason)
        return Finding(facts["status"], str(facts.get("reason", "")))

    # Asking

    def _pixels(self, path: Path, question: dict[str, Any]) -> NDArray[np.uint8]:
        facts, pixels = self._ask(path, question)
        try:
            return np.frombuffer(pixels, dtype=np.uint8).reshape([int(side) for side in facts["shape"]])
        except (KeyError, TypeError, ValueError):
            raise _crashed(path, "the decoder answers pixels of another shape than it says") from None

    def _ask(self, path: Path, question: dict[str, Any]) -> tuple[dict[str, Any], bytearray]:
        self._check_owner()
        with self._turn:
            facts, pixels = self._answer(path, question | {"path": os.fspath(Path(path).absolute())})
        status = facts.get("status")
        if status not in STATUSES:
            raise _crashed(path, f"the decoder answers the status {status!r}")
        if status not in ("ok", "partial"):
            raise VideoError(path, cast("VideoStatus", status), str(facts.get("reason", "")))
        return facts, pixels

    def _answer(self, path: Path, question: dict[str, Any]) -> tuple[dict[str, Any], bytearray]:
        """What a process answers; where it was not fresh and dies, what a fresh one does."""
        while True:
            process = self._idle.pop() if self._idle else DecoderProcess(self.limits, self.program)
            try:
                facts, pixels = process.ask(question)
            except OutOfTime:
                process.kill()
                raise VideoError(path, "timeout", f"not decoded within {self.limits.timeout:g} s") from None
            except ProcessDied as error:
                process.kill()
                if process.served == 1:
                    raise _crashed(path, str(error)) from None
                continue
            except BaseException:  # Ctrl-C: its answer is still to come, and would be taken for the next one's
                process.kill()
                raise
            if facts.get("spent") or process.served >= _QUESTIONS:
                process.kill()
            else:
                self._idle.append(process)
            return facts, pixels

    def _check_owner(self) -> None:
        """After a fork the processes are the parent's: let go of them, and start anew."""
        if os.getpid() != self._owner:
            for process in self._idle:
                process.forget()
            self._prepare()


def _crashed(path: Path, how: str) -> VideoError:
    return VideoError(path, "crashed", how)
