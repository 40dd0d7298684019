"""Frames decoded once: a memory-mapped array of small pictures, shared by every epoch and every task.

A store holds ``candidates`` evenly spaced frames of each clip, so that training can still draw a moment at random
from each segment. It is named by what decides its content (clips, their sizes and times of change, frame size,
candidates), so a changed video is decoded again, and an interrupted store goes on where it stopped. Where a finished
store has all the clips of a smaller one, it serves in its place, with all that is kept about its frames. Why a clip
could not be read is kept too, so that an evaluation from the store says the same as one from the files.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from evilm.data.pixels import Decoding, Job
from evilm.data.workers import TIMEOUT, Workers
from evilm.errors import DataError, OutputError, VideoError, VideoStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from evilm.data.video import Fit
    from evilm.types import Clip

TODO, DONE, BAD = 0, 1, 2

_CLIPS = "clips.json"  # which clips a store has, and how old their files were

# What may be otherwise the next time, though the file has not changed: such a clip is tried again.
PASSING: frozenset[VideoStatus] = frozenset({"timeout", "crashed", "not_a_file"})


class FrameStore:
    """Frames of a list of clips, (clips, candidates, size, size, 3) uint8, on disk.

    Args:
        folder: where stores lie; this one gets a folder of its own below, unless a finished one has all its clips.
        clips: in any order.
        size: pixels of a frame's side.
        candidates: frames kept of each clip.
        fit: ``crop`` or ``squash``, see ``pictures.to_rgb``.

    Attributes:
        clips: those that were asked for, by their ids.
        ids: of every row, those of clips that only others ask for among them.
    """

    def __init__(self, folder: Path, clips: Iterable[Clip], *, size: int, candidates: int, fit: Fit = "crop") -> None:
        self.clips = {clip.id: clip for clip in clips}
        self.size, self.candidates = size, candidates
        self.fit: Fit = fit
        ages = {key: age(self.clips[key].path) for key in sorted(self.clips)}
        try:
            self.folder, self.ids = self._place(folder, ages)
            self.index = {key: row for row, key in enumerate(self.ids)}
            shape = (len(self.ids), candidates, size, size, 3)
            self.frames: NDArray[np.uint8] = _array(self.folder / "frames.u8", shape)
            self.state: NDArray[np.uint8] = _array(self.folder / "state.u8", (len(self.ids),))
            self.problems = _read_problems(self.folder / "problems.json")
        except OSError as error:
            raise OutputError(f"{folder}: cannot keep decoded frames: {error.strerror}; set data.cache") from None

    def _place(self, folder: Path, ages: dict[str, str]) -> tuple[Path, list[str]]:
        """The folder of these clips, and the ids of its rows: its own, or that of a finished store of more clips."""
        about = f"{self.size} {self.candidates} {self.fit}"
        digest = hashlib.sha256(about.encode())
        for key, changed in ages.items():
            digest.update(f"\n{key} {changed}".encode())
        own = folder / f"frames-{digest.hexdigest()[:16]}"
        if not own.exists():
            for other in sorted(folder.glob("frames-*")):
                known = _read_list(other / _CLIPS, about)
                if ages.items() <= known.items() and _finished(other / "state.u8", len(known)):
                    return other, list(known)
        own.mkdir(parents=True, exist_ok=True)
        if not (own / _CLIPS).exists():
            replace_text(own / _CLIPS, json.dumps({"about": about, "clips": ages}))
        return own, list(ages)

    def __len__(self) -> int:
        return len(self.ids)

    def fill(
        self, workers: int = 0, progress: Callable[[int, int], None] | None = None, timeout: float = TIMEOUT
    ) -> list[str]:
        """Decode what is not there yet, and try once more what may have been bad luck.

        Args:
            workers: processes; 0 decodes in this one.
            progress: called with clips done and clips in all.
            timeout: seconds that one clip may take, where processes decode.

        Returns:
            one line for each clip that was asked for and cannot be read.
        """
        with alone(self.folder):  # of several ranks the first decodes, and the others find it done
            self.problems = _read_problems(self.folder / "problems.json")
            todo = [row for row in np.flatnonzero(self.state != DONE).tolist() if self._worth_trying(self.ids[row])]
            # A process takes longer to start than a few clips to decode.
            processes = min(workers, -(-len(todo) // 4))
            results = decoded((Job(self.clips[self.ids[row]]) for row in todo), self._decoding, processes, timeout)
            try:
                for done, (row, found) in enumerate(zip(todo, results, strict=True), 1):
                    self._keep(row, found)
                    if progress is not None:
                        progress(len(self.ids) - len(todo) + done, len(self.ids))
            finally:
                if todo:
                    _write_problems(self.folder / "problems.json", self.problems)
            self.frames.flush()  # pyright: ignore[reportAttributeAccessIssue], a memmap
            self.state.flush()  # pyright: ignore[reportAttributeAccessIssue]
        return [str(self._problem(clip)) for key, clip in self.clips.items() if key in self.problems]

    @property
    def _decoding(self) -> Decoding:
        return Decoding(self.candidates, self.size, self.fit)

    def _worth_trying(self, key: str) -> bool:
        known = self.problems.get(key)
        return key in self.clips and (known is None or known[0] in PASSING)

    def _keep(self, row: int, found: NDArray[np.uint8] | VideoError) -> None:
        key = self.ids[row]
        if isinstance(found, VideoError):
            self.problems[key] = (found.status, found.reason)
            self.state[row] = BAD
        else:
            self.problems.pop(key, None)
            self.frames[row] = found
            self.state[row] = DONE

    def _problem(self, clip: Clip) -> VideoError:
        status, reason = self.problems.get(clip.id, ("corrupt", "could not be decoded when the cache was made"))
        return VideoError(clip.path, status, reason)

    def row(self, clip: Clip) -> int:
        try:
            return self.index[clip.id]
        except KeyError:
            raise DataError(f"{clip.id}: is not in the frames kept in {self.folder}") from None

    def clip_id(self, row: int) -> str:
        return self.ids[row]

    def read(self, clip: Clip, chosen: NDArray[np.int64] | None = None) -> NDArray[np.uint8]:
        """The candidates ``chosen`` (None: all) of a clip, (T, size, size, 3).

        Raises:
            VideoError: it could not be decoded; as it was said then.
        """
        row = self.row(clip)
        if self.state[row] != DONE:
            raise self._problem(clip)
        return self.frames[row] if chosen is None else self.frames[row, chosen]

    @property
    def encoded(self) -> bool:
        return False

    def frames_of(self, row: int) -> NDArray[np.uint8] | None:
        return self.frames[row] if self.state[row] == DONE else None


def decoded(
    jobs: Iterable[Job], decoding: Decoding, workers: int, timeout: float = TIMEOUT
) -> Iterator[NDArray[np.uint8] | VideoError]:
    """The frames of each job or why there are none, in order, by other processes or by this one."""
    if not workers:
        for job in jobs:
            try:
                yield decoding.frames(job)
            except VideoError as error:
                yield error
        return
    pool = Workers(workers, decoding, timeout)
    try:
        yield from pool.map(jobs)
    finally:
        pool.close()


@contextlib.contextmanager
def alone(folder: Path) -> Generator[None]:
    """Hold the lock of a folder, so that processes that would fill it take turns; a dead one's lock is free."""
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _read_problems(path: Path) -> dict[str, tuple[VideoStatus, str]]:
    try:
        table: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:  # damaged: the clips are tried again
        return {}
    return {key: (status, reason) for key, (status, reason) in table.items()}


def _write_problems(path: Path, problems: dict[str, tuple[VideoStatus, str]]) -> None:
    replace_text(path, json.dumps(problems, ensure_ascii=False, indent=0))


def _read_list(path: Path, about: str) -> dict[str, str]:
    """Id and age of the clips that a store of this kind has; none where it is of another kind or does not say."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found["clips"] if found.get("about") == about else {}


def _finished(path: Path, count: int) -> bool:
    """Whether every clip of a store was tried."""
    state = np.fromfile(path, dtype=np.uint8) if path.exists() else np.zeros(0, dtype=np.uint8)
    return len(state) == count and bool((state != TODO).all())


def replace_text(path: Path, text: str) -> None:
    """Write a file beside itself first, so that it is never half there."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _array(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """A memory-mapped file of zeros, or the one that is there already."""
    count = int(np.prod(shape))
    if not path.exists() or path.stat().st_size != count:
        with path.open("wb") as file:
            os.truncate(file.fileno(), count)
    return np.memmap(path, dtype=np.uint8, mode="r+", shape=shape)


def age(path: Path) -> str:
    """Size and time of change; nothing for a file that is not there."""
    try:
        status = path.stat()
    except OSError:
        return "missing"
    return f"{status.st_size} {status.st_mtime_ns}"
