"""Disk cache of decoded frames: one memory-mapped array of small pictures for all epochs and tasks.

The cache stores ``cached_frames`` evenly spaced frames of each clip, so that training can still draw a random frame
from each segment. Its name is a hash of its content (clips, their file sizes and modification times, frame size, number
of frames): a changed video is decoded again, and an interrupted cache continues where it stopped. A finished cache that
contains all clips of a smaller one is used in its place, with all outputs cached for its frames. The reason why a clip
cannot be read is stored too, so that evaluation from the cache and from the files gives the same result.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from evilm.data.pixels import FilePixels, Job
from evilm.data.workers import TIMEOUT, Workers
from evilm.errors import DataError, OutputError, VideoError, VideoStatus
from evilm.files import write_atomic

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from evilm.data.video import Fit
    from evilm.data.workers import Decoder
    from evilm.types import Clip

TODO, DONE, BAD = 0, 1, 2

_CLIPS, _STATE, _PROBLEMS = "clips.json", "state.u8", "problems.json"

# Failures that may be temporary although the file has not changed: such a clip is tried again.
TRANSIENT: frozenset[VideoStatus] = frozenset({"timeout", "crashed", "not_a_file"})


class FrameCache:
    """Frames of a list of clips, (clips, cached_frames, size, size, 3) uint8, memory-mapped.

    Args:
        folder: holds all caches; this one gets a subfolder, unless a finished cache has all its clips.
        clips: in any order.
        size: frame height and width in pixels.
        cached_frames: frames stored of each clip.
        resize_mode: ``crop`` or ``squash``, see ``pictures.to_rgb``.

    Attributes:
        clips: the requested clips by id.
        ids: the clip id of each row, including clips that only other users of the cache requested.
        problems: status and reason of each clip that cannot be read, by id.
    """

    def __init__(
        self, folder: Path, clips: Iterable[Clip], *, size: int, cached_frames: int, resize_mode: Fit = "crop"
    ) -> None:
        self.clips = {clip.id: clip for clip in clips}
        self.size, self.cached_frames = size, cached_frames
        self.resize_mode: Fit = resize_mode
        try:
            self.folder, self.ids = self._locate(folder)
            self.index = {key: row for row, key in enumerate(self.ids)}
            shape = (len(self.ids), cached_frames, size, size, 3)
            self.frames: NDArray[np.uint8] = _map_array(self.folder / "frames.u8", shape)
            self.state: NDArray[np.uint8] = _map_array(self.folder / _STATE, (len(self.ids),))
            self.problems = _read_problems(self.folder / _PROBLEMS)
        except OSError as error:
            raise OutputError(f"{folder}: cannot cache decoded frames: {error.strerror}; set data.cache") from None

    def _locate(self, folder: Path) -> tuple[Path, list[str]]:
        """The folder of the cache and the clip id of each row; a finished cache that has all clips is preferred."""
        stamps = {key: file_stamp(self.clips[key].path) for key in sorted(self.clips)}
        settings = f"{self.size} {self.cached_frames} {self.resize_mode}"
        digest = hashlib.sha256(settings.encode())
        for key, stamp in stamps.items():
            digest.update(f"\n{key} {stamp}".encode())
        own = folder / f"frames-{digest.hexdigest()[:16]}"
        if not own.exists():
            for other in sorted(folder.glob("frames-*")):
                known = _read_clips(other / _CLIPS, settings)
                if stamps.items() <= known.items() and _finished(other / _STATE, len(known)):
                    return other, list(known)
        own.mkdir(parents=True, exist_ok=True)
        if not (own / _CLIPS).exists():
            write_atomic(own / _CLIPS, json.dumps({"about": settings, "clips": stamps}))
        return own, list(stamps)

    def __len__(self) -> int:
        return len(self.ids)

    def fill(
        self, workers: int = 0, progress: Callable[[int, int], None] | None = None, timeout: float = TIMEOUT
    ) -> list[str]:
        """Decode the missing clips, and try those with a ``TRANSIENT`` failure again.

        Args:
            workers: decoding processes; 0 decodes in this process.
            progress: called with the number of clips done and of all clips.
            timeout: maximum seconds for one clip, if ``workers`` decode.

        Returns:
            one line for each requested clip that cannot be read.
        """
        with folder_lock(self.folder):  # the first of several processes decodes; the others find it done
            self.problems = _read_problems(self.folder / _PROBLEMS)
            failed = {key for key, (status, _) in self.problems.items() if status not in TRANSIENT}
            missing = [row for row in np.flatnonzero(self.state != DONE).tolist()
                       if self.ids[row] in self.clips and self.ids[row] not in failed]  # fmt: skip
            # Starting a process takes longer than decoding a few clips.
            processes = min(workers, -(-len(missing) // 4))
            decoder = partial(FilePixels(self.size, self.resize_mode).read, count=self.cached_frames)
            results = decode_all((Job(self.clips[self.ids[row]]) for row in missing), decoder, processes, timeout)
            try:
                for done, (row, result) in enumerate(zip(missing, results, strict=True), 1):
                    self._store(row, result)
                    if progress is not None:
                        progress(len(self.ids) - len(missing) + done, len(self.ids))
            finally:
                if missing:
                    write_atomic(self.folder / _PROBLEMS, json.dumps(self.problems, ensure_ascii=False, indent=0))
            self.frames.flush()  # pyright: ignore[reportAttributeAccessIssue], a memmap
            self.state.flush()  # pyright: ignore[reportAttributeAccessIssue]
        return [str(self._problem(clip)) for key, clip in self.clips.items() if key in self.problems]

    def _store(self, row: int, result: NDArray[np.uint8] | VideoError) -> None:
        key = self.ids[row]
        if isinstance(result, VideoError):
            self.problems[key] = (result.status, result.reason)
            self.state[row] = BAD
        else:
            self.problems.pop(key, None)
            self.frames[row] = result
            self.state[row] = DONE

    def _problem(self, clip: Clip) -> VideoError:
        status, reason = self.problems.get(clip.id, ("corrupt", "could not be decoded when the cache was made"))
        return VideoError(clip.path, status, reason)

    def row(self, clip: Clip) -> int:
        try:
            return self.index[clip.id]
        except KeyError:
            raise DataError(f"{clip.id}: is not in the frame cache {self.folder}") from None

    def clip_id(self, row: int) -> str:
        return self.ids[row]

    def read(self, clip: Clip, chosen: NDArray[np.int64] | None = None) -> NDArray[np.uint8]:
        """The frames ``chosen`` (None: all) of a clip, (T, size, size, 3).

        Raises:
            VideoError: it could not be decoded, with the original status and reason.
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


def decode_all(
    jobs: Iterable[Job], decoder: Decoder, workers: int, timeout: float = TIMEOUT
) -> Iterator[NDArray[np.uint8] | VideoError]:
    """The frames of each job, or its error, in order; ``workers`` 0 decodes in this process."""
    if not workers:
        for job in jobs:
            try:
                yield decoder(job)
            except VideoError as error:
                yield error
        return
    pool = Workers(workers, decoder, timeout)
    try:
        yield from pool.map(jobs)
    finally:
        pool.close()


@contextlib.contextmanager
def folder_lock(folder: Path) -> Generator[None]:
    """Wait for the lock of a folder and hold it; the system releases the lock of a process that dies."""
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def file_stamp(path: Path) -> str:
    """Size and modification time of a file, or ``missing``."""
    try:
        status = path.stat()
    except OSError:
        return "missing"
    return f"{status.st_size} {status.st_mtime_ns}"


def _read_problems(path: Path) -> dict[str, tuple[VideoStatus, str]]:
    try:
        table: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # missing or damaged: the clips are tried again
        return {}
    return {key: (status, reason) for key, (status, reason) in table.items()}


def _read_clips(path: Path, settings: str) -> dict[str, str]:
    """Id and file stamp of the clips of another cache; empty if its settings differ or the list is damaged."""
    try:
        table: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return table["clips"] if table.get("about") == settings else {}


def _finished(path: Path, count: int) -> bool:
    """Whether decoding was tried for all ``count`` clips of a cache."""
    state = np.fromfile(path, dtype=np.uint8) if path.exists() else np.zeros(0, dtype=np.uint8)
    return len(state) == count and bool((state != TODO).all())


def _map_array(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """A memory-mapped file; new ones hold zeros."""
    count = int(np.prod(shape))
    if not path.exists() or path.stat().st_size != count:
        with path.open("wb") as file:
            os.truncate(file.fileno(), count)
    return np.memmap(path, dtype=np.uint8, mode="r+", shape=shape)
