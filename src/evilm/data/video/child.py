"""The program of a decoder process: questions come in on stdin, pixels or a status go out on stdout.

It is started by ``process.DecoderProcess`` and believed in nothing: what it answers is JSON and raw pixels, never
anything that is executed. It limits its own memory, writes no file, and ends itself where a question takes far too
long, so that it does not outlive a parent that was killed.

A message is 4 bytes of length (big endian), so many bytes of JSON, and in an answer the ``bytes`` of pixels that the
JSON speaks of.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from evilm.data.video import faults
from evilm.data.video.check import check
from evilm.data.video.clips import frames_of
from evilm.data.video.confine import confine, memory_in_use
from evilm.data.video.limits import Limits
from evilm.data.video.reader import VideoReader
from evilm.errors import VideoError
from evilm.types import Clip

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import BinaryIO

    from numpy.typing import NDArray

Facts = dict[str, Any]
Answer = tuple[Facts, "NDArray[np.uint8] | None"]


def main() -> None:
    """Answer questions until stdin is closed."""
    limits = Limits(**json.loads(sys.argv[1]))
    questions, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # whatever a library prints must not stand among the answers
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    before = confine(limits)
    _send(answers, {"ready": True})
    while (question := _receive(questions)) is not None:
        # Not handled, so the system ends this process, even in the middle of a decoder that hangs.
        signal.setitimer(signal.ITIMER_REAL, 5 * limits.timeout + 5)
        facts, pixels = _answer(question, limits)
        # One that has kept much of what it was lent is replaced, so that the next file finds as much as this one.
        _send(answers, facts | {"spent": memory_in_use() - before > limits.memory // 2}, pixels)
        signal.setitimer(signal.ITIMER_REAL, 0)


def _answer(question: Facts, limits: Limits) -> Answer:
    """A status, and pixels where there are any."""
    path = Path(question["path"])
    try:
        return ANSWERS[question["ask"]](path, question, limits)
    except VideoError as error:
        return {"status": error.status, "reason": error.reason}, None
    except MemoryError:
        error = faults.out_of_memory(path, limits)
        return {"status": error.status, "reason": error.reason}, None
    except Exception as error:  # noqa: BLE001 - one file must not end the answers to all others
        return {"status": "crashed", "reason": f"{type(error).__name__} while decoding: {error}"}, None


def _clip(path: Path, question: Facts, limits: Limits) -> Answer:
    clip = Clip(path, question["start"], question["end"], tuple(question["frames"]))
    within = np.array(question["within"], dtype=np.float64)
    pixels = frames_of(clip, within, question["size"], question["mode"], question["fit"], limits)
    return {"status": "ok", "shape": pixels.shape}, pixels


def _frames(path: Path, question: Facts, limits: Limits) -> Answer:
    with VideoReader(path, limits) as reader:
        pixels = reader.frames_at(question["times"], question["mode"], question["size"], question["fit"])
    return {"status": "ok", "shape": pixels.shape}, pixels


def _duration(path: Path, _: Facts, limits: Limits) -> Answer:
    with VideoReader(path, limits) as reader:
        return {"status": "ok", "seconds": reader.duration}, None


def _check(path: Path, _: Facts, limits: Limits) -> Answer:
    found = check(path, limits)
    return {"status": found.status, "reason": found.reason}, None


ANSWERS: dict[str, Callable[[Path, Facts, Limits], Answer]] = {
    "clip": _clip,
    "frames": _frames,
    "duration": _duration,
    "check": _check,
}


def _receive(questions: BinaryIO) -> Facts | None:
    length = questions.read(4)
    return None if len(length) < 4 else cast("Facts", json.loads(questions.read(int.from_bytes(length))))


def _send(answers: BinaryIO, facts: Facts, pixels: NDArray[np.uint8] | None = None) -> None:
    header = json.dumps(facts | {"bytes": 0 if pixels is None else pixels.nbytes}).encode()
    answers.write(len(header).to_bytes(4) + header)
    if pixels is not None:
        answers.write(pixels.reshape(-1).data)
    answers.flush()
