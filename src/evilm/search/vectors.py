"""The vectors of an index as one array in memory: a cache of the catalogue, memory-mapped from ``vectors.cache``.

    header    4,096 bytes: JSON (identity of the catalogue, generation, rows, width, checksum), padded with spaces
    numbers   (rows, 2) int64: moment, file
    vectors   (rows, width) float32

The file is written beside the old one and renamed over it. A moment's vector never changes and its number is never used
again, so an old cache is brought up to date by leaving out what the catalogue lacks and reading what the cache lacks; a
damaged one is read anew. Deleting it loses nothing.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from evilm.search import cache

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from evilm.search.database import Database

NAME = "vectors.cache"
_HEADER = 4096
_BLOCK = 64 * 2**20  # bytes that are checked at once


@dataclass(frozen=True)
class Vectors:
    """Rows in order of moments' numbers.

    Attributes:
        generation: of the catalogue that it shows.
        moments, files: (n,) int64 numbers.
        vectors: (n, D) float32 of length one.
    """

    generation: int
    moments: NDArray[np.int64]
    files: NDArray[np.int64]
    vectors: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.moments)


def load(catalogue: Database, width: int, have: Vectors | None = None) -> Vectors:
    """The vectors that the catalogue holds now, taken from ``have`` or the cache as far as they go.

    Args:
        catalogue: the truth.
        width: D.
        have: what was loaded before.

    Raises:
        VideoIndexError: the catalogue is damaged.
    """
    old = have if have is not None else _read(catalogue.folder / NAME, catalogue.fact("identity"), width)
    if old is not None and old.generation == catalogue.generation:
        return old
    with catalogue.snapshot():
        return _renewed(catalogue, width, old)


def _renewed(catalogue: Database, width: int, old: Vectors | None) -> Vectors:
    generation, now = catalogue.generation, catalogue.moment_ids()
    if old is None or not len(old):
        return Vectors(generation, now[:, 0].copy(), now[:, 1].copy(), catalogue.vectors(now[:, 0], width))
    kept = np.isin(old.moments, now[:, 0], assume_unique=True)
    added = now[~np.isin(now[:, 0], old.moments, assume_unique=True)]
    # Numbers only grow, so what is new comes behind what is kept.
    vectors = old.vectors if kept.all() else old.vectors[kept]
    if len(added):
        vectors = np.concatenate([vectors, catalogue.vectors(added[:, 0], width)])
    return Vectors(generation, now[:, 0].copy(), now[:, 1].copy(), vectors)


def save(folder: Path, identity: str, matrix: Vectors) -> bool:
    """Write the cache; False where there is no room, which loses nothing."""
    numbers = np.stack([matrix.moments, matrix.files], 1)
    header: dict[str, Any] = {
        "identity": identity, "generation": matrix.generation, "rows": len(matrix),
        "width": matrix.vectors.shape[1], "checksum": _checksum(numbers, matrix.vectors),
    }  # fmt: skip
    head = json.dumps(header).encode().ljust(_HEADER)
    return cache.write(folder / NAME, [head, *_blocks(numbers), *_blocks(matrix.vectors)])


def _read(path: Path, identity: str, width: int) -> Vectors | None:
    """The cache, if it is whole and of this catalogue."""
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(_HEADER))
        rows = int(header["rows"])
        if (header["identity"], header["width"]) != (identity, width):
            return None
        if path.stat().st_size != _HEADER + rows * (16 + 4 * width):
            return None
        if not rows:
            return Vectors(
                header["generation"], np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, width), np.float32)
            )
        numbers = np.memmap(path, np.int64, "r", _HEADER, (rows, 2))
        vectors = np.memmap(path, np.float32, "r", _HEADER + 16 * rows, (rows, width))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if _checksum(numbers, vectors) != header["checksum"]:
        return None
    return Vectors(header["generation"], numbers[:, 0].copy(), numbers[:, 1].copy(), vectors)


def _checksum(*arrays: NDArray[Any]) -> int:
    value = 0
    for array in arrays:
        for some in _blocks(array):
            value = zlib.crc32(some, value)
    return value


def _blocks(array: NDArray[Any]) -> list[memoryview]:
    """The bytes of a contiguous array, some at a time."""
    whole = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return [whole[i : i + _BLOCK].data for i in range(0, len(whole), _BLOCK)]
