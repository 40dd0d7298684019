"""Bring an index up to date with a folder: scan, decode, embed, write. What is committed survives a kill."""

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

from evilm import files
from evilm.errors import OutputError, VideoIndexError, VocabularyError
from evilm.progress import say
from evilm.search import calibration, remote, scan, vectors, words
from evilm.search.database import NAME, READABLE, Database, NewFile
from evilm.search.model import bind_config, bind_model, foreign_to_world_tiny, resolve_model
from evilm.search.pipeline import Pipeline

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from evilm.data.video import Limits
    from evilm.inference import Embedder
    from evilm.search.model import IndexConfig
    from evilm.search.scan import FoundFile, Walk
    from evilm.search.source import Source

    Embed = Callable[[Sequence[FoundFile]], Iterable[list[NewFile]]]
    # From a pipeline and the name of its model (None: only in memory) to what embeds files elsewhere.
    Runner = Callable[[Pipeline, str | None], AbstractContextManager[Embed]]

KIND = "index of videos"
LOCK = "lock"
UNREADABLE = "unreadable.jsonl"
_CACHE_ROWS, _CACHE_SHARE = 50_000, 0.25  # new segments after which the cache is written during an update
_EXAMPLES = 64  # segments that the calibration of searches by example uses


@dataclass
class Report:
    """Result of an update.

    Attributes:
        new, changed, moved, deleted, same, vanished: numbers of files; vanished ones were deleted during the update.
        files, segments: numbers in the index afterwards.
        unreadable: path, status and reason of each file that gave no segments, or not all of them.
        unlisted: folders that could not be listed; the index keeps what it has of their files.
        others: number of files with other suffixes than those that are indexed.
        pictures: number of pictures that have a segment.
        seconds: total time.
        decoding, encoding: seconds of the two stages, summed over workers.
    """

    new: int = 0
    changed: int = 0
    moved: int = 0
    deleted: int = 0
    same: int = 0
    vanished: int = 0
    files: int = 0
    segments: int = 0
    unreadable: list[dict[str, str]] = field(default_factory=lambda: [])
    unlisted: list[dict[str, str]] = field(default_factory=lambda: [])
    others: int = 0
    pictures: int = 0
    seconds: float = 0.0
    decoding: float = 0.0
    encoding: float = 0.0

    def as_json(self) -> dict[str, Any]:
        return self.__dict__ | {name: round(getattr(self, name), 3) for name in ("seconds", "decoding", "encoding")}

    def __str__(self) -> str:
        counts = {name: getattr(self, name) for name in ("new", "changed", "moved", "deleted", "same", "vanished")}
        parts = [f"{count:,} {name}" for name, count in counts.items() if count or name in ("new", "same")]
        pictures = f" and {self.pictures:,} pictures" if self.pictures else ""
        videos = f"{self.files - self.pictures:,} videos{pictures}"
        return f"{videos}, {self.segments:,} segments ({', '.join(parts)}) in {self.seconds:.1f} s"


@contextlib.contextmanager
def writing(folder: Path) -> Generator[None]:
    """Hold the lock of an index's only writer. The system releases it when the process ends.

    Raises:
        VideoIndexError: another process holds it.
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
            writer = file.read(20).strip() or "unknown"
            raise VideoIndexError(
                f"{folder}: process {writer} is writing to this index: wait for it, or stop it"
            ) from None
        with contextlib.suppress(OSError):  # a full disk: the lock works without the process id
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
        yield


def update_index(
    source: Source, index_dir: Path, model: Embedder | str | Path | None, *, config: IndexConfig | None, workers: int,
    batch: int, limits: Limits, allow_empty: bool, on_commit: Callable[[Sequence[bytes], int, int], None] | None,
    runner: Runner | None = None, pictures: bool | None = None,
) -> tuple[Embedder, Report]:  # fmt: skip
    """Make an index of videos, or bring it up to date; see ``VideoIndex.build`` for arguments and errors."""
    files.check_output_dir(index_dir, KIND)
    is_new = not (index_dir / NAME).exists()
    embedder, origin = resolve_model(model, is_new=is_new)
    files.acquire_dir(index_dir, KIND)
    try:
        with writing(index_dir), Database(index_dir, write=True) as database:
            embedder = bind_model(database, embedder, origin)
            if pictures is not None:
                database.set_metadata("pictures", pictures)
            pipeline = Pipeline(embedder, bind_config(database, config), workers, batch, limits)
            if runner is None:
                return embedder, _Update(database, pipeline, pipeline.run, on_commit).run(source, allow_empty)
            with runner(pipeline, database.metadata("model")["path"]) as run:
                return embedder, _Update(database, pipeline, run, on_commit).run(source, allow_empty)
    except VideoIndexError:
        if is_new:
            _remove_if_empty(index_dir)
        raise


def _remove_if_empty(index_dir: Path) -> None:
    """Remove a new index that has no files, so that a mistyped folder leaves nothing behind."""
    try:
        with Database(index_dir) as database:
            if database.status_counts():
                return
    except VideoIndexError:
        return
    for name in (NAME, f"{NAME}-wal", f"{NAME}-shm", LOCK, vectors.NAME):
        (index_dir / name).unlink(missing_ok=True)
    files.release_dir(index_dir)


def _exists(path: bytes) -> bool:
    return remote.is_remote(path) or os.path.lexists(path)


@dataclass
class _Update:
    """An update of a database from one source; the caller holds the lock."""

    database: Database
    pipeline: Pipeline
    embed: Embed
    on_commit: Callable[[Sequence[bytes], int, int], None] | None

    def run(self, source: Source, allow_empty: bool) -> Report:
        """Make the index describe what ``source`` holds; entries of other folders stay."""
        began = time.monotonic()
        walked = source.scan(skip=self.database.folder, pictures=self.database.metadata("pictures", False))
        known, elsewhere = source.records(self.database, walked)
        self._check_not_empty(source, walked, len(known), allow_empty)
        changes = scan.compare(known, walked, elsewhere)
        refused = {path for path, _ in walked.refused}
        changes.deleted = [record for record in changes.deleted if record.path not in refused]
        todo = [*changes.new, *changes.changed]
        if foreign_to_world_tiny(self.database.metadata("model", {}).get("path"), [found.path for found in todo]):
            say(
                "warning: the model world-tiny was trained only on moving shapes of the synthetic world; its hits and "
                "scores on other videos mean nothing: name a model of real videos with --model"
            )
        with self.database.transaction():  # what needs no decoding
            self.database.set_metadata("folder", os.fsdecode(source.root))
            self.database.delete_files([record.path for record in changes.deleted])
            for record, found in [*changes.moved, *changes.touched]:
                self.database.move_file(record.id, *found)
            for path, reason in walked.refused:
                self.database.put(NewFile(path, 0, 0, 0, b"", "not_a_file", reason, 0.0))
        vanished = self._decode(todo)
        report = Report(
            new=len(changes.new), changed=len(changes.changed), moved=len(changes.moved),
            deleted=len(changes.deleted), same=changes.same + len(changes.touched), vanished=vanished,
            unlisted=[{"path": os.fsdecode(path), "reason": reason} for path, reason in walked.unlisted],
            others=walked.others, decoding=self.pipeline.decoding, encoding=self.pipeline.encoding,
        )  # fmt: skip
        report.unreadable = finish(self.database, lambda: self.pipeline.model)
        report.files, report.segments = self.database.counts
        report.pictures = len(self.database.file_ids("status IN (?, ?) AND is_picture(path)", READABLE))
        report.seconds = time.monotonic() - began
        here = source.records(self.database, walked)[0]
        if here and source.shard is None and not any(record.status in READABLE for record in here):
            counts = ", ".join(f"{count} {status}" for status, count in Counter(r.status for r in here).items())
            raise VideoIndexError(
                f"{source.name}: none of its {len(here)} videos can be read ({counts}); "
                f"{self.database.folder / UNREADABLE} has the reason for each"
            )
        return report

    def _check_not_empty(self, source: Source, walked: Walk, known: int, allow_empty: bool) -> None:
        folder = source.name
        if walked.files or walked.total or allow_empty:
            return
        if known:
            raise VideoIndexError(
                f"{folder}: holds no videos, and the index has {known:,} of this folder: is a disk missing? "
                "--allow-empty removes them from the index"
            )
        if not walked.refused:
            content = f"{walked.others:,} files with other suffixes" if walked.others else "it is empty"
            if walked.pictures:
                content = f"{walked.pictures:,} pictures; --pictures indexes them"
            raise VideoIndexError(
                f"{folder}: holds no videos ({content}); names of videos end in .mp4, .mkv, .webm, .avi, .mov, ..."
            )

    def _decode(self, todo: list[FoundFile]) -> int:
        """Decode, embed and write files; returns how many of them were deleted meanwhile."""
        left = {found.path for found in todo}
        unsaved = 0
        for group in self.embed(todo):
            entries = [each for each in group if each.status != "not_a_file" or _exists(each.path)]
            with self.database.transaction():
                for entry in entries:
                    self.database.put(entry)
            left -= {entry.path for entry in entries}
            unsaved += sum(len(entry.spans) for entry in entries)
            if self.on_commit is not None:
                self.on_commit([entry.path for entry in entries], len(todo) - len(left), len(todo))
            if unsaved >= max(_CACHE_ROWS, _CACHE_SHARE * self.database.counts[1]):
                save_cache(self.database)
                unsaved = 0
        if left:
            with self.database.transaction():
                self.database.delete_files(left)
        return len(left)


def save_cache(database: Database) -> vectors.Vectors:
    """Write the cache of all vectors; returns them."""
    current = vectors.load(database, database.metadata("width"))
    vectors.save(database.folder, database.metadata("identity"), current)
    return current


def finish(database: Database, model: Callable[[], Embedder]) -> list[dict[str, str]]:
    """Write the cache, the calibrations and the list of unreadable files, which is returned."""
    current = save_cache(database)
    if len(current):
        _calibrate(database, current, model)
        words.of_model(model(), database.folder)  # for the first search
    unreadable = [
        {"path": os.fsdecode(record.path), "status": record.status, "reason": record.reason}
        for record in database.files("status != 'ok'")
    ]
    path = database.folder / UNREADABLE
    try:
        files.write_atomic(path, "".join(json.dumps(each) + "\n" for each in unreadable))
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}; the index itself is complete") from None
    return unreadable


def _calibrate(database: Database, current: vectors.Vectors, model: Callable[[], Embedder]) -> None:
    """Calibrate searches by text and by example without labels; a calibration from labels is kept."""
    rows = np.linspace(0, len(current) - 1, min(len(current), _EXAMPLES)).astype(np.int64)[1::2]
    # An example finds itself and its neighbours, so files of the examples are left out.
    others = current.matrix[~np.isin(current.file_ids, current.file_ids[rows])]
    values = {"example_calibration": calibration.from_background(current.matrix[rows], others).as_json()}
    if database.metadata("text_calibration", {}).get("origin") != "labels":
        try:
            queries = model().embed_texts(list(calibration.UNRELATED))
            by_text = calibration.from_background(queries, current.matrix)
        except VocabularyError:
            by_text = calibration.UNKNOWN
        values["text_calibration"] = by_text.as_json()
    with database.transaction():
        for name, value in values.items():
            database.set_metadata(name, value)
