"""The program of a decoder process: it answers requests on stdin with frames or a status on stdout.

``pool.DecoderProcess`` starts it and does not trust it: answers are JSON and raw bytes, which are never executed. The
process limits its own memory, cannot write files, and ends itself if its parent dies or if a request takes far too
long.

A message is 4 bytes of length (big endian), a JSON object of that length, and as many raw bytes as its ``bytes`` says.
The first request holds the limits and, for the loader, a pickled function. Requests come from the parent, so
pickles in them can be trusted.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import resource
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from evilm.data.video import clips, container
from evilm.data.video.check import check
from evilm.data.video.limits import Limits
from evilm.errors import EvilmError, VideoError
from evilm.types import Clip

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import BinaryIO

    from numpy.typing import NDArray

    Decoder = Callable[[Any], NDArray[np.uint8]]  # makes the frames of a job of the loader

Facts = dict[str, Any]

_DESCRIPTORS = 64  # files that the process may have open


def main() -> None:
    """Answer requests until stdin is closed."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # prints of a library must not mix with the answers
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    setup = _receive(requests)
    if setup is None:
        return
    limits = Limits(**setup[0]["limits"])
    decoder: Decoder | None = pickle.loads(setup[1]) if setup[1] else None  # noqa: S301 - of the parent
    before = _confine(limits)
    _send(answers, {"ready": True})
    while (request := _receive(requests)) is not None:
        question, payload = request

        def extend(pixels: int, question: Facts = question) -> None:
            """Raise the limits of time and memory for large frames, here and in the parent."""
            _limit_memory(before + limits.memory_for(pixels))
            signal.setitimer(signal.ITIMER_REAL, _patience(question["timeout"] * limits.timeout_factor(pixels)))
            _send(answers, {"frame_pixels": pixels})

        # There is no handler, so that the system ends this process even within a decoder that hangs.
        signal.setitimer(signal.ITIMER_REAL, _patience(question["timeout"]))
        container.on_frame_size = extend
        facts, raw = _answer(question, payload, decoder, limits)
        # A process that keeps much of its memory is replaced, so that the next file has as much as this one.
        _send(answers, facts | {"spent": memory_in_use() - before > limits.memory // 2}, raw)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _limit_memory(before + limits.memory)


def _answer(
    question: Facts, payload: bytes, decoder: Decoder | None, limits: Limits
) -> tuple[Facts, bytes | memoryview]:
    """The facts and raw bytes of an answer, with a status."""
    path = Path(question["path"])
    try:
        if question["ask"] == "decode" and decoder is not None:
            result = decoder(pickle.loads(payload))  # noqa: S301 - of the parent
        else:
            result = ANSWERS[question["ask"]](path, question, limits)
        if isinstance(result, np.ndarray):
            return {"status": "ok", "shape": result.shape}, np.ascontiguousarray(result).reshape(-1).data
        if isinstance(result, list):
            return {"status": "ok", "sizes": [len(each) for each in result]}, b"".join(result)
        return {"status": "ok"} | result, b""
    except VideoError as error:
        return {"status": error.status, "reason": error.reason[:1000]}, b""
    except EvilmError as error:
        return {"error": str(error)[:1000]}, b""
    except MemoryError:
        error = limits.out_of_memory(path)
        return {"status": error.status, "reason": error.reason}, b""
    except Exception as error:  # noqa: BLE001 - one file must not prevent the answers for all others
        reason = f"{type(error).__name__} while decoding: {str(error)[:200]}"
        return {"status": "crashed", "reason": reason}, b""


def _clip(path: Path, question: Facts, limits: Limits) -> NDArray[np.uint8]:
    clip = Clip(path, question["start"], question["end"], tuple(question["frames"]))
    within = np.array(question["within"], dtype=np.float64)
    return clips.frames_of(clip, within, question["size"], question["mode"], question["fit"], limits)


def _frames(path: Path, question: Facts, limits: Limits) -> NDArray[np.uint8]:
    with clips.open_reader(path, limits) as reader:
        return reader.frames_at(question["times"], question["mode"], question["size"], question["fit"])


def _picture(path: Path, question: Facts, limits: Limits) -> NDArray[np.uint8]:
    return clips.read_picture(path, question["size"], question["fit"], limits)


def _duration(path: Path, _: Facts, limits: Limits) -> Facts:
    with clips.open_reader(path, limits) as reader:
        return {"seconds": reader.duration}


def _check(path: Path, _: Facts, limits: Limits) -> Facts:
    result = check(path, limits)
    return {"status": result.status, "reason": result.reason}


def _describe(path: Path, _: Facts, limits: Limits) -> Facts:
    return {"facts": dataclasses.asdict(clips.describe(path, limits))}


def _thumbnails(path: Path, question: Facts, limits: Limits) -> list[bytes]:
    return clips.thumbnails(path, question["times"], question["height"], limits)


def _cut(path: Path, question: Facts, limits: Limits) -> list[bytes]:
    part = (question["start"], question["end"], question["height"])
    return [clips.cut(path, *part, limits, exact=question["exact"])]


# What a request may ask for: frames, facts or the content of files.
ANSWERS: dict[str, Callable[[Path, Facts, Limits], NDArray[np.uint8] | Facts | list[bytes]]] = {
    "clip": _clip, "frames": _frames, "picture": _picture, "duration": _duration, "check": _check,
    "describe": _describe, "thumbnails": _thumbnails, "cut": _cut,
}  # fmt: skip


# Messages


def _receive(requests: BinaryIO) -> tuple[Facts, bytes] | None:
    length = requests.read(4)
    if len(length) < 4:
        return None
    facts = cast("Facts", json.loads(requests.read(int.from_bytes(length))))
    return facts, requests.read(facts["bytes"])


def _send(answers: BinaryIO, facts: Facts, raw: bytes | memoryview = b"") -> None:
    header = json.dumps(facts | {"bytes": len(raw)}).encode()
    answers.write(len(header).to_bytes(4) + header)
    answers.write(raw)
    answers.flush()


# Confinement


def memory_in_use() -> int:
    """Bytes of address space of this process."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()


def _confine(limits: Limits) -> int:
    """Limit this process for good: memory, no file written, no core dump, few open files.

    Call it after everything that decoding needs has been imported.

    Returns:
        bytes of memory in use now.
    """
    before = memory_in_use()
    for kind, most in (
        (resource.RLIMIT_AS, before + limits.memory_for(limits.max_pixels)),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, _DESCRIPTORS),
    ):
        hard = resource.getrlimit(kind)[1]
        allowed = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (allowed, allowed))
    _limit_memory(before + limits.memory)
    return before


def _limit_memory(size: int) -> None:
    """Set the memory limit for the current request, below the one that is set for good."""
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (size if hard == resource.RLIM_INFINITY else min(size, hard), hard))


def _patience(timeout: float) -> float:
    """Seconds after which this process ends itself; its parent, if it lives, kills it before."""
    return 5 * timeout + 5


def _end_with(parent: int) -> None:
    """End this process when its parent is gone, even while decoding.

    The kernel's death signal is no alternative: it comes when the *thread* ends that started this process.
    """
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)
