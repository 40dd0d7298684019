"""An index as Parquet tables: embeddings of segments, and statuses of files."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from evilm.errors import DependencyError, OutputError
from evilm.search.database import Database

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ROWS = 100_000  # of one table of embeddings
_FILES = 4096  # that are read together


def require() -> tuple[Any, Any]:
    """pyarrow and its module of Parquet.

    Raises:
        DependencyError: pyarrow is not installed.
    """
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise DependencyError("Parquet files need pyarrow: pip install 'evilm[parquet]'") from None


def write(index_dir: Path, out: Path, rows: int = ROWS) -> list[Path]:
    """Write the tables of an index, in order of paths.

    ``segments-00000.parquet`` and so on have path, start, end, embedding; ``files.parquet`` has path, status, reason,
    duration, segments. Each file is replaced as a whole; tables that an earlier call wrote beyond these are removed.

    Args:
        index_dir: folder of the index.
        out: folder of the tables.
        rows: of a table of segments.

    Raises:
        DependencyError: pyarrow is not installed.
        OutputError: a table cannot be written.
    """
    pa, _ = require()
    written: list[Path] = []
    with Database(index_dir) as database, database.snapshot():
        width = database.metadata("width")
        text, number, vector = pa.string(), pa.float64(), pa.list_(pa.float32(), width or 0)
        schema = pa.schema([("path", text), ("start", number), ("end", number), ("embedding", vector)])
        waiting: list[tuple[Any, ...]] = []
        statuses: list[tuple[Any, ...]] = []
        for row in _segments(database, width, statuses):
            waiting.append(row)
            if len(waiting) == rows:
                written.append(_write(out / f"segments-{len(written):05}.parquet", schema, waiting))
                waiting = []
        if waiting or not written:
            written.append(_write(out / f"segments-{len(written):05}.parquet", schema, waiting))
        names = [("path", text), ("status", text), ("reason", text), ("duration", number), ("segments", pa.int64())]
        for left in set(out.glob("segments-*.parquet")) - set(written):
            left.unlink()
        return [*written, _write(out / "files.parquet", pa.schema(names), statuses)]


def _segments(database: Database, width: int, statuses: list[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
    """The rows of all segments; the files' are appended to ``statuses``."""
    offset = 0
    while records := database.files(limit=_FILES, offset=offset):
        offset += len(records)
        for record in records:
            path = os.fsdecode(record.path).encode(errors="replace").decode()  # Parquet has only valid Unicode
            statuses.append((path, record.status, record.reason, record.duration, record.num_segments))
            if not record.num_segments:
                continue
            segments = database.segments(file_id=record.id)
            ids = np.array(sorted(each.id for each in segments), dtype=np.int64)
            vectors = dict(zip(ids.tolist(), database.vectors(ids, width), strict=True))
            yield from ((path, each.start, each.end, vectors[each.id]) for each in segments)


def _write(path: Path, schema: Any, rows: list[tuple[Any, ...]]) -> Path:
    pa, pq = require()
    columns = [list(column) for column in zip(*rows, strict=True)] or [[] for _ in schema]
    table = pa.table([pa.array(column, each.type) for column, each in zip(columns, schema, strict=True)], schema=schema)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        pq.write_table(table, temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}; free space and run again") from None
    return path
