"""The catalogue of an index: one SQLite file that holds files, moments and vectors. Everything else is a cache of it.

WAL with ``synchronous=FULL``: a transaction that was committed survives a kill and a loss of power. A video enters,
changes and leaves in one transaction, so none is ever there by halves. Numbers of moments are never used again, so
what a cache knows about one stays true for as long as the moment exists.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
import uuid
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

import numpy as np

from evilm.errors import OutputError, VideoIndexError
from evilm.search.records import Known

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from evilm.search.records import Entry

FORMAT = 1
NAME = "index.db"
UNFINISHED = "its making was stopped before the first video; run `evilm index` again"
_APPLICATION = 0x4556494C  # "EVIL": says whose SQLite file this is
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


class Database:
    """An open catalogue.

    Args:
        folder: the index.
        write: open for changing; a new catalogue is made where there is none. One writer at a time: see ``lock``.

    Raises:
        VideoIndexError: there is none, it is damaged, or not ours.
        OutputError: the disk is full or the folder cannot be written.
    """

    def __init__(self, folder: Path, *, write: bool = False) -> None:
        self.folder, self.file = folder, folder / NAME
        self._guard = threading.RLock()
        with self._errors():
            self._base = self._connect(write)
            try:
                self._prepare(write)
            except BaseException:
                self._base.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file; safe to call twice."""
        with self._guard:
            self._base.close()

    def _connect(self, write: bool) -> sqlite3.Connection:
        if not write and not self.file.is_file():
            raise VideoIndexError(
                f"{self.folder}: holds no index; make one: evilm index FOLDER {self.folder} --model M"
            )
        mode = "rwc" if write else "ro"
        # In a folder that cannot be written there is no place for SQLite's shared memory, and nobody who writes.
        frozen = "" if write or os.access(self.folder, os.W_OK) else "&immutable=1"
        address = f"file:{quote(os.fsencode(self.file.resolve()))}?mode={mode}{frozen}"
        return sqlite3.connect(address, uri=True, isolation_level=None, timeout=10, check_same_thread=False)

    def _prepare(self, write: bool) -> None:
        if write:
            self._base.execute("PRAGMA page_size = 16384")  # some vectors to a page; heeded by a new file only
            self._base.execute("PRAGMA journal_mode = WAL")
            self._base.execute("PRAGMA synchronous = FULL")
            self._base.execute("PRAGMA foreign_keys = ON")
        ours = self._base.execute("PRAGMA application_id").fetchone()[0]
        version = self._base.execute("PRAGMA user_version").fetchone()[0]
        tables = self._base.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if write and not tables:
            self._create()
        elif not tables:
            raise VideoIndexError(f"{self.folder}: {UNFINISHED}")
        elif ours != _APPLICATION:
            raise VideoIndexError(f"{self.file}: is a database of something else; name another folder")
        elif version != FORMAT:
            raise VideoIndexError(
                f"{self.file}: format {version}, this version reads {FORMAT}; index into a new folder"
            )

    def _create(self) -> None:
        with self.transaction():
            for statement in _SCHEMA.split(";"):
                self._base.execute(statement)
            self._base.execute(f"PRAGMA application_id = {_APPLICATION}")
            self._base.execute(f"PRAGMA user_version = {FORMAT}")
            self.set_fact("identity", uuid.uuid4().hex)

    @contextlib.contextmanager
    def _errors(self) -> Generator[None]:
        """SQLite's errors in our words."""
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
        """All that is written within becomes durable together, or not at all."""
        with self._guard, self._errors():
            self._base.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._base.execute("COMMIT")
            except BaseException:
                if self._base.in_transaction:
                    self._base.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def snapshot(self) -> Generator[None]:
        """All that is read within is of one moment, whatever is written meanwhile."""
        with self._guard, self._errors():
            self._base.execute("BEGIN")
            try:
                yield
            finally:
                self._base.execute("COMMIT")

    def _rows(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        with self._guard, self._errors():
            return self._base.execute(query, values).fetchall()

    # Facts

    def fact(self, name: str, default: Any = None) -> Any:
        """What was remembered under ``name``."""
        rows = self._rows("SELECT value FROM facts WHERE name = ?", (name,))
        return json.loads(rows[0][0]) if rows else default

    def set_fact(self, name: str, value: Any) -> None:
        """Remember a JSON value; within a transaction it becomes durable with the rest."""
        with self._guard, self._errors():
            self._base.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, json.dumps(value)))

    @property
    def generation(self) -> int:
        """Grows with every change of files or moments."""
        return self.fact("generation", 0)

    @property
    def counts(self) -> tuple[int, int]:
        """Files that gave moments, and moments."""
        row = self._rows(
            "SELECT (SELECT count(*) FROM files WHERE status IN ('ok', 'partial')), (SELECT count(*) FROM moments)"
        )
        return row[0]

    # Files

    def files(self, folder: bytes | None = None) -> Iterator[Known]:
        """What is known of the files under ``folder`` (absolute; None: of all)."""
        columns = "id, path, bytes, changed, inode, print, status, reason, duration"
        where, values = ("", ()) if folder is None else ("WHERE path >= ? AND path < ?", _under(folder))
        query = f"SELECT {columns} FROM files {where} ORDER BY path"  # noqa: S608 - of constants alone
        return (Known(*row) for row in self._rows(query, values))

    def put(self, entry: Entry) -> None:
        """Write a file with its moments, in place of what was known of its path. Within a transaction."""
        self.drop_paths([entry.path])
        at = self._base.execute(
            "INSERT INTO files (path, bytes, changed, inode, print, status, reason, duration) VALUES (?,?,?,?,?,?,?,?)",
            entry[:8],
        ).lastrowid
        if entry.vectors is not None:
            rows = zip(entry.spans, entry.vectors, strict=True)
            self._base.executemany(
                "INSERT INTO moments (file, start, end, vector) VALUES (?, ?, ?, ?)",
                [(at, start, end, vector.astype("<f4").tobytes()) for (start, end), vector in rows],
            )
        self._grow()

    def drop_paths(self, paths: Iterable[bytes]) -> None:
        """Forget files and their moments. Within a transaction."""
        self._base.executemany("DELETE FROM files WHERE path = ?", [(path,) for path in paths])
        self._grow()

    def move(self, at: int, path: bytes, size: int, changed: int, inode: int) -> None:
        """A file is elsewhere, or looks newer, with the same content. Within a transaction."""
        self._base.execute(
            "UPDATE files SET path = ?, bytes = ?, changed = ?, inode = ? WHERE id = ?",
            (path, size, changed, inode, at),
        )
        self._grow()

    def _grow(self) -> None:
        self.set_fact("generation", self.generation + 1)

    # Moments

    def moment_ids(self) -> NDArray[np.int64]:
        """(n, 2): numbers of all moments, increasing, and of their files."""
        rows = self._rows("SELECT id, file FROM moments ORDER BY id")
        return np.array(rows, dtype=np.int64).reshape(-1, 2)

    def vectors(self, ids: NDArray[np.int64], width: int) -> NDArray[np.float32]:
        """(n, width) of the moments ``ids`` (increasing), read in order without holding more than they need."""
        found = np.empty((len(ids), width), dtype=np.float32)
        done = 0
        for some in np.array_split(ids, max(1, len(ids) // 4096)):
            if not len(some):
                continue
            wanted = set(some.tolist())
            rows = self._rows(
                "SELECT id, vector FROM moments WHERE id >= ? AND id <= ? ORDER BY id", (int(some[0]), int(some[-1]))
            )
            for number, vector in rows:
                if number in wanted:
                    found[done] = np.frombuffer(vector, dtype="<f4")
                    done += 1
        if done != len(ids):
            raise VideoIndexError(f"{self.file}: damaged (moments are missing); index again into a new folder")
        return found

    def places(self, ids: Sequence[int]) -> dict[int, tuple[bytes, float, float]]:
        """Path, start and end of some moments."""
        marks = ",".join("?" * len(ids))
        query = "SELECT m.id, f.path, m.start, m.end FROM moments m JOIN files f ON f.id = m.file WHERE m.id IN"
        return {row[0]: (row[1], row[2], row[3]) for row in self._rows(f"{query} ({marks})", list(ids))}

    def select_files(self, where: str, values: Sequence[Any]) -> NDArray[np.int64]:
        """Numbers of the files that a condition (of our own words, its values apart) holds for, increasing."""
        rows = self._rows(f"SELECT id FROM files WHERE {where} ORDER BY id", values)  # noqa: S608 - see above
        return np.array(rows, dtype=np.int64).reshape(-1)

    def compact(self) -> None:
        """Give back the space of what was deleted.

        Raises:
            OutputError: there is no room for it; nothing is lost.
        """
        with self._guard, self._errors():
            self._base.execute("VACUUM")
            self._base.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def under(folder: bytes) -> tuple[str, tuple[bytes, bytes]]:
    """The condition that a path lies under ``folder``, and its values."""
    return "path >= ? AND path < ?", _under(folder)


def _under(folder: bytes) -> tuple[bytes, bytes]:
    stem = folder.rstrip(b"/") + b"/"
    return stem, stem[:-1] + b"0"  # "0" follows "/"
