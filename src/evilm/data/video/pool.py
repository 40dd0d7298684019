"""A pool of decoder processes: the functions of ``reader`` and ``clips`` for files from unknown sources."""

from __future__ import annotations

import itertools
import math
import os
import pickle
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np

from evilm.data import sampling
from evilm.data.video.check import STATUSES, Finding
from evilm.data.video.clips import VideoFacts
from evilm.data.video.limits import LIMITS
from evilm.data.video.process import PROGRAM, DecoderProcess, OutOfTimeError, ProcessDiedError
from evilm.errors import DataError, VideoError
from evilm.files import write_atomic

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from evilm.data.video.child import Facts
    from evilm.data.video.limits import Fit, Limits, Mode
    from evilm.errors import VideoStatus
    from evilm.types import Clip

_REQUESTS = 20_000  # after which a process is replaced, because libraries may leak memory


class DecoderPool:
    """Processes that decode video files, each of which may crash or hang without harm to this one.

    A process starts when it is first needed and stays for the next request. One that crashes, hangs or takes too much
    memory costs the file that caused it, and is replaced. A crash is only blamed on a file if it happens again in a
    fresh process, because an earlier file, or the system, may have caused the first one.

    Any number of threads may send requests; ``count`` of them are answered at the same time. After a fork, the copy in
    the child starts processes of its own.

    Args:
        count: number of processes, at most.
        limits: limits of each file.
        decoder: decodes the jobs of ``decode``.
        program: what the processes run, for tests.
    """

    def __init__(
        self, count: int = 1, limits: Limits = LIMITS, decoder: Callable[[Any], NDArray[np.uint8]] | None = None,
        program: Sequence[str] = PROGRAM,
    ) -> None:  # fmt: skip
        self.count, self.limits, self.program = max(1, count), limits, tuple(program)
        self._decoder = b"" if decoder is None else pickle.dumps(decoder)
        self._prepare()

    def _prepare(self) -> None:
        self._owner = os.getpid()
        self._turn = threading.Semaphore(self.count)
        self._idle: list[DecoderProcess] = []
        self._busy: set[DecoderProcess] = set()
        self._closings = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_idle"):
            self.close()

    def close(self) -> None:
        """End all processes; requests that are in work fail, and a later request starts new processes."""
        self._check_owner()
        self._closings += 1
        while self._idle:
            self._idle.pop().kill()
        for process in list(self._busy):
            process.end()

    @property
    def processes(self) -> list[int]:
        """Ids of the running processes."""
        return [process.pid for process in [*self._idle, *self._busy]]

    def read(
        self, clip: Clip, count: int, size: int, rng: np.random.Generator | None = None,
        mode: Mode = "exact", fit: Fit = "crop",
    ) -> NDArray[np.uint8]:  # fmt: skip
        """``read_clip``, with the same pixels for the same ``rng``: (T, size, size, 3) uint8 RGB.

        Raises:
            VideoError: as ``read_clip``, and ``timeout`` and ``crashed``; so do the other functions.
        """
        within = sampling.draw_positions(count, rng).tolist()
        question = {"ask": "clip", "start": clip.start, "end": clip.end, "frames": clip.frames, "within": within}
        return self._pixels(clip.path, question | {"size": size, "mode": mode, "fit": fit})

    def frames_at(
        self, path: Path, times: Sequence[float] | NDArray[np.float64], mode: Mode = "exact",
        size: int | None = None, fit: Fit = "crop",
    ) -> NDArray[np.uint8]:  # fmt: skip
        """``VideoReader.frames_at`` of a file: (T, H, W, 3) uint8 RGB."""
        seconds = np.asarray(times, dtype=np.float64).tolist()
        return self._pixels(path, {"ask": "frames", "times": seconds, "size": size, "mode": mode, "fit": fit})

    def decode(self, job: Any, path: Path) -> NDArray[np.uint8]:
        """The frames that the pool's ``decoder`` makes of ``job``.

        Args:
            job: the argument of ``decoder``.
            path: the video, for error messages.

        Raises:
            DataError: the decoder raises another error than a VideoError.
        """
        return self._pixels(path, {"ask": "decode"}, pickle.dumps(job))

    def read_picture(self, path: Path, size: int | None, fit: Fit = "crop") -> NDArray[np.uint8]:
        """``clips.read_picture``: a still picture as a clip of one frame, (1, H, W, 3) uint8 RGB."""
        return self._pixels(path, {"ask": "picture", "size": size, "fit": fit})

    def duration(self, path: Path) -> float:
        """``VideoReader.duration`` of a file, in seconds."""
        facts, _ = self._ask(path, {"ask": "duration"})
        seconds = facts.get("seconds")
        if not isinstance(seconds, float) or not 0 <= seconds < math.inf:
            raise VideoError(path, "crashed", "the decoder answers no length")
        return seconds

    def check(self, path: Path) -> Finding:
        """The status of a file, whatever it does to its process."""
        try:
            facts, _ = self._ask(path, {"ask": "check"})
        except VideoError as error:
            return Finding(error.status, error.reason)
        return Finding(facts["status"], str(facts.get("reason", "")))

    def describe(self, path: Path) -> VideoFacts:
        """``clips.describe``: what a player needs to know about a video."""
        try:
            facts = cast("Facts", self._ask(path, {"ask": "describe"})[0]["facts"])
            sound = facts["audio_codec"] and str(facts["audio_codec"])
            return VideoFacts(
                int(facts["width"]), int(facts["height"]), str(facts["codec"]), str(facts["pixel_format"]),
                str(facts["container"]), float(facts["seconds"]), float(facts["frame_rate"]), sound,
            )  # fmt: skip
        except (KeyError, TypeError, ValueError, OverflowError):
            raise VideoError(path, "crashed", "the decoder answers no facts") from None

    def thumbnails(self, path: Path, times: Sequence[float], height: int) -> list[bytes]:
        """``clips.thumbnails``: the frames on screen at ``times`` (seconds) as JPEGs of ``height`` pixels."""
        return self._files(path, {"ask": "thumbnails", "times": list(times), "height": height})

    def cut(
        self, path: Path, out: Path, start: float = 0.0, end: float | None = None, height: int | None = None, *,
        exact: bool = False, timeout: float | None = None,
    ) -> None:  # fmt: skip
        """Write a part of a video to ``out`` as an MP4 file that browsers play; see ``clips.cut``.

        Args:
            path: a video file.
            out: the file to write; it is replaced only by a complete one.
            start, end: seconds; ``end`` None for the end of the video.
            height: pixels, at most; None keeps the height.
            exact: begin exactly at ``start``, also if the video has to be encoded again for that.
            timeout: seconds; None takes those of ``limits``.

        Raises:
            OSError: ``out`` cannot be written.
        """
        question = {"ask": "cut", "start": start, "end": end, "height": height, "exact": exact}
        write_atomic(out, self._files(path, question, timeout))

    # Requests

    def _files(self, path: Path, question: Facts, timeout: float | None = None) -> list[bytes]:
        facts, raw = self._ask(path, question, timeout=timeout)
        try:
            ends = np.cumsum([int(size) for size in facts["sizes"]]).tolist()
        except (KeyError, TypeError, ValueError):
            raise VideoError(path, "crashed", "the decoder answers no files") from None
        return [bytes(raw[begin:end]) for begin, end in itertools.pairwise([0, *ends])]

    def _pixels(self, path: Path, question: Facts, payload: bytes = b"") -> NDArray[np.uint8]:
        facts, pixels = self._ask(path, question, payload)
        try:
            return np.frombuffer(pixels, dtype=np.uint8).reshape([int(side) for side in facts["shape"]])
        except (KeyError, TypeError, ValueError):
            raise VideoError(path, "crashed", "the decoder answers pixels of another shape than it states") from None

    def _ask(
        self, path: Path, question: Facts, payload: bytes = b"", timeout: float | None = None
    ) -> tuple[Facts, bytearray]:
        self._check_owner()
        with self._turn:
            question = question | {"path": os.fspath(Path(path).absolute())}
            facts, raw = self._answer(path, question, payload, timeout or self.limits.timeout)
        status = facts.get("status")
        if isinstance(facts.get("error"), str):
            raise DataError(facts["error"])
        if status not in STATUSES:
            raise VideoError(path, "crashed", f"the decoder answers the status {status!r}")
        if status not in ("ok", "partial"):
            raise VideoError(path, cast("VideoStatus", status), str(facts.get("reason", "")))
        return facts, raw

    def _answer(self, path: Path, question: Facts, payload: bytes, timeout: float) -> tuple[Facts, bytearray]:
        """The answer of a process; if it dies, the answer of a fresh one."""
        closings, crashed = self._closings, False
        while True:
            fresh = crashed or not self._idle
            process = DecoderProcess(self.limits, self._decoder, self.program) if fresh else self._idle.pop()
            self._busy.add(process)
            try:
                facts, raw = process.ask(question, payload, timeout)
            except OutOfTimeError as error:
                process.kill()
                reason = f"not decoded within {error.seconds:.3g} s; --timeout (data.timeout in training) allows more"
                raise VideoError(path, "timeout", reason) from None
            except ProcessDiedError as error:
                process.kill()
                if crashed or self._closings != closings:
                    raise VideoError(path, "crashed", str(error)) from None
                crashed = True
                continue
            except BaseException:  # Ctrl-C: the answer that is still to come would be taken for the next one's
                process.kill()
                raise
            finally:
                self._busy.discard(process)
            if facts.get("spent") or process.served >= _REQUESTS or self._closings != closings:
                process.kill()
            else:
                self._idle.append(process)
            return facts, raw

    def _check_owner(self) -> None:
        """After a fork the processes belong to the parent: forget them and start new ones."""
        if os.getpid() != self._owner:
            for process in [*self._idle, *self._busy]:
                process.forget()
            self._prepare()
