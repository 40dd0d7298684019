"""Frames decoded once: a memory-mapped array of small pictures, shared by every epoch and every task.

A store holds ``candidates`` evenly spaced frames of each clip, so that training can still draw a moment at random
from each segment. It is named by what decides its content (clips, their sizes and times of change, frame size,
candidates), so a changed video is decoded again, and an interrupted store goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING

import numpy as np

from evilm.data.video import Fit, read_clip
from evilm.errors import DataError, OutputError, VideoError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from evilm.types import Clip

TODO, DONE, BAD = 0, 1, 2


class FrameStore:
    """Frames of a list of clips, (clips, candidates, size, size, 3) uint8, on disk.

    Args:
        folder: where stores lie; this one gets a folder of its own below.
        clips: distinct clips, in any order.
        size: pixels of a frame's side.
        candidates: frames kept of each clip.
        fit: ``crop`` or ``squash``, see ``video.fitted``.
    """

    def __init__(self, folder: Path, clips: Sequence[Clip], *, size: int, candidates: int, fit: Fit = "crop") -> None:
        unique = {clip.id: clip for clip in clips}
        self.clips = [unique[key] for key in sorted(unique)]
        self.size, self.candidates = size, candidates
        self.fit: Fit = fit
        self.index = {clip.id: row for row, clip in enumerate(self.clips)}
        self.folder = folder / self._name()
        shape = (len(self.clips), candidates, size, size, 3)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.frames: NDArray[np.uint8] = _array(self.folder / "frames.u8", shape)
            self.state: NDArray[np.uint8] = _array(self.folder / "state.u8", (len(self.clips),))
        except OSError as error:
            raise OutputError(f"{self.folder}: cannot keep decoded frames: {error.strerror}; set data.cache") from None

    def _name(self) -> str:
        digest = hashlib.sha256(f"{self.size} {self.candidates} {self.fit}".encode())
        for clip in self.clips:
            digest.update(f"\n{clip.id} {_age(clip.path)}".encode())
        return f"frames-{digest.hexdigest()[:16]}"

    def fill(self, workers: int = 0, progress: Callable[[int, int], None] | None = None) -> list[str]:
        """Decode what is not there yet.

        Args:
            workers: processes; 0 decodes in this one.
            progress: called with clips done and clips in all.

        Returns:
            one line for each clip that could not be read.
        """
        todo = np.flatnonzero(self.state != DONE)
        problems: list[str] = []
        if len(todo):
            jobs: list[tuple[int, Clip, int, int, Fit]] = [
                (int(row), self.clips[row], self.size, self.candidates, self.fit) for row in todo
            ]
            for done, (row, pixels, problem) in enumerate(_decoded(jobs, workers), 1):
                if pixels is not None:
                    self.frames[row] = pixels
                else:
                    problems.append(problem)
                self.state[row] = BAD if pixels is None else DONE
                if progress is not None:
                    progress(len(self.clips) - len(todo) + done, len(self.clips))
            self.frames.flush()  # pyright: ignore[reportAttributeAccessIssue], a memmap
            self.state.flush()  # pyright: ignore[reportAttributeAccessIssue]
        return problems

    def read(self, clip: Clip, chosen: NDArray[np.int64]) -> NDArray[np.uint8] | None:
        """The candidates ``chosen`` of a clip, (T, size, size, 3), or None when it could not be decoded."""
        row = self.index[clip.id]
        return None if self.state[row] != DONE else self.frames[row, chosen]


def _decoded(
    jobs: list[tuple[int, Clip, int, int, Fit]], workers: int
) -> Iterable[tuple[int, NDArray[np.uint8] | None, str]]:
    if workers < 2 or len(jobs) < 32:
        yield from map(_decode, jobs)
        return
    # Spawned, not forked: the parent holds torch's threads.
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        yield from pool.map(_decode, jobs, chunksize=8)
    except BrokenProcessPool:
        raise DataError(
            "a process that decodes videos died; data.workers=0 decodes in this one (a script of yours that trains "
            "needs its work under `if __name__ == '__main__':`)"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _decode(job: tuple[int, Clip, int, int, Fit]) -> tuple[int, NDArray[np.uint8] | None, str]:
    row, clip, size, candidates, fit = job
    try:
        return row, read_clip(clip, candidates, size, fit=fit), ""
    except VideoError as error:
        return row, None, str(error)


def _array(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """A memory-mapped file of zeros, or the one that is there already."""
    count = int(np.prod(shape))
    if not path.exists() or path.stat().st_size != count:
        with path.open("wb") as file:
            os.truncate(file.fileno(), count)
    return np.memmap(path, dtype=np.uint8, mode="r+", shape=shape)


def _age(path: Path) -> str:
    """Size and time of change; nothing for a file that is not there."""
    try:
        status = path.stat()
    except OSError:
        return "missing"
    return f"{status.st_size} {status.st_mtime_ns}"
