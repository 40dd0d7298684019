"""A decoder process as its parent sees it: requests, answers, time limits and its death."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, cast

from evilm.errors import EvilmError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evilm.data.video.child import Facts
    from evilm.data.video.limits import Limits

_START_SECONDS = 180.0  # on a busy machine a minute is not enough to import numpy
_HEADER = 1 << 16  # bytes of the JSON of an answer, at most
_PIPE = 1 << 20  # bytes that Linux lets a pipe hold
_STARVED = 3  # times the limit that a process may take longer while a busy machine keeps it waiting
# Not `-m`: that would look for modules in the working directory first.
PROGRAM = ("-P", "-c", "from evilm.data.video.child import main; main()")


class ProcessDiedError(EvilmError):
    """A decoder process has ended or its answer cannot be read; the message says how."""


class OutOfTimeError(EvilmError):
    """A decoder process has not answered within the given seconds."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        super().__init__(f"no answer within {seconds:g} s")


class DecoderProcess:
    """A process that runs ``child.main``, for one request at a time.

    Args:
        limits: of each request.
        decoder: decodes the jobs of ``DecoderPool.decode``; pickled.
        program: what Python runs, for tests.

    Raises:
        EvilmError: the process cannot be started.
    """

    def __init__(self, limits: Limits, decoder: bytes = b"", program: Sequence[str] = PROGRAM) -> None:
        self.limits, self.served, self._used = limits, 0, 0.0
        environment = os.environ | {
            # The package that runs here, wherever it was imported from.
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).resolve().parents[3]), *filter(None, sys.path)]),
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "MALLOC_ARENA_MAX": "1",
        }
        try:
            self._process = subprocess.Popen(  # noqa: S603 - this interpreter, with our own program
                [sys.executable, *program],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0,
                env=environment,
            )  # fmt: skip
        except OSError as error:
            raise EvilmError(f"a process that decodes videos cannot be started: {error.strerror}") from None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in, self._out = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._in, False)
        os.set_blocking(self._out, False)
        fcntl.fcntl(self._out, fcntl.F_SETPIPE_SZ, _PIPE)
        try:
            setup = {"limits": dataclasses.asdict(limits)}
            self._exchange(setup, decoder, time.monotonic(), _START_SECONDS)
        except (ProcessDiedError, OutOfTimeError) as error:
            self.kill()
            raise EvilmError(f"a process that decodes videos does not start ({error}): try `evilm env`") from None

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, question: Facts, payload: bytes, timeout: float) -> tuple[Facts, bytearray]:
        """The answer to a request, and its raw bytes.

        Args:
            question: the request.
            payload: its raw bytes.
            timeout: seconds, for frames of at most 1920x1080 pixels.

        Raises:
            ProcessDiedError, OutOfTimeError: the process cannot be used any more; ``kill`` it.
        """
        self.served += 1
        self._used = _seconds_used(self.pid)
        return self._exchange(question | {"timeout": timeout}, payload, time.monotonic(), timeout)

    def end(self) -> None:
        """End the process at once, whatever it is doing; a thread that waits for its answer notices."""
        self._process.kill()
        self._process.wait()

    def kill(self) -> None:
        """End the process and close the pipes; safe to call twice."""
        self.end()
        self.forget()

    def forget(self) -> None:
        """Close this end of the pipes; the process ends when all ends are closed."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()

    # Pipes, with time limits

    def _exchange(self, question: Facts, payload: bytes, began: float, limit: float) -> tuple[Facts, bytearray]:
        text = json.dumps(question | {"bytes": len(payload)}).encode()
        self._write(len(text).to_bytes(4) + text + payload, began, limit)
        timeout = limit
        while True:
            length = int.from_bytes(self._read(4, began, timeout))
            if not 0 < length <= _HEADER:
                raise ProcessDiedError(f"an answer with a header of {length} bytes")
            try:
                facts = cast("Facts", json.loads(self._read(length, began, timeout)))
                size, pixels = int(facts["bytes"]), int(facts.get("frame_pixels", -1))
            except (ValueError, KeyError, TypeError, RecursionError):
                raise ProcessDiedError("an answer that cannot be read") from None
            if pixels >= 0 and not size:  # the file was opened, and large frames get more time
                timeout = limit * self.limits.timeout_factor(pixels)
                continue
            if not 0 <= size <= 2 * self.limits.memory_for(self.limits.max_pixels):
                raise ProcessDiedError(f"an answer of {size} bytes")
            return facts, self._read(size, began, timeout)

    def _read(self, count: int, began: float, limit: float) -> bytearray:
        data = bytearray(count)
        view, done = memoryview(data), 0
        while done < count:
            self._wait(self._out, select.POLLIN, began, limit)
            try:
                now = os.readv(self._out, [view[done:]])
            except BlockingIOError:
                continue
            if not now:
                raise ProcessDiedError(self._exit_reason())
            done += now
        return data

    def _write(self, data: bytes, began: float, limit: float) -> None:
        left = memoryview(data)
        while left:
            self._wait(self._in, select.POLLOUT, began, limit)
            try:
                left = left[os.write(self._in, left) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                raise ProcessDiedError(self._exit_reason()) from None

    def _wait(self, descriptor: int, event: int, began: float, limit: float) -> None:
        poll = select.poll()
        poll.register(descriptor, event)
        while not poll.poll(min(max(0.0, began + limit - time.monotonic()), 1.0) * 1000):
            late = time.monotonic() - began - limit
            if late >= 0 and not (late < _STARVED * limit and self._is_starved(limit)):
                raise OutOfTimeError(limit)
            if late >= 0:
                time.sleep(0.1)

    def _is_starved(self, limit: float) -> bool:
        """Whether the process would work, but a busy machine has given it less than half of its time."""
        fields = _stat(self.pid)
        return bool(fields) and fields[0] in ("R", "D") and _seconds_used(self.pid) - self._used < limit / 2

    def _exit_reason(self) -> str:
        try:
            code = self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            return "the decoder has closed its pipe"
        if code >= 0:
            return f"the decoder has ended with exit code {code}"
        try:
            return f"the decoder has died of {signal.Signals(-code).name}"
        except ValueError:
            return f"the decoder has died of signal {-code}"


def _seconds_used(pid: int) -> float:
    """Processor time of a process so far."""
    fields = _stat(pid)
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK") if fields else 0.0


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; empty if the process or /proc does not exist."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    except (OSError, ValueError):
        return []
