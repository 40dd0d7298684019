"""The database of an index: one SQLite file with files, segments and vectors. Everything else is a cache of it.

WAL mode with ``synchronous=FULL``: a committed transaction survives a kill and a power failure. A video enters,
changes and leaves in one transaction, so it is never there in part. Ids of segments are never used again, so what a
cache holds of a segment stays true as long as the segment exists. Readers see the last commit while a writer works.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import sqlite3
import threading
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self
from urllib.parse import quote

import numpy as np

from evilm.errors import OutputError, VideoIndexError
from evilm.files import decode_path, is_picture

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Sequence

    from numpy.typing import NDArray

FORMAT = 1
NAME = "index.db"
READABLE = ("ok", "partial")  # statuses of files that have segments
UNFINISHED = "indexing was stopped before the first video; run `evilm index` again"
_APPLICATION = 0x4556494C  # "EVIL": marks a SQLite file as an index
_ID_BLOCK = 4096  # vectors that are read with one query
# Names in format 1: the table moments has the segments, the table facts the metadata; the column bytes is the size of a
# file, changed the time of its last change, print the hash of its content.
_SCHEMA = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE files (
    id INTEGER PRIMARY KEY AUTOINCREMENT, path BLOB NOT NULL UNIQUE,
    bytes INTEGER NOT NULL, changed INTEGER NOT NULL, inode INTEGER NOT NULL, print BLOB NOT NULL,
    status TEXT NOT NULL, reason TEXT NOT NULL, duration REAL NOT NULL
);
CREATE TABLE moments (
    id INTEGER PRIMARY KEY AUTOINCREMENT, file INTEGER NOT NULL REFERENCES files (id) ON DELETE CASCADE,
    start REAL NOT NULL, end REAL NOT NULL, vector BLOB NOT NULL
);
CREATE INDEX moments_of_file ON moments (file);
"""


class FileRecord(NamedTuple):
    """A file in the database.

    Attributes:
        path: absolute, in the bytes of the system.
        size, mtime_ns, inode: as ``stat`` gave them before decoding; bytes, and nanoseconds of the last change.
        content_hash: see ``scan.content_hash``.
        status, reason: ``ok``, or another ``VideoStatus`` and its explanation.
        duration: in seconds.
    """

    id: int
    path: bytes
    size: int
    mtime_ns: int
    inode: int
    content_hash: bytes
    status: str
    reason: str
    duration: float
    num_segments: int = 0


class NewFile(NamedTuple):
    """A file to be written: the fields of a ``FileRecord`` without its id, and the file's segments.

    Attributes:
        spans: (start, end) of each segment in seconds.
        vectors: (segments, D) float32; None without segments.
    """

    path: bytes
    size: int
    mtime_ns: int
    inode: int
    content_hash: bytes
    status: str
    reason: str
    duration: float
    spans: Sequence[tuple[float, float]] = ()
    vectors: NDArray[np.float32] | None = None


class Segment(NamedTuple):
    """A segment of a video: its id, the id and path of its file, and its start and end in seconds."""

    id: int
    video_id: int
    path: Path
    start: float
    end: float


class Database:
    """An open database; safe to use from several threads.

    Args:
        folder: of the index.
        write: open it for writing, and create it if there is none; the caller holds ``update.writing``.

    Raises:
        VideoIndexError: there is no database, it is damaged, of another program or of another format.
        OutputError: the disk is full or the folder cannot be written.
    """

    def __init__(self, folder: Path, *, write: bool = False) -> None:
        self.folder, self.file = folder, folder / NAME
        self._lock = threading.RLock()
        with self._translate_errors():
            self._connection = self._connect(write)
            try:
                self._prepare(write)
            except BaseException:
                self._connection.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; safe to call twice."""
        with self._lock:
            self._connection.close()

    def _connect(self, write: bool) -> sqlite3.Connection:
        if not write and not self.file.is_file():
            raise VideoIndexError(f"{self.folder}: holds no index; make one: evilm index FOLDER {self.folder}")
        mode = "rwc" if write else "ro"
        # A read-only folder has no room for SQLite's shared memory, and nobody writes there.
        immutable = "" if write or os.access(self.folder, os.W_OK) else "&immutable=1"
        address = f"file:{quote(os.fsencode(self.file.resolve()))}?mode={mode}{immutable}"
        connection = sqlite3.connect(address, uri=True, isolation_level=None, timeout=10, check_same_thread=False)
        connection.create_function("name_matches", 2, _name_matches, deterministic=True)
        connection.create_function("is_picture", 1, is_picture, deterministic=True)
        return connection

    def _prepare(self, write: bool) -> None:
        if write:
            self._connection.execute("PRAGMA page_size = 16384")  # several vectors a page; only a new file takes it
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.execute("PRAGMA foreign_keys = ON")
        application = self._connection.execute("PRAGMA application_id").fetchone()[0]
        version = self._connection.execute("PRAGMA user_version").fetchone()[0]
        tables = self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if write and not tables:
            with self.transaction():
                for statement in _SCHEMA.split(";"):
                    self._connection.execute(statement)
                self._connection.execute(f"PRAGMA application_id = {_APPLICATION}")
                self._connection.execute(f"PRAGMA user_version = {FORMAT}")
                self.set_metadata("identity", uuid.uuid4().hex)
        elif not tables:
            raise VideoIndexError(f"{self.folder}: {UNFINISHED}")
        elif application != _APPLICATION:
            raise VideoIndexError(f"{self.file}: is a database of another program; name another folder")
        elif version != FORMAT:
            raise VideoIndexError(
                f"{self.file}: is an index of format {version}, and this version reads format {FORMAT}; index the "
                "videos again into a new folder"
            )

    @contextlib.contextmanager
    def _translate_errors(self) -> Generator[None]:
        """Turn SQLite's errors into ours."""
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorname", "") or ""
            if code.startswith(("SQLITE_FULL", "SQLITE_IOERR")):
                raise OutputError(
                    f"{self.file}: cannot be written: {error}; what was indexed is kept: free space, run it again"
                ) from None
            if code.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PERM")):
                raise OutputError(f"{self.file}: cannot be opened: {error}; check the folder's permissions") from None
            if code.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
                raise VideoIndexError(f"{self.file}: another process keeps it locked; try again") from None
            raise VideoIndexError(f"{self.file}: damaged ({error}); index again into a new folder") from None

    @contextlib.contextmanager
    def transaction(self) -> Generator[None]:
        """Commit everything that is written within the block together, or nothing."""
        with self._lock, self._translate_errors():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def snapshot(self) -> Generator[None]:
        """Read one state within the block, whatever another process commits meanwhile."""
        with self._lock, self._translate_errors():
            self._connection.execute("BEGIN")
            try:
                yield
            finally:
                self._connection.execute("COMMIT")

    def _rows(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        with self._lock, self._translate_errors():
            return self._connection.execute(query, values).fetchall()

    # Metadata

    def metadata(self, name: str, default: Any = None) -> Any:
        """The JSON value stored under ``name``."""
        rows = self._rows("SELECT value FROM facts WHERE name = ?", (name,))
        return json.loads(rows[0][0]) if rows else default

    def set_metadata(self, name: str, value: Any) -> None:
        """Store a JSON value; within a transaction it is committed with the rest."""
        with self._lock, self._translate_errors():
            self._connection.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, json.dumps(value)))

    @property
    def generation(self) -> int:
        """A number that grows with every change of files or segments."""
        return self.metadata("generation", 0)

    @property
    def counts(self) -> tuple[int, int]:
        """Number of files that have segments, and number of segments."""
        status_counts = self.status_counts()
        return sum(status_counts.get(s, 0) for s in READABLE), self._rows("SELECT count(*) FROM moments")[0][0]

    def status_counts(self) -> dict[str, int]:
        """Number of files of each status that occurs."""
        return dict(self._rows("SELECT status, count(*) FROM files GROUP BY status ORDER BY count(*) DESC, status"))

    # Files

    def files(
        self, where: str = "1", values: Sequence[Any] = (), limit: int | None = None, offset: int = 0
    ) -> list[FileRecord]:
        """Records of files in order of paths.

        Args:
            where: SQL condition on the table ``files``, written by this package; user input goes into ``values``.
            values: for its placeholders.
            limit: maximum number of records; None for all.
            offset: number of records to leave out before the first.
        """
        columns = "id, path, bytes, changed, inode, print, status, reason, duration"
        count = "(SELECT count(*) FROM moments m WHERE m.file = files.id)"
        query = f"SELECT {columns}, {count} FROM files WHERE {where} ORDER BY path LIMIT ? OFFSET ?"  # noqa: S608 - see where
        return [FileRecord(*row) for row in self._rows(query, [*values, -1 if limit is None else limit, offset])]

    def file_ids(self, where: str, values: Sequence[Any]) -> NDArray[np.int64]:
        """Ids of the files that meet a condition (see ``files``), increasing."""
        rows = self._rows(f"SELECT id FROM files WHERE {where} ORDER BY id", values)  # noqa: S608 - see files
        return np.array(rows, dtype=np.int64).reshape(-1)

    def put(self, file: NewFile) -> None:
        """Write a file with its segments, replacing any record of its path. Call it within a transaction."""
        self.delete_files([file.path])
        file_id = self._connection.execute(
            "INSERT INTO files (path, bytes, changed, inode, print, status, reason, duration) VALUES (?,?,?,?,?,?,?,?)",
            file[:8],
        ).lastrowid
        if file.vectors is not None:
            rows = zip(file.spans, file.vectors, strict=True)
            self._connection.executemany(
                "INSERT INTO moments (file, start, end, vector) VALUES (?, ?, ?, ?)",
                [(file_id, start, end, vector.astype("<f4").tobytes()) for (start, end), vector in rows],
            )
        self.set_metadata("generation", self.generation + 1)

    def delete_files(self, paths: Iterable[bytes]) -> None:
        """Delete files and their segments. Call it within a transaction."""
        self._connection.executemany("DELETE FROM files WHERE path = ?", [(path,) for path in paths])
        self.set_metadata("generation", self.generation + 1)

    def move_file(self, file_id: int, path: bytes, size: int, mtime_ns: int, inode: int) -> None:
        """Record that unchanged content has another path, time or inode. Call it within a transaction."""
        self._connection.execute(
            "UPDATE files SET path = ?, bytes = ?, changed = ?, inode = ? WHERE id = ?",
            (path, size, mtime_ns, inode, file_id),
        )
        self.set_metadata("generation", self.generation + 1)

    # Segments

    def segment_ids(self) -> NDArray[np.int64]:
        """(n, 2): ids of all segments, increasing, and of their files."""
        return np.array(self._rows("SELECT id, file FROM moments ORDER BY id"), dtype=np.int64).reshape(-1, 2)

    def segments(self, ids: Sequence[int] = (), file_id: int | None = None) -> list[Segment]:
        """Segments by their ids, or all segments of one file in order of time; ids that do not exist are left out."""
        query = "SELECT m.id, f.id, f.path, m.start, m.end FROM moments m JOIN files f ON f.id = m.file WHERE"
        rows: list[Any] = []
        if file_id is not None:
            rows = self._rows(f"{query} f.id = ? ORDER BY m.start, m.id", [file_id])
        for start in range(0, len(ids), _ID_BLOCK):  # SQLite limits the number of placeholders
            some = list(ids[start : start + _ID_BLOCK])
            rows += self._rows(f"{query} m.id IN ({','.join('?' * len(some))})", some)
        return [Segment(number, file, decode_path(path), start, end) for number, file, path, start, end in rows]

    def vectors(self, ids: NDArray[np.int64], width: int) -> NDArray[np.float32]:
        """(n, width) vectors of the segments ``ids`` (increasing)."""
        matrix = np.empty((len(ids), width), dtype=np.float32)
        filled = 0
        for start in range(0, len(ids), _ID_BLOCK):
            some = ids[start : start + _ID_BLOCK]
            wanted = set(some.tolist())
            rows = self._rows(
                "SELECT id, vector FROM moments WHERE id >= ? AND id <= ? ORDER BY id", (int(some[0]), int(some[-1]))
            )
            for number, vector in rows:
                if number in wanted:
                    matrix[filled] = np.frombuffer(vector, dtype="<f4")
                    filled += 1
        if filled != len(ids):
            raise VideoIndexError(f"{self.file}: damaged (segments are missing); index again into a new folder")
        return matrix

    def compact(self) -> None:
        """Return the disk space of deleted content to the system; an ``OutputError`` loses nothing."""
        for statement in ("VACUUM", "PRAGMA wal_checkpoint(TRUNCATE)"):
            self._rows(statement)


def under(folder: bytes) -> tuple[str, tuple[bytes, bytes]]:
    """SQL condition that a path lies under ``folder``, and its values."""
    stem = folder.rstrip(b"/") + b"/"
    return "path >= ? AND path < ?", (stem, stem[:-1] + b"0")  # "0" follows "/"


def _name_matches(path: bytes, pattern: str) -> bool:
    """Whether the file name of ``path`` matches a pattern with ``*``, ``?`` and ``[]``; letter case is ignored."""
    return fnmatch.fnmatchcase(Path(os.fsdecode(path)).name.lower(), pattern.lower())
