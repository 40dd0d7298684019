"""Every vector is looked at in 8 bits, and those that may be among the nearest as they are: exact, and faster.

A search is bound by the memory that it goes through. Here that is a quarter of the vectors:

    a row       x = s c + e, with c in -127..127 and the row's own scale s; the largest |e| of all rows is kept
    the query   q = t (u - 64) + f, with u in 1..127
    coarse      x.q is no further than |e| |q| + |x - e| |f| from  s t (u.c - 64 sum c),  whose products are whole
                numbers, without rounding

So a row whose coarse cosine lies by more than twice that bound below the k-th highest one is not among the k nearest,
whatever it is. The others' cosines are computed from the true vectors.

With seven bits of a query, products stay within what processors without 8-bit dot products can add up in 16 bits.
The codes lie in ``codes.cache``, by blocks of rows: scales, sums, then codes column by column, as the product wants
them; 4,096 bytes of JSON at the end. An index writes it beside ``vectors.cache``. Deleting it loses nothing but speed.
"""

from __future__ import annotations

import importlib
import json
import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from evilm.search import cache
from evilm.search.nearest import bar, best

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from evilm.search.vectors import Vectors

NAME = "codes.cache"
LEAST = 100_000_000  # numbers (rows times width) below which the product of the vectors themselves is fast enough
_BLOCK = 65_536  # rows of a block
_PIECE = 4_096  # rows that are turned into codes at once
_TAIL = 4_096
_MIDDLE = 64  # what a query's zero is written as
_MOST = 0.2  # share of the rows from which on looking at all of them as they are is no slower


@dataclass(frozen=True)
class Block:
    """Some rows in 8 bits.

    Attributes:
        scales, sums: (n,) float32, (n,) int32: of each row, what one is worth, and the sum of its codes.
        codes: (D, n) int8.
    """

    scales: NDArray[np.float32]
    sums: NDArray[np.int32]
    codes: NDArray[np.int8]


class Coded:
    """``Exact``, by way of codes.

    Args:
        vectors: (n, D) float32 of length one.
        blocks: their codes.
        error: the largest distance of a vector from its codes.
    """

    def __init__(self, vectors: NDArray[np.float32], blocks: list[Block], error: float) -> None:
        self.vectors, self._blocks, self._error = vectors, blocks, error
        self._product = _Product()
        self._threads = ThreadPoolExecutor(len(os.sched_getaffinity(0)))

    @classmethod
    def over(cls, matrix: Vectors, folder: Path, identity: str) -> Self | None:
        """From the cache; None where there is none of these rows."""
        found = _read(folder / NAME, _stamp(matrix, identity))
        return None if found is None else cls(matrix.vectors, *found)

    @classmethod
    def of(cls, vectors: NDArray[np.float32]) -> Self:
        """From the vectors, which takes some seconds a gigabyte."""
        made = list(_coded(vectors))
        return cls(vectors, [block for block, _ in made], max((error for _, error in made), default=0.0))

    def nearest(
        self, query: NDArray[np.float32], k: int, allowed: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """As ``ranking.Ranking.nearest``."""
        rows = self.candidates(query, k, allowed)
        if len(rows) > _MOST * len(self.vectors):
            cosines = np.asarray(self.vectors @ query)[rows]
        else:
            cosines = self.vectors[rows] @ query
        order = best(cosines, k)
        return rows[order], cosines[order]

    def candidates(
        self, query: NDArray[np.float32], k: int, allowed: NDArray[np.bool_] | None = None
    ) -> NDArray[np.int64]:
        """Rows, increasing, of which none that is missing can be among the ``k`` nearest."""
        step = max(float(np.abs(query).max(initial=0.0)), 1e-12) / (_MIDDLE - 1)
        digits = np.rint(query / step).astype(np.int16)
        lost = float(np.linalg.norm(query - digits * np.float32(step)))
        scores = np.empty(len(self.vectors), np.float32)
        asked = (digits + _MIDDLE).astype(np.uint8)[None]

        def fill(i: int) -> None:
            block = self._blocks[i]
            whole = self._product(asked, block.codes) - _MIDDLE * block.sums
            np.multiply(whole.astype(np.float32), block.scales * np.float32(step), out=scores[_rows(i, block)])

        list(self._threads.map(fill, range(len(self._blocks))))
        if allowed is not None:
            scores[~allowed] = -np.inf
        length = float(np.linalg.norm(query))
        rounding = len(query) * 2.0**-22  # of float32: of the cosines below, of the scales and of the errors kept
        bound = self._error * length + (1 + self._error) * lost + rounding
        found = np.flatnonzero(scores >= bar(scores, k) - 2 * bound)
        return found[np.isfinite(scores[found])]


def _rows(i: int, block: Block) -> slice:
    return slice(i * _BLOCK, i * _BLOCK + len(block.scales))


def _coded(vectors: NDArray[np.float32]) -> Iterator[tuple[Block, float]]:
    """The blocks of some vectors, each with its largest error."""
    for start in range(0, len(vectors), _BLOCK):
        rows = vectors[start : start + _BLOCK]
        scales, sums = np.empty(len(rows), np.float32), np.empty(len(rows), np.int32)
        codes, error = np.empty((rows.shape[1], len(rows)), np.int8), 0.0
        for i in range(0, len(rows), _PIECE):
            some, at = rows[i : i + _PIECE], slice(i, i + _PIECE)
            scale = np.maximum(np.abs(some).max(1, keepdims=True), np.float32(1e-12)) / np.float32(127)
            digits = np.rint(some / scale)
            error = max(error, float(np.linalg.norm(some - digits * scale, axis=1).max()))
            whole = digits.astype(np.int8)
            scales[at], sums[at], codes[:, at] = scale[:, 0], whole.sum(1, dtype=np.int32), whole.T
        yield Block(scales, sums, codes), error


def save(folder: Path, identity: str, matrix: Vectors) -> bool:
    """Write the cache, a block at a time; False where there is no room, which loses nothing but speed."""
    checksum, error = 0, 0.0

    def parts() -> Iterator[bytes | memoryview]:
        nonlocal checksum, error
        for block, lost in _coded(matrix.vectors):
            error = max(error, lost)
            for array in (block.scales, block.sums, block.codes):
                part = array.reshape(-1).view(np.uint8).data
                checksum = zlib.crc32(part, checksum)
                yield part
        yield json.dumps(_stamp(matrix, identity) | {"error": error, "checksum": checksum}).encode().ljust(_TAIL)

    return cache.write(folder / NAME, parts())


def _stamp(matrix: Vectors, identity: str) -> dict[str, Any]:
    rows, width = matrix.vectors.shape
    return {"identity": identity, "generation": matrix.generation, "rows": rows, "width": width}


def _read(path: Path, stamp: dict[str, Any]) -> tuple[list[Block], float] | None:
    """Blocks and their largest error, if the cache is whole and of these rows."""
    rows, width = int(stamp["rows"]), int(stamp["width"])
    try:
        with path.open("rb") as file:
            file.seek(-_TAIL, os.SEEK_END)
            tail = json.loads(file.read(_TAIL))
            size = file.tell() - _TAIL
        if size != rows * (8 + width) or {name: tail.get(name) for name in stamp} != stamp:
            return None
        data = np.memmap(path, np.uint8, "r", 0, (size,))
        error, checksum = float(tail["error"]), 0
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    blocks: list[Block] = []
    for start in range(0, rows, _BLOCK):
        count, at = min(_BLOCK, rows - start), start * (8 + width)
        part = np.asarray(data[at : at + count * (8 + width)])
        checksum = zlib.crc32(part.data, checksum)
        scales, sums = part[: 4 * count].view(np.float32), part[4 * count : 8 * count].view(np.int32)
        blocks.append(Block(scales, sums, part[8 * count :].view(np.int8).reshape(width, count)))
    return (blocks, error) if checksum == tail["checksum"] else None


class _Product:
    """Whole numbers times whole numbers by ONNX Runtime, which multiplies 8 bits as fast as memory gives them.

    One thread each call; several calls may go on at once.
    """

    def __init__(self) -> None:
        runtime: Any = importlib.import_module("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 4
        self._session = runtime.InferenceSession(_graph(), options, providers=["CPUExecutionProvider"])

    def __call__(self, query: NDArray[np.uint8], codes: NDArray[np.int8]) -> NDArray[np.int32]:
        """(1, D) and (D, n) to (n,)."""
        return self._session.run(None, {"query": query, "codes": codes})[0][0]


def _graph() -> bytes:
    """A model of one MatMulInteger as ONNX writes it; the core has no onnx to write it with."""

    def value(name: bytes, kind: int, *shape: bytes) -> bytes:
        sides = b"".join(_field(1, _field(2, side)) for side in shape)
        return _field(1, name) + _field(2, _field(1, _field(1, kind) + _field(2, sides)))

    uint8, int8, int32 = 2, 3, 6
    node = _field(1, b"query") + _field(1, b"codes") + _field(2, b"whole") + _field(4, b"MatMulInteger")
    inputs = (value(b"query", uint8, b"one", b"D"), value(b"codes", int8, b"D", b"n"))
    made = _field(12, value(b"whole", int32, b"one", b"n"))
    graph = _field(1, node) + _field(2, b"coarse") + b"".join(_field(11, each) for each in inputs) + made
    return _field(1, 10) + _field(7, graph) + _field(8, _field(2, 20))  # ir_version, graph, opset_import


def _field(number: int, value: int | bytes) -> bytes:
    """A field of protobuf, numbers and lengths below 128 or of two digits to that base."""
    if isinstance(value, int):
        return bytes([number << 3, value])
    length = [len(value)] if len(value) < 128 else [len(value) % 128 + 128, len(value) // 128]
    return bytes([number << 3 | 2, *length]) + value
