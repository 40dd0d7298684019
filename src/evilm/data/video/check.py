"""One status for a video file, and for every file of a folder."""

from __future__ import annotations

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, get_args

from evilm.data import sampling
from evilm.data.video.clips import open_reader
from evilm.data.video.limits import LIMITS
from evilm.errors import VideoError, VideoStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path
    from typing import Protocol

    from evilm.data.video.limits import Limits

    class Pool(Protocol):
        """``DecoderPool``, which imports this module."""

        def check(self, path: Path) -> Finding: ...


STATUSES: tuple[VideoStatus, ...] = get_args(VideoStatus)
_SEGMENTS = 4  # the paper's frames of a clip
_SIDE = 32  # pixels: enough to prove that frames can be converted to RGB


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of checking a file.

    Attributes:
        status: one of ``STATUSES``.
        reason: what is wrong and the remedy; empty for ``ok``.
    """

    status: VideoStatus
    reason: str = ""

    @property
    def readable(self) -> bool:
        """Whether the file gives frames."""
        return self.status in ("ok", "partial")


def check(path: Path, limits: Limits = LIMITS) -> Finding:
    """Decode what training would decode of a file, and its last frame; in this process.

    ``ok`` means that the frames in the middle of four equal segments and the last one were decoded, that nothing read
    on the way was damaged, and that the video is as long as it states. ``partial`` means that there are frames, but
    less than that. Other places in the file are not checked.
    """
    try:
        with open_reader(path, limits) as reader:
            duration = reader.duration
            reader.frames_at([*sampling.frame_times(_SEGMENTS, duration), duration], size=_SIDE)
            if reader.damaged:
                return Finding("partial", f"{reader.damaged} damaged packets or frames on the way")
            # Sound may be a little longer than the video, and the length of the last frame is often a guess.
            if not reader.raw and reader.reached < duration - max(1.0, 0.05 * duration):
                reason = f"its frames end after {reader.reached:.1f} s of the {duration:.1f} s it states"
                return Finding("partial", reason)
            return Finding("ok")
    except VideoError as error:
        return Finding(error.status, error.reason)


@dataclass(frozen=True, slots=True)
class FolderReport:
    """The results for a folder, ordered by path.

    Attributes:
        findings: path and result of each file, and of each folder that cannot be listed.
        unlisted: the number of folders that cannot be listed.
    """

    findings: tuple[tuple[Path, Finding], ...]
    unlisted: int = 0

    @classmethod
    def of(cls, findings: Iterable[tuple[Path, Finding]], unlisted: Sequence[tuple[Path, str]]) -> Self:
        """The report of files in any order and of folders that cannot be listed."""
        folders = [(path, f"the folder cannot be listed: {reason}; check its permissions") for path, reason in unlisted]
        every = [*findings, *((path, Finding("not_a_file", reason)) for path, reason in folders)]
        return cls(tuple(sorted(every, key=lambda finding: finding[0])), len(unlisted))

    @property
    def counts(self) -> dict[str, int]:
        """The number of entries with each status; the sum is the number of entries."""
        seen = Counter(finding.status for _, finding in self.findings)
        return {status: seen[status] for status in STATUSES}

    def as_json(self) -> dict[str, Any]:
        files = [
            {"path": str(path), "status": finding.status, "reason": finding.reason} for path, finding in self.findings
        ]
        return {"files": files, "counts": self.counts, "unlisted_folders": self.unlisted}

    def as_text(self) -> str:
        """A line for each entry that is not ``ok``, then the counts."""
        lines = [
            f"{finding.status:<12} {_printable(path)}: {_printable(finding.reason)}"
            for path, finding in self.findings
            if finding.status != "ok"
        ]
        counts = ", ".join(f"{status} {count}" for status, count in self.counts.items() if count)
        folders = f" and {self.unlisted} folders that cannot be listed" if self.unlisted else ""
        return "\n".join([*lines, f"{len(self.findings) - self.unlisted} files{folders}: {counts or 'none'}"])


def list_files(folder: Path) -> tuple[list[Path], list[tuple[Path, str]]]:
    """List a folder and everything below.

    A link to a file counts as a file. A link to a folder is listed but not followed, so that no loop can occur. A path
    that is no folder is listed itself.

    Returns:
        everything that is no folder, whatever its name and kind, ordered by path; and the folders that cannot be
        listed, with the reason.
    """
    if not folder.is_dir():
        return [folder], []
    files: list[Path] = []
    unlisted: list[tuple[Path, str]] = []

    def failed(error: OSError) -> None:
        unlisted.append((folder / os.path.relpath(error.filename, folder), error.strerror or str(error)))

    for root, folders, names in os.walk(folder, onerror=failed):
        place = folder / os.path.relpath(root, folder)
        files += [place / name for name in names]
        files += [place / name for name in folders if (place / name).is_symlink()]
    return sorted(files), sorted(unlisted)


def check_folder(
    files: Sequence[Path], unlisted: Sequence[tuple[Path, str]], pool: Pool, workers: int = 1,
    progress: Callable[[int], None] | None = None,
) -> FolderReport:  # fmt: skip
    """Check files in decoder processes.

    Args:
        files, unlisted: the result of ``list_files``.
        pool: the decoder processes.
        workers: number of files that are checked at the same time.
        progress: called with the number of files done.
    """
    findings: list[tuple[Path, Finding]] = []
    with ThreadPoolExecutor(workers) as threads:
        try:
            for path, finding in zip(files, threads.map(pool.check, files), strict=True):
                findings.append((path, finding))
                if progress is not None:
                    progress(len(findings))
        except BaseException:  # Ctrl-C: do not check the remaining files
            threads.shutdown(wait=False, cancel_futures=True)
            raise
    return FolderReport.of(findings, unlisted)


def _printable(text: object) -> str:
    """Text as one line; control characters and invalid Unicode are escaped."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in str(text))
