"""Join indexes, such as those of the shards of one folder, into one index."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from evilm import files
from evilm.errors import VideoIndexError
from evilm.search.database import NAME, UNFINISHED, Database, NewFile
from evilm.search.update import KIND, finish, writing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from evilm.inference import Embedder
    from evilm.search.database import FileRecord

_BLOCK = 1000  # files that are copied in one transaction
_SAME = ("model", "width", "config")  # metadata that joined indexes have in common; of the model, its fingerprint


@dataclass
class Merged:
    """Result of a merge.

    Attributes:
        added, replaced, same: numbers of files.
        doubled: number of files that more than one of the joined indexes has; the last changed one is kept.
        files, segments: numbers in the index afterwards.
        seconds: total time.
    """

    added: int = 0
    replaced: int = 0
    same: int = 0
    doubled: int = 0
    files: int = 0
    segments: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        doubled = f", {self.doubled:,} in several of them" if self.doubled else ""
        return (
            f"{self.files:,} files, {self.segments:,} segments ({self.added:,} added, {self.replaced:,} replaced, "
            f"{self.same:,} same{doubled}) in {self.seconds:.1f} s"
        )


def merge(
    index_dir: Path, parts: Sequence[Path], load: Callable[[str], Embedder],
    on_commit: Callable[[int, int], None] | None = None,
) -> Merged:  # fmt: skip
    """Copy the files of other indexes into an index. A second merge copies only what has changed.

    Each file enters in one transaction with all its segments, so a kill leaves no file in part. A file that is gone
    from a part stays in the index until `evilm index` updates it from the folder.

    Args:
        index_dir: folder of the index: new, or made with the same model and settings.
        parts: folders of the indexes to copy.
        load: loads the model by the name that the index has, to calibrate its scores.
        on_commit: called with the number of files done and of all.

    Raises:
        VideoIndexError: a part is no index, is unfinished, or was made with another model or other settings.
        OutputError: the folder holds something else, or the disk is full (what is committed is kept).
    """
    began, result = time.monotonic(), Merged()
    sources = [Database(part) for part in parts]
    try:
        files.check_output_dir(index_dir, KIND)
        _check_alike([*sources, *([Database(index_dir)] if (index_dir / NAME).exists() else [])])
        files.acquire_dir(index_dir, KIND)
        with writing(index_dir), Database(index_dir, write=True) as database:
            if database.metadata("model") is None:
                with database.transaction():
                    for name in (*_SAME, "folder"):
                        database.set_metadata(name, sources[0].metadata(name))
            if any(source.metadata("pictures", False) for source in sources):  # else an update would remove them
                database.set_metadata("pictures", True)
            _copy(database, sources, result, on_commit)
            finish(database, lambda: load(database.metadata("model")["path"]))
            result.files, result.segments = database.counts
    finally:
        for source in sources:
            source.close()
    result.seconds = time.monotonic() - began
    return result


def _check_alike(databases: Sequence[Database]) -> None:
    first: dict[str, object] = {}
    for database in databases:
        facts = {name: database.metadata(name) for name in _SAME}
        if facts["model"] is None:
            raise VideoIndexError(f"{database.folder}: {UNFINISHED}")
        facts["model"] = facts["model"]["fingerprint"]
        for name, value in facts.items():
            if first.setdefault(name, value) != value:
                raise VideoIndexError(
                    f"{database.folder}: was made with another {name} than {databases[0].folder}: only indexes of one "
                    "model with equal settings can be joined"
                )


def _copy(
    database: Database, sources: Sequence[Database], result: Merged, on_commit: Callable[[int, int], None] | None
) -> None:
    newest: dict[bytes, tuple[FileRecord, int]] = {}
    for number, source in enumerate(sources):
        for record in source.files():
            if record.path in newest:
                result.doubled += 1
                if newest[record.path][0].mtime_ns >= record.mtime_ns:
                    continue
            newest[record.path] = record, number
    before = {record.path: record[1:] for record in database.files()}
    todo = [each for path, each in sorted(newest.items()) if before.get(path) != each[0][1:]]
    result.same = len(newest) - len(todo)
    result.replaced = sum(record.path in before for record, _ in todo)
    result.added = len(todo) - result.replaced
    for start in range(0, len(todo), _BLOCK):
        with database.transaction():
            for entry in _entries(sources, todo[start : start + _BLOCK], database.metadata("width")):
                database.put(entry)
        if on_commit is not None:
            on_commit(min(start + _BLOCK, len(todo)), len(todo))


def _entries(sources: Sequence[Database], some: Sequence[tuple[FileRecord, int]], width: int) -> Iterator[NewFile]:
    """Files with their segments and vectors."""
    for record, number in some:
        segments = sources[number].segments(file_id=record.id) if record.num_segments else []
        spans, vectors = [(each.start, each.end) for each in segments], None
        if segments:
            vectors = sources[number].vectors(np.array([each.id for each in segments], np.int64), width)
        yield NewFile(*record[1:9], spans, vectors)
