"""A process that decodes samples: its life, the memory it shares with the loader, and the few words it says.

What it says is JSON and no pickle: a decoder that a file has taken over can lie about pixels, and nothing else.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import threading
import time
from multiprocessing import reduction
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from evilm.data.video.check import STATUSES
from evilm.data.video.confine import confine, memory_in_use
from evilm.data.video.faults import out_of_memory
from evilm.errors import DataError, EvilmError, VideoError

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

    from numpy.typing import NDArray

    from evilm.data.pixels import Work
    from evilm.data.video import Limits

SLOTS = 2  # samples that a process holds: one in work, one waiting, so that it never waits for the loader
ANSWER = 1 << 16  # bytes of an answer at most


def serve(pipe: Connection, memory: int, decoding: Work, limits: Limits, parent: int) -> None:
    """The life of a process: a slot and a job in, the job's frames into the slot, what became of it out."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the loader's process, which then ends this one
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    slots = shared(memory, (SLOTS, *decoding.shape))
    before = confine(limits)
    pipe.send_bytes(b"ready")
    while True:
        try:
            slot, job = pipe.recv()
        except (EOFError, OSError):
            return
        outcome: EvilmError | None = None
        try:
            slots[slot] = decoding.frames(job)
        except EvilmError as error:
            outcome = error
        except MemoryError:
            outcome = out_of_memory(job.clip.path, limits)
        except Exception as error:  # noqa: BLE001, whatever a video does to the decoder costs this one sample
            outcome = VideoError(job.clip.path, "crashed", f"{type(error).__name__}: {str(error)[:200]}")
        try:
            # One that has kept much of what it was lent is replaced, so that the next file finds as much as this one.
            pipe.send_bytes(said(outcome, spent=memory_in_use() - before > limits.memory // 2))
        except OSError:
            return


def said(outcome: EvilmError | None, *, spent: bool) -> bytes:
    """An outcome as it goes through the pipe, and whether the process has used up what it may."""
    facts: dict[str, Any] = {"spent": spent}
    if isinstance(outcome, VideoError):
        facts |= {"path": outcome.path, "status": outcome.status, "reason": outcome.reason[:1000]}
    elif outcome is not None:
        facts |= {"error": str(outcome)[:1000]}
    return json.dumps(facts).encode()


def heard(answer: bytes) -> tuple[EvilmError | None, bool]:
    """What went into ``said``; a process that decodes may say anything.

    Raises:
        ValueError: it is none of that.
    """
    try:
        facts = json.loads(answer)
        spent = bool(facts["spent"])
        if "error" in facts:
            return DataError(str(facts["error"])), spent
        if "status" not in facts:
            return None, spent
        if facts["status"] in STATUSES:
            return VideoError(str(facts["path"]), facts["status"], str(facts["reason"])), spent
    except (KeyError, TypeError, RecursionError):
        pass
    raise ValueError("no answer of a process that decodes")


def _end_with(parent: int) -> None:
    """End this process when its parent is gone, even in the midst of decoding.

    Not by the kernel's death signal, which comes when the *thread* ends that started this process.
    """
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


class _Duplicate(Protocol):
    def detach(self) -> int: ...


class Memory:
    """An open file on its way into a process that is being started."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> tuple[Callable[[_Duplicate], int], tuple[_Duplicate]]:
        return _arrived, (reduction.DupFd(self.number),)


def _arrived(file: _Duplicate) -> int:
    return file.detach()


def shared(file: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """The array that lies in an open file, seen by all processes that have it."""
    return np.frombuffer(mmap.mmap(file, int(np.prod(shape))), dtype=np.uint8).reshape(shape)
