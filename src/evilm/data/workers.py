"""Processes that decode, each of which may die or hang without harm to the run.

A process works on one sample at a time and writes its frames into memory that it shares with the loader; only a few
bytes go through its pipe, so that the loader can never be caught reading half a message. A process that takes longer
than its limit (``timeout``) is killed and replaced, and only the sample that it was at is lost. One that dies is
replaced, too, and the sample is lost (``crashed``) only where a second process dies of it: the system may have killed
the first. ``worker_process`` is what they run.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
import weakref
from collections import deque
from dataclasses import dataclass, field
from multiprocessing import connection
from typing import TYPE_CHECKING, Literal

import numpy as np

from evilm.data.video import LIMITS, Limits
from evilm.data.video.starvation import STARVED, seconds_used, starves
from evilm.data.worker_process import ANSWER, SLOTS, Memory, heard, serve, shared
from evilm.errors import DataError, EvilmError, VideoError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from multiprocessing.connection import Connection
    from multiprocessing.context import SpawnProcess

    from numpy.typing import NDArray

    from evilm.data.pixels import Job, Work

TIMEOUT = 9.0  # seconds for one sample
_START = 300.0  # seconds for a process to begin: it may import a script of the user's, on a machine that is busy
_LOOK = 0.05  # seconds between looks at a process that is over its time
_STILLBORN = 3  # processes that may die before they begin
_MEMFD = getattr(os, "memfd_create", None)  # Linux has it


@dataclass
class _Worker:
    """A process, its pipe, its memory, and the tickets that it holds, the first of which it works on."""

    process: SpawnProcess
    pipe: Connection
    memory: NDArray[np.uint8]
    ready: bool = False
    held: deque[tuple[int, int]] = field(default_factory=deque[tuple[int, int]])  # (ticket, slot)
    deadline: float = 0.0
    used: float = 0.0  # processor time before the sample that it works on


class Workers:
    """Decode samples in other processes; results by ticket, in whatever order they are asked for.

    Args:
        count: processes, at least 1.
        decoding: how samples become frames.
        timeout: seconds that one sample may take.
        limits: what a process may take beyond what it starts with.
    """

    def __init__(self, count: int, decoding: Work, timeout: float = TIMEOUT, limits: Limits = LIMITS) -> None:
        self.decoding, self.timeout, self.limits = decoding, timeout, limits
        self._workers: list[_Worker] = []
        self._jobs: dict[int, Job] = {}
        self._waiting: deque[int] = deque()
        self._done: dict[int, NDArray[np.uint8] | EvilmError] = {}
        self._forgotten: set[int] = set()
        self._suspects: set[int] = set()  # tickets over which a process has died
        self._next, self._stillborn = 0, 0
        self._finalizer = weakref.finalize(self, _stop, self._workers)
        for _ in range(max(1, count)):
            self._workers.append(self._start())

    def close(self) -> None:
        """End the processes; safe to call twice."""
        self._finalizer()

    @property
    def processes(self) -> list[int]:
        """Their ids."""
        return [worker.process.pid or 0 for worker in self._workers]

    def submit(self, job: Job, *, first: bool = False) -> int:
        """Ask for a sample; its ticket. ``first`` puts it before all that waits."""
        ticket, self._next = self._next, self._next + 1
        self._jobs[ticket] = job
        (self._waiting.appendleft if first else self._waiting.append)(ticket)
        self._hand_out()
        return ticket

    def take(self, ticket: int) -> NDArray[np.uint8]:
        """The frames of a ticket, (T, size, size, 3), waited for.

        Raises:
            VideoError: they could not be decoded, or the process died (``crashed``) or hung (``timeout``) over them.
            EvilmError: processes cannot even be started, or the sample is none that there could be frames of.
        """
        while ticket not in self._done:
            self._attend()
        found = self._done.pop(ticket)
        if isinstance(found, EvilmError):
            raise found
        return found

    def map(self, jobs: Iterable[Job | VideoError], ahead: int = 32) -> Iterator[NDArray[np.uint8] | VideoError]:
        """Frames or the error of each job, in the order of the jobs, of which ``ahead`` are asked for beforehand.

        An error among the jobs, a clip known to be unreadable, is handed through.
        """
        tickets: deque[int | VideoError] = deque()
        source = iter(jobs)
        try:
            while True:
                while len(tickets) < ahead and (job := next(source, None)) is not None:
                    tickets.append(job if isinstance(job, VideoError) else self.submit(job))
                if not tickets:
                    return
                ticket = tickets.popleft()
                try:
                    yield ticket if isinstance(ticket, VideoError) else self.take(ticket)
                except VideoError as error:
                    yield error
        finally:
            self.forget()

    def forget(self) -> None:
        """Let go of all that was asked for and not taken."""
        self._waiting.clear()
        self._done.clear()
        held = {ticket for worker in self._workers for ticket, _ in worker.held}
        self._jobs = {ticket: job for ticket, job in self._jobs.items() if ticket in held}
        self._forgotten = held

    def _attend(self) -> None:
        """Wait for the next event: a sample done, a process begun, dead or over its time."""
        self._hand_out()
        now = time.monotonic()
        busy = [worker for worker in self._workers if worker.held or not worker.ready]
        patience = min((worker.deadline for worker in busy), default=now + 1.0) - now
        ready = connection.wait([worker.pipe for worker in self._workers], max(_LOOK, patience))
        for worker in [worker for worker in self._workers if worker.pipe in ready]:
            self._listen(worker)
        now = time.monotonic()
        for worker in [w for w in self._workers if (w.held or not w.ready) and now > w.deadline]:
            pid, late = worker.process.pid or 0, now - worker.deadline
            if worker.ready and late < STARVED * self.timeout and starves(pid, worker.used, self.timeout):
                continue
            self._replace(worker, "timeout", f"no frames after {self.timeout:g} s; data.timeout allows more")

    def _hand_out(self) -> None:
        """Give waiting samples to processes that have room, evenly."""
        for depth in range(SLOTS):
            for worker in self._workers:
                if not self._waiting:
                    return
                if worker.ready and len(worker.held) == depth:
                    ticket = self._waiting.popleft()
                    slot = 1 - worker.held[0][1] if worker.held else 0
                    if not worker.held:
                        self._begin(worker)
                    worker.held.append((ticket, slot))
                    try:
                        worker.pipe.send((slot, self._jobs[ticket]))
                    except OSError:  # it has died: its end of the pipe says so next
                        continue

    def _begin(self, worker: _Worker) -> None:
        """Its next sample's time begins."""
        worker.deadline = time.monotonic() + self.timeout
        worker.used = seconds_used(worker.process.pid or 0)

    def _listen(self, worker: _Worker) -> None:
        try:
            said = worker.pipe.recv_bytes(ANSWER)
        except (EOFError, OSError):
            worker.process.join(1.0)
            code = worker.process.exitcode
            self._replace(worker, "crashed", f"two processes that decoded it died (exit code {code})")
            return
        if not worker.ready:
            worker.ready = True
            self._stillborn = 0
            return
        try:
            error, spent = heard(said)
            ticket, slot = worker.held.popleft()
        except (ValueError, IndexError):
            self._replace(worker, "crashed", "two processes that decoded it gave answers that cannot be read")
            return
        self._begin(worker)
        self._finish(ticket, worker.memory[slot].copy() if error is None else error)
        if spent:
            self._replace(worker)

    def _finish(self, ticket: int, outcome: NDArray[np.uint8] | EvilmError) -> None:
        del self._jobs[ticket]
        self._suspects.discard(ticket)
        if ticket not in self._forgotten:
            self._done[ticket] = outcome

    def _replace(self, worker: _Worker, status: Literal["timeout", "crashed"] | None = None, reason: str = "") -> None:
        """Kill a process, charge the sample that it was at where there is a charge, and give what it held to others."""
        worker.process.kill()
        worker.pipe.close()
        worker.process.join(5.0)
        if not worker.ready:
            self._stillborn += 1
            if self._stillborn >= _STILLBORN:
                raise DataError(
                    "processes that decode die at their start; data.workers=0 decodes in this one (a script of yours "
                    "that trains needs its work under `if __name__ == '__main__':`)"
                )
        if status is not None and worker.held:
            ticket, _ = worker.held[0]
            if status == "timeout" or ticket in self._suspects:
                worker.held.popleft()
                self._finish(ticket, VideoError(self._jobs[ticket].clip.path, status, reason))
            else:
                self._suspects.add(ticket)
        for ticket, _ in reversed(worker.held):
            if ticket in self._forgotten:
                self._jobs.pop(ticket)
                self._suspects.discard(ticket)
            else:
                self._waiting.appendleft(ticket)
        self._workers[self._workers.index(worker)] = self._start()

    def _start(self) -> _Worker:
        context = multiprocessing.get_context("spawn")  # not forked: the parent holds torch's threads
        ours, theirs = context.Pipe()
        shape = (SLOTS, *self.decoding.shape)
        # No name in /dev/shm: containers often give that 64 MB, and a killed run would leave its files there.
        with tempfile.TemporaryFile() if _MEMFD is None else os.fdopen(_MEMFD("evilm-frames"), "r+b") as file:
            file.truncate(int(np.prod(shape)))
            arguments = (theirs, Memory(file.fileno()), self.decoding, self.limits, os.getpid())
            process = context.Process(target=serve, args=arguments, daemon=True)
            process.start()
            memory = shared(file.fileno(), shape)
        theirs.close()
        return _Worker(process, ours, memory, deadline=time.monotonic() + _START)


def _stop(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.process.kill()
        worker.pipe.close()
    for worker in workers:
        worker.process.join(5.0)
