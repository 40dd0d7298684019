"""Bringing an index up to date with a folder: scan, decode, encode, write; whatever is acknowledged is durable."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from evilm.errors import OutputError, VideoIndexError, VocabularyError
from evilm.search import calibration, nearest_codes, scan, vectors
from evilm.search.decoding import PATIENCE
from evilm.search.pipeline import Pipeline
from evilm.search.records import Entry

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence
    from pathlib import Path

    from evilm.data.video import Limits
    from evilm.search.database import Database
    from evilm.search.decoding import DecodeConfig
    from evilm.search.embedder import Embedder
    from evilm.search.scan import Changes, Found, Walk

LOCK = "lock"
UNREADABLE = "unreadable.jsonl"
READABLE = ("ok", "partial")
_GROUP = 64  # files that become durable together at most
_SECONDS = 1.0  # after which they do in any case
_CACHE_ROWS, _CACHE_SHARE = 50_000, 0.25  # new moments after which the cache is written on the way


@dataclass
class Report:
    """What an update did.

    Attributes:
        new, changed, moved, deleted, same, vanished: files.
        files, moments: in the index now.
        unreadable: path, status and reason of each file that gave nothing, or not all.
        closed: folders that could not be listed; what was known of their files is kept.
        others: files whose names are no video's.
        seconds, decoding, encoding: wall time, and what the two stages took of it, summed over workers.
    """

    new: int = 0
    changed: int = 0
    moved: int = 0
    deleted: int = 0
    same: int = 0
    vanished: int = 0
    files: int = 0
    moments: int = 0
    unreadable: list[dict[str, str]] = field(default_factory=lambda: [])
    closed: list[dict[str, str]] = field(default_factory=lambda: [])
    others: int = 0
    seconds: float = 0.0
    decoding: float = 0.0
    encoding: float = 0.0

    def as_json(self) -> dict[str, Any]:
        return self.__dict__ | {name: round(getattr(self, name), 3) for name in ("seconds", "decoding", "encoding")}

    def __str__(self) -> str:
        counts = {name: getattr(self, name) for name in ("new", "changed", "moved", "deleted", "same", "vanished")}
        parts = [f"{count:,} {name}" for name, count in counts.items() if count or name in ("new", "same")]
        return f"{self.files:,} videos, {self.moments:,} moments ({', '.join(parts)}) in {self.seconds:.1f} s"


@contextlib.contextmanager
def writing(folder: Path) -> Generator[None]:
    """Be the index's one writer. The system itself lets go of the lock of a writer that died.

    Raises:
        VideoIndexError: another process writes to it.
        OutputError: the folder cannot be written.
    """
    try:
        file: IO[str] = (folder / LOCK).open("a+")
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written: {error.strerror}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            who = file.read(20).strip() or "unknown"
            raise VideoIndexError(
                f"{folder}: process {who} is writing to this index: wait for it, or stop it"
            ) from None
        with contextlib.suppress(OSError):  # on a full disk the message to others is not worth an error
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
        yield


@dataclass
class Update:
    """One update of one folder; the caller holds the lock.

    Args:
        catalogue: open for writing.
        model: encodes.
        config: what to decode.
        workers: decoding processes.
        batch: moments that are encoded together.
        limits: what a file may cost.
        acknowledged: called with paths whose entries have just become durable, files done and files to do.
    """

    catalogue: Database
    model: Embedder
    config: DecodeConfig
    workers: int = 2
    batch: int = 16
    limits: Limits = PATIENCE
    acknowledged: Callable[[Sequence[bytes], int, int], None] | None = None

    def run(self, folder: Path, *, forget: bool = False) -> Report:
        """Make the index say what ``folder`` holds.

        Args:
            folder: is scanned; what the index holds of other folders stays.
            forget: drop the videos of a folder that holds none any more.

        Raises:
            VideoIndexError: no such folder, or nothing in it to search.
            OutputError: the disk is full; what was acknowledged is kept.
        """
        began = time.monotonic()
        if not folder.is_dir():
            raise VideoIndexError(f"{folder}: no such folder of videos")
        walked = scan.walk(folder, skip=self.catalogue.folder)
        root = os.fsencode(folder.resolve())
        known = list(self.catalogue.files(root))
        self._check(folder, walked, len(known), forget)
        changes = scan.compare(known, walked, (each for each in self.catalogue.files() if not _below(each.path, root)))
        refused = {path for path, _ in walked.refused}
        changes.gone = [each for each in changes.gone if each.path not in refused]
        self._settle(changes, walked)
        pipeline = Pipeline(self.model, self.config, self.workers, self.batch, self.limits)
        vanished = self._decode(pipeline, [*changes.new, *changes.changed])
        report = Report(
            new=len(changes.new), changed=len(changes.changed), moved=len(changes.moved),
            deleted=len(changes.gone), same=changes.same + len(changes.touched), vanished=vanished,
            closed=[{"path": os.fsdecode(path), "reason": reason} for path, reason in walked.closed],
            others=walked.others, decoding=pipeline.decoding, encoding=pipeline.encoding,
        )  # fmt: skip
        self._finish(report)
        report.seconds = time.monotonic() - began
        self._check_readable(folder, root, report)
        return report

    def _check(self, folder: Path, walked: Walk, known: int, forget: bool) -> None:
        if walked.files or forget:
            return
        if known:
            raise VideoIndexError(
                f"{folder}: holds no videos, and the index knows {known:,}: is a disk missing? --forget drops them"
            )
        if not walked.refused:
            looked = f"{walked.others:,} files with other names" if walked.others else "it is empty"
            raise VideoIndexError(
                f"{folder}: holds no videos ({looked}); videos end in .mp4, .mkv, .webm, .avi, .mov, ..."
            )

    def _settle(self, changes: Changes, walked: Walk) -> None:
        """Write what needs no decoding."""
        with self.catalogue.transaction():
            self.catalogue.drop_paths([each.path for each in changes.gone])
            for old, now in [*changes.moved, *changes.touched]:
                self.catalogue.move(old.id, *now)
            for path, reason in walked.refused:
                self.catalogue.put(Entry(path, 0, 0, 0, b"", "not_a_file", reason, 0.0, (), None))

    def _decode(self, pipeline: Pipeline, files: list[Found]) -> int:
        """Decode, encode and write ``files``; how many of them vanished meanwhile."""
        left = {found.path for found in files}
        vanished = 0
        unsaved = 0
        for group in _groups(pipeline.run(files)):
            entries = [each for each in group if each.status != "not_a_file" or os.path.lexists(each.path)]
            with self.catalogue.transaction():
                for entry in entries:
                    self.catalogue.put(entry)
            left -= {entry.path for entry in entries}
            unsaved += sum(len(entry.spans) for entry in entries)
            if self.acknowledged is not None:
                self.acknowledged([entry.path for entry in entries], len(files) - len(left), len(files))
            if unsaved >= max(_CACHE_ROWS, _CACHE_SHARE * self.catalogue.counts[1]):
                self._cache()
                unsaved = 0
        if left:  # gone since the scan: so is what was known of them
            with self.catalogue.transaction():
                self.catalogue.drop_paths(left)
            vanished = len(left)
        return vanished

    def _cache(self) -> vectors.Vectors | None:
        width = self.catalogue.fact("width")
        if width is None:
            return None
        matrix = vectors.load(self.catalogue, width)
        save_caches(self.catalogue, matrix)
        return matrix

    def _finish(self, report: Report) -> None:
        """Calibrate, write the cache and the list of what could not be read."""
        vectors = self._cache()
        if vectors is not None and len(vectors):
            self._calibrate(vectors)
        report.files, report.moments = self.catalogue.counts
        bad = [each for each in self.catalogue.files() if each.status != "ok"]
        report.unreadable = [
            {"path": os.fsdecode(each.path), "status": each.status, "reason": each.reason} for each in bad
        ]
        lines = "".join(json.dumps(each) + "\n" for each in report.unreadable)
        path = self.catalogue.folder / UNREADABLE
        try:
            path.with_name(UNREADABLE + ".tmp").write_text(lines, encoding="utf-8")
            os.replace(path.with_name(UNREADABLE + ".tmp"), path)
        except OSError as error:
            raise OutputError(f"{path}: cannot be written: {error.strerror}; the index itself is whole") from None

    def _calibrate(self, vectors: vectors.Vectors) -> None:
        """Backgrounds of searches by text and by example; a calibration from labels is left as it is."""
        rows = np.linspace(0, len(vectors) - 1, min(len(vectors), 64)).astype(np.int64)
        # An example finds itself and its neighbours: only the other half of the index may answer.
        example = calibration.background(vectors.vectors[rows[1::2]], _without(vectors, rows[1::2]))
        facts = {"example_calibration": example.as_json()}
        if self.catalogue.fact("text_calibration", {}).get("origin") != "labels":
            try:
                queries = self.model.embed_texts(list(calibration.UNRELATED))
                found = calibration.background(queries, vectors.vectors)
            except VocabularyError:
                found = calibration.UNKNOWN
            facts["text_calibration"] = found.as_json()
        with self.catalogue.transaction():
            for name, value in facts.items():
                self.catalogue.set_fact(name, value)

    def _check_readable(self, folder: Path, root: bytes, report: Report) -> None:
        bad = [each for each in report.unreadable if _below(os.fsencode(each["path"]), root)]
        if bad and not any(each.status in READABLE for each in self.catalogue.files(root)):
            counts = ", ".join(f"{count} {status}" for status, count in Counter(e["status"] for e in bad).items())
            raise VideoIndexError(
                f"{folder}: none of its {len(bad)} videos can be read ({counts}); "
                f"{self.catalogue.folder / UNREADABLE} says why each"
            )


def save_caches(catalogue: Database, matrix: vectors.Vectors) -> None:
    """Write what makes searching fast: the vectors as one array and, where they are many, in 8 bits."""
    identity = catalogue.fact("identity")
    vectors.save(catalogue.folder, identity, matrix)
    if matrix.vectors.size >= nearest_codes.LEAST:
        nearest_codes.save(catalogue.folder, identity, matrix)


def _without(
    vectors: vectors.Vectors, rows: np.ndarray[Any, np.dtype[np.int64]]
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The vectors of all files but those of ``rows``."""
    return vectors.vectors[~np.isin(vectors.files, vectors.files[rows])]


def _groups(entries: Iterator[Entry]) -> Iterator[list[Entry]]:
    """Entries in groups that are written together."""
    group: list[Entry] = []
    since = time.monotonic()
    for entry in entries:
        group.append(entry)
        if len(group) >= _GROUP or time.monotonic() - since >= _SECONDS:
            yield group
            group, since = [], time.monotonic()
    if group:
        yield group


def _below(path: bytes, folder: bytes) -> bool:
    return path.startswith(folder.rstrip(b"/") + b"/")
