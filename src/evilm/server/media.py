"""Stills, playable versions and exported clips. All decoding happens in processes that can be killed.

Stills are cached in memory. Playable versions and exports are files in a temporary folder of the server, bounded in
number and size; the oldest go first.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
import tempfile
import threading
import time
import zipfile
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from evilm.data.video import LIMITS, DecoderPool
from evilm.errors import EvilmError
from evilm.files import is_picture

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from evilm.data.video.clips import VideoFacts

Play = Literal["direct", "remux", "transcode", "picture", "none"]
State = Literal["queued", "running", "done", "failed"]

STILLS = 3000  # that are kept in memory
PROXY_HEIGHT = 480
MAX_JOBS, MAX_FILES, MAX_BYTES = 64, 500, 4 << 30  # queued or running jobs; files; bytes of one and of all of them
JOB_SECONDS, EXPORT_SECONDS = 600.0, 3600.0  # of one conversion; of all clips of an export
_DIRECT = {("mp4", "h264"), ("mov", "h264"), ("matroska", "vp8"), ("matroska", "vp9"), ("webm", "vp8"), ("webm", "vp9"),
           ("mp4", "av1"), ("webm", "av1"), ("matroska", "av1"), ("mp4", "vp9"), ("ogg", "theora")}  # fmt: skip
_DIRECT_SUFFIXES = (".mp4", ".m4v", ".webm", ".mov", ".ogv")
_PLAIN = ("yuv420p", "yuvj420p")
TYPES = {
    ".mp4": "video/mp4", ".m4v": "video/mp4", ".mov": "video/mp4", ".webm": "video/webm", ".mkv": "video/x-matroska",
    ".ogv": "video/ogg", ".gif": "image/gif", ".avi": "video/x-msvideo",
}  # fmt: skip


class FullError(Exception):
    """More jobs wait than the server takes."""


@dataclass
class Job:
    """Work that makes a file.

    Attributes:
        job: its id.
        kind: ``proxy`` or ``clips``.
        state: ``queued``, ``running``, ``done`` or ``failed``.
        progress: 0 to 1.
        message: why it failed.
        download: whether there is a file.
    """

    job: str
    kind: str
    state: State = "queued"
    progress: float = 0.0
    message: str = ""
    download: bool = False


@dataclass(frozen=True)
class Part:
    """A part of a video for an export: its file, start and end in seconds, and the fields of its row."""

    path: Path
    start: float
    end: float
    row: dict[str, Any]


def playable(facts: VideoFacts, path: Path) -> Play:
    """How a browser can show a file: as it is, in another container, encoded again, or as a still."""
    if is_picture(path):
        return "picture"
    plain = facts.pixel_format in _PLAIN
    sound = facts.audio_codec in (None, "aac", "mp3", "opus", "vorbis")
    container = facts.container.partition(",")[0]
    if plain and sound and path.suffix.lower() in _DIRECT_SUFFIXES and (container, facts.codec) in _DIRECT:
        return "direct"
    return "remux" if plain and facts.codec == "h264" else "transcode"


class Media:
    """Makes stills and files.

    Args:
        processes: of decoding.
        notify: called with each job that changes, from a thread.
    """

    def __init__(self, processes: int = 2, notify: Callable[[Job], None] = lambda _: None) -> None:
        self.pool = DecoderPool(processes, LIMITS)
        self.cutter = DecoderPool(1, LIMITS)
        self.notify = notify
        self.folder = Path(tempfile.mkdtemp(prefix="evilm-serve-"))
        self._stills: OrderedDict[tuple[Any, ...], bytes] = OrderedDict()
        self._facts: dict[tuple[str, int], VideoFacts] = {}
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._files: OrderedDict[str, Path] = OrderedDict()
        self._lock = threading.Lock()
        self._turns = [threading.Lock() for _ in range(64)]  # so that equal requests decode once
        self._work = ThreadPoolExecutor(1, thread_name_prefix="evilm-media")

    def close(self) -> None:
        """Stop all work and remove the files."""
        self._work.shutdown(wait=False, cancel_futures=True)
        self.pool.close()
        self.cutter.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    # Stills

    def stills(self, path: Path, times: Sequence[float], height: int) -> list[bytes]:
        """Frames at some times as JPEG; missing ones are decoded in one request.

        Raises:
            VideoError: the video cannot be read.
        """
        changed = path.stat().st_mtime_ns
        keys = [(str(path), changed, round(seconds, 2), height) for seconds in times]
        with self._turns[hash((path, height)) % len(self._turns)]:
            with self._lock:
                known = {key: self._stills[key] for key in keys if key in self._stills}
            missing = [key for key in keys if key not in known]
            if missing:
                pictures = self.pool.thumbnails(path, [key[2] for key in missing], height)
                known.update(zip(missing, pictures, strict=True))
                with self._lock:
                    self._stills.update(zip(missing, pictures, strict=True))
                    while len(self._stills) > STILLS:
                        self._stills.popitem(last=False)
        return [known[key] for key in keys]

    def facts(self, path: Path) -> VideoFacts:
        """Size, codec and container of a video.

        Raises:
            VideoError: it cannot be opened.
        """
        key = (str(path), path.stat().st_mtime_ns)
        if key not in self._facts:
            if len(self._facts) > STILLS:
                self._facts.clear()
            self._facts[key] = self.pool.describe(path)
        return self._facts[key]

    # Files

    def proxy(self, path: Path) -> Job:
        """The job that makes a playable version of a video; the same job for the same file.

        Raises:
            FullError: too many jobs wait.
        """
        status = path.stat()
        key = os.fsencode(path) + b"\0%d %d" % (status.st_mtime_ns, status.st_size)
        plain = playable(self.facts(path), path) == "remux"  # copied whatever its height

        def make(_: Job, out: Path) -> None:
            self.cutter.cut(path, out, 0.0, None, None if plain else PROXY_HEIGHT, timeout=JOB_SECONDS)

        return self._start(hashlib.sha256(key).hexdigest()[:32], "proxy", make)

    def clips(self, parts: Sequence[Part], *, exact: bool) -> Job:
        """The job that cuts parts of videos into a zip file, beside copies of pictures.

        Raises:
            FullError: too many jobs wait.
        """

        def make(job: Job, out: Path) -> None:
            began = time.monotonic()
            with zipfile.ZipFile(out, "w", strict_timestamps=False) as bundle:
                for number, part in enumerate(parts, 1):
                    stem = "".join(c if c.isalnum() or c in "-_. " else "_" for c in part.path.stem)[:80]
                    if is_picture(part.path):
                        bundle.write(part.path, f"{number:03d} {stem}{part.path.suffix.lower()}")
                    else:
                        piece = out.with_suffix(f".{number}.mp4")
                        span = (part.start, part.end)
                        try:
                            self.cutter.cut(part.path, piece, *span, None, timeout=JOB_SECONDS, exact=exact)
                            bundle.write(piece, f"{number:03d} {stem} {span[0]:.1f}-{span[1]:.1f}.mp4")
                        finally:
                            piece.unlink(missing_ok=True)
                    if out.stat().st_size > MAX_BYTES:
                        raise OSError(errno.EFBIG, f"these clips have more than {MAX_BYTES >> 20:,} MiB together")
                    if time.monotonic() - began > EXPORT_SECONDS:
                        raise OSError(errno.ETIMEDOUT, f"these clips take more than {EXPORT_SECONDS / 60:.0f} minutes")
                    job.progress = number / len(parts)
                    self.notify(job)

        return self._start(secrets.token_hex(8), "clips", make)

    def job(self, name: str) -> Job | None:
        """A job by its id."""
        return self._jobs.get(name)

    def file(self, name: str) -> Path | None:
        """The file of a job that is done."""
        with self._lock:
            path = self._files.get(name)
            if path is not None:
                self._files.move_to_end(name)
            return path if path is not None and path.is_file() else None

    def _start(self, name: str, kind: str, make: Callable[[Job, Path], object]) -> Job:
        with self._lock:
            job = self._jobs.get(name)
            if job is not None and (
                job.state in ("queued", "running") or (job.state == "done" and name in self._files)
            ):
                return job
            if sum(each.state in ("queued", "running") for each in self._jobs.values()) >= MAX_JOBS:
                raise FullError
            job = self._jobs[name] = Job(name, kind)
            self._jobs.move_to_end(name)  # a failed job that starts again is the newest
            while len(self._jobs) > 20 * MAX_JOBS:
                self._jobs.popitem(last=False)
        self._work.submit(self._make, job, make)
        return job

    def _make(self, job: Job, make: Callable[[Job, Path], object]) -> None:
        job.state = "running"
        self.notify(job)
        out = self.folder / f"{job.job}.{'zip' if job.kind == 'clips' else 'mp4'}"
        try:
            make(job, out)
        except EvilmError as error:
            job.state, job.message = "failed", getattr(error, "reason", "") or "this video cannot be converted"
            out.unlink(missing_ok=True)
        except OSError as error:
            job.state, job.message = "failed", f"the file cannot be written: {error.strerror or 'no space'}"
            out.unlink(missing_ok=True)
        else:
            with self._lock:
                self._files[job.job] = out
                self._drop_old()
            job.state, job.progress, job.download = "done", 1.0, True
        self.notify(job)

    def _drop_old(self) -> None:
        """Remove the oldest files while there are too many of them, or all of them together are too large."""
        sizes = {name: path.stat().st_size for name, path in self._files.items() if path.is_file()}
        total = sum(sizes.values())
        for name in list(self._files)[:-1]:
            if total <= MAX_BYTES and len(self._files) <= MAX_FILES:
                return
            self._files.pop(name).unlink(missing_ok=True)
            total -= sizes.get(name, 0)


def as_json(job: Job) -> dict[str, Any]:
    """The job for the interface."""
    return asdict(job)
