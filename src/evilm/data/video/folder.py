"""Every file of a folder, each with one status."""

from __future__ import annotations

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evilm.data.video.check import STATUSES, Finding
from evilm.data.video.pool import DecoderPool

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from evilm.data.video.limits import Limits


@dataclass(frozen=True, slots=True)
class FolderReport:
    """What was found, in order of path.

    Attributes:
        findings: a pair of path and finding for each file.
    """

    findings: tuple[tuple[Path, Finding], ...]

    @property
    def counts(self) -> dict[str, int]:
        """How many files have each status; their sum is the number of files."""
        seen = Counter(finding.status for _, finding in self.findings)
        return {status: seen[status] for status in STATUSES}

    def as_json(self) -> dict[str, Any]:
        files = [
            {"path": str(path), "status": finding.status, "reason": finding.reason} for path, finding in self.findings
        ]
        return {"files": files, "counts": self.counts}

    def as_text(self) -> str:
        """A line for each file that is not ``ok``, then the counts."""
        lines = [
            f"{finding.status:<12} {_printable(path)}: {_printable(finding.reason)}"
            for path, finding in self.findings
            if finding.status != "ok"
        ]
        counts = ", ".join(f"{status} {count}" for status, count in self.counts.items() if count)
        return "\n".join([*lines, f"{len(self.findings)} files: {counts or 'none'}"])


def everything_in(folder: Path) -> list[Path]:
    """All that lies in a folder and below and is no folder, whatever its name and kind, in order of path.

    A link to a file counts as a file; one to a folder is listed, but not followed, so that no loop can catch us. A path
    that is no folder stands for itself.
    """
    if not folder.is_dir():
        return [folder]
    found: list[Path] = []
    for root, folders, files in os.walk(folder):
        place = folder / os.path.relpath(root, folder)
        found += [place / name for name in files]
        found += [place / name for name in folders if (place / name).is_symlink()]
    return sorted(found)


def check_folder(
    paths: Sequence[Path], workers: int, limits: Limits, progress: Callable[[int], None] | None = None
) -> FolderReport:
    """Check files in decoder processes.

    Args:
        paths: of what is to be checked.
        workers: processes.
        limits: of each file.
        progress: called with the number of files done.
    """
    findings: list[tuple[Path, Finding]] = []
    with DecoderPool(workers, limits) as pool, ThreadPoolExecutor(workers) as threads:
        try:
            for path, finding in zip(paths, threads.map(pool.check, paths), strict=True):
                findings.append((path, finding))
                if progress is not None:
                    progress(len(findings))
        except BaseException:  # Ctrl-C: not the files that wait, too
            threads.shutdown(wait=False, cancel_futures=True)
            raise
    return FolderReport(tuple(findings))


def _printable(text: object) -> str:
    """Text as one line: what would steer a terminal, or is no Unicode, is escaped."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in str(text))
