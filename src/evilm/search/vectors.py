"""The vectors of an index as one array, cached in the memory-mapped file ``vectors.cache``.

    header    4,096 bytes: JSON (identity of the database, generation, rows, width, checksum), padded with spaces
    numbers   (rows, 2) int64: segment id, file id
    matrix    (rows, width) float32

The database is the source; deleting the cache loses nothing. A segment's vector never changes and its id is never used
again, so an old cache is updated by removing the segments that the database no longer has and reading the new ones. A
damaged cache is ignored. The file is replaced atomically.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from evilm.files import write_atomic

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from evilm.search.database import Database

NAME = "vectors.cache"
_UNUSED = "codes.cache"  # written by earlier versions
_HEADER = 4096
_BLOCK = 64 * 2**20  # bytes of an array that are read at once for its checksum


@dataclass(frozen=True)
class Vectors:
    """All vectors of an index, in order of segment ids.

    Attributes:
        generation: of the database when they were read.
        segment_ids, file_ids: (n,) int64.
        matrix: (n, D) float32 unit vectors.
    """

    generation: int
    segment_ids: NDArray[np.int64]
    file_ids: NDArray[np.int64]
    matrix: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.segment_ids)


def load(database: Database, width: int, previous: Vectors | None = None) -> Vectors:
    """Read the current vectors, taking from ``previous`` or from the cache what has not changed.

    Args:
        database: of the index.
        width: D.
        previous: vectors loaded earlier.

    Raises:
        VideoIndexError: the database is damaged.
    """
    old = previous if previous is not None else _read(database.folder / NAME, database.metadata("identity"), width)
    if old is not None and old.generation == database.generation:
        return old
    with database.snapshot():
        generation, ids = database.generation, database.segment_ids()
        if old is None or not len(old):
            matrix = database.vectors(ids[:, 0], width)
        else:
            kept = np.isin(old.segment_ids, ids[:, 0], assume_unique=True)
            added = ids[~np.isin(ids[:, 0], old.segment_ids, assume_unique=True), 0]
            matrix = old.matrix if kept.all() else old.matrix[kept]
            if len(added):  # ids only grow, so new rows come last
                matrix = np.concatenate([matrix, database.vectors(added, width)])
    return Vectors(generation, ids[:, 0].copy(), ids[:, 1].copy(), matrix)


def save(folder: Path, identity: str, vectors: Vectors) -> bool:
    """Write the cache; False if there is no room for it, which loses nothing."""
    numbers = np.stack([vectors.segment_ids, vectors.file_ids], 1)
    header: dict[str, Any] = {
        "identity": identity, "generation": vectors.generation, "rows": len(vectors),
        "width": vectors.matrix.shape[1], "checksum": _checksum(numbers, vectors.matrix),
    }  # fmt: skip
    head = json.dumps(header).encode().ljust(_HEADER)
    try:
        write_atomic(folder / NAME, [head, *_blocks(numbers), *_blocks(vectors.matrix)])
        (folder / _UNUSED).unlink(missing_ok=True)
    except OSError:
        return False
    return True


def _read(path: Path, identity: str, width: int) -> Vectors | None:
    """The cache, if it is complete and belongs to this database."""
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(_HEADER))
        rows = int(header["rows"])
        if (header["identity"], header["width"]) != (identity, width):
            return None
        if path.stat().st_size != _HEADER + rows * (16 + 4 * width):
            return None
        if not rows:
            empty = np.zeros(0, np.int64)
            return Vectors(header["generation"], empty, empty, np.zeros((0, width), np.float32))
        numbers = np.memmap(path, np.int64, "r", _HEADER, (rows, 2))
        matrix = np.memmap(path, np.float32, "r", _HEADER + 16 * rows, (rows, width))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if _checksum(numbers, matrix) != header["checksum"]:
        return None
    return Vectors(header["generation"], numbers[:, 0].copy(), numbers[:, 1].copy(), matrix)


def _checksum(*arrays: NDArray[Any]) -> int:
    value = 0
    for array in arrays:
        for block in _blocks(array):
            value = zlib.crc32(block, value)
    return value


def _blocks(array: NDArray[Any]) -> list[memoryview]:
    """The bytes of a contiguous array in blocks."""
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return [flat[i : i + _BLOCK].data for i in range(0, len(flat), _BLOCK)]
