"""A decoder process, as its parent sees it: a question, and an answer, its death, or the end of one's patience."""

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
from typing import TYPE_CHECKING, Any, cast

from evilm.data.video.starvation import STARVED, seconds_used, starves
from evilm.errors import EvilmError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evilm.data.video.limits import Limits

Facts = dict[str, Any]

_START_SECONDS = 180.0  # on a busy machine a minute is not enough to import numpy
_HEADER = 1 << 16  # bytes: an answer is a status, a line, a shape
_PIPE = 1 << 20  # bytes that Linux lets a pipe hold
# Not `-m`: that would look for modules in the working directory first.
PROGRAM = ("-P", "-c", "from evilm.data.video.child import main; main()")


class ProcessDied(Exception):  # noqa: N818 - not an error of its own: the pool makes a status of it
    """The process has ended, or answers what no decoder process answers; ``str`` says how."""


class OutOfTime(Exception):  # noqa: N818 - the same
    """The process has not answered in time."""


class DecoderProcess:
    """One process that runs ``child``; for one question at a time.

    Args:
        limits: of each question.
        program: what Python is to run, for tests.

    Raises:
        EvilmError: Python cannot be started, or not with what it needs.
    """

    def __init__(self, limits: Limits, program: Sequence[str] = PROGRAM) -> None:
        self.limits = limits
        self.served, self._used = 0, 0.0
        environment = os.environ | {
            # The package that runs here, wherever it was imported from.
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).resolve().parents[3]), *filter(None, sys.path)]),
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "MALLOC_ARENA_MAX": "1",
        }
        try:
            self._process = subprocess.Popen(  # noqa: S603 - this interpreter, with our own program
                [sys.executable, *program, json.dumps(dataclasses.asdict(limits))],
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
            self._read_answer(time.monotonic() + _START_SECONDS)
        except (ProcessDied, OutOfTime) as error:
            self.kill()
            why = str(error) or "no answer"
            raise EvilmError(f"a process that decodes videos does not start ({why}): try `evilm env`") from None

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, question: Facts) -> tuple[Facts, bytearray]:
        """The answer to a question, and its pixels.

        Raises:
            ProcessDied, OutOfTime: the process is of no more use; ``kill`` it.
        """
        until = time.monotonic() + self.limits.timeout
        self._used = seconds_used(self.pid)
        self.served += 1
        text = json.dumps(question).encode()
        self._write(len(text).to_bytes(4) + text, until)
        return self._read_answer(until)

    def kill(self) -> None:
        """End the process at once, whatever it is doing; safe to call twice."""
        self._process.kill()
        self._process.wait()
        self.forget()

    def forget(self) -> None:
        """Close this end of the pipes; the process, if it lives, ends when all ends are closed."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()

    # Pipes, with an eye on the clock

    def _read_answer(self, until: float) -> tuple[Facts, bytearray]:
        length = int.from_bytes(self._read(4, until))
        if not 0 < length <= _HEADER:
            raise ProcessDied(f"an answer with a header of {length} bytes")
        try:
            facts = json.loads(self._read(length, until))
            size = int(facts["bytes"])
        except (ValueError, KeyError, TypeError):
            raise ProcessDied("an answer that cannot be read") from None
        if not 0 <= size <= 2 * self.limits.memory:
            raise ProcessDied(f"an answer of {size} bytes")
        return cast("Facts", facts), self._read(size, until)

    def _read(self, count: int, until: float) -> bytearray:
        data = bytearray(count)
        view, got = memoryview(data), 0
        while got < count:
            self._wait(self._out, select.POLLIN, until)
            try:
                now = os.readv(self._out, [view[got:]])
            except BlockingIOError:
                continue
            if not now:
                raise ProcessDied(self._last_words())
            got += now
        return data

    def _write(self, data: bytes, until: float) -> None:
        left = memoryview(data)
        while left:
            self._wait(self._in, select.POLLOUT, until)
            try:
                left = left[os.write(self._in, left) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                raise ProcessDied(self._last_words()) from None

    def _wait(self, descriptor: int, event: int, until: float) -> None:
        poll = select.poll()
        poll.register(descriptor, event)
        while not poll.poll(min(max(0.0, until - time.monotonic()), 1.0) * 1000):
            late, limit = time.monotonic() - until, self.limits.timeout
            if late >= 0 and not (late < STARVED * limit and starves(self.pid, self._used, limit)):
                raise OutOfTime
            if late >= 0:
                time.sleep(0.1)

    def _last_words(self) -> str:
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
