"""Nearest neighbours of a query vector: exact by NumPy, or by FAISS, LanceDB or Qdrant, behind one method.

``exact`` computes the cosine of every vector; its time grows with rows x width, limited by memory bandwidth. ``faiss``
reads 8-bit vectors, a quarter of the memory, and computes the cosines of its candidates from the float32 vectors.
``lance`` keeps a table on disk, ``qdrant`` (see ``search.qdrant``) a collection on a server. What they write is a
cache: it can be deleted at any time, and is rebuilt when it does not belong to the current vectors.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import shutil
import zlib
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, cast

import numpy as np

from evilm.errors import ConfigError, DependencyError
from evilm.files import write_atomic
from evilm.search.qdrant import Qdrant
from evilm.search.ranking import LISTED, filtered, select, top_k

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from evilm.search.ranking import Cosines, Rows
    from evilm.search.vectors import Vectors

BackendName = Literal["auto", "exact", "faiss", "lance", "qdrant"]
BACKENDS: tuple[BackendName, ...] = ("auto", "exact", "faiss", "lance", "qdrant")
EXACT_LIMIT = 800_000_000  # rows x width above which ``auto`` uses FAISS: 1.5 million vectors of 512 numbers

_PRODUCT = 32_000_000  # cosines of several queries that are in memory together
_FAISS_FILE = "faiss.cache"
_IVF_ROWS = 2_000_000  # from here on FAISS searches only some clusters of the vectors
_CANDIDATES = 8  # FAISS candidates for each requested hit
_PROBES = 0.05  # fraction of the clusters that is searched
_LANCE_FOLDER = "lance.cache"
_LANCE_BATCH = 16_384  # rows written together


class Backend(Protocol):
    """A set of vectors that can be searched."""

    def nearest(
        self, query: NDArray[np.float32], k: int, allowed: NDArray[np.bool_] | None = None
    ) -> tuple[Rows, Cosines]:
        """Find the rows with the highest cosine.

        Args:
            query: (D,) unit vector.
            k: number of rows.
            allowed: (n,) rows that may be returned; None for all.

        Returns:
            rows and cosines, highest first, ties in order of rows; fewer than ``k`` if there are no more.
        """
        ...


def check_backend(name: str) -> BackendName:
    """Check the name of a backend.

    Raises:
        ConfigError: there is no such backend.
    """
    for backend in BACKENDS:
        if backend == name:
            return backend
    raise ConfigError(f"backend {name!r}: choose one of {', '.join(BACKENDS)}")


def resolve_backend(name: BackendName, rows: int, width: int) -> BackendName:
    """Replace ``auto`` by ``exact``, or by ``faiss`` for more than ``EXACT_LIMIT`` numbers if FAISS is installed."""
    if name != "auto":
        return name
    return "faiss" if rows * width > EXACT_LIMIT and importlib.util.find_spec("faiss") is not None else "exact"


def open_backend(name: BackendName, vectors: Vectors, folder: Path, identity: str) -> Backend:
    """Make the named backend (not ``auto``) ready to search.

    Args:
        name: of the backend.
        vectors: what is searched.
        folder: of the index, for caches.
        identity: of the database, so that no cache of another index is used.

    Raises:
        DependencyError: the backend's package is not installed.
    """
    if name == "faiss":
        return Faiss.open(vectors, folder, identity)
    if name == "lance":
        return Lance.open(vectors, folder, identity)
    if name == "qdrant":
        return Qdrant.open(vectors, folder, identity)
    return Exact(vectors.matrix)


class Exact:
    """Cosines of all vectors by one matrix product.

    Args:
        matrix: (n, D) float32 unit vectors.
    """

    def __init__(self, matrix: NDArray[np.float32]) -> None:
        self.matrix = matrix

    def nearest(
        self, query: NDArray[np.float32], k: int, allowed: NDArray[np.bool_] | None = None
    ) -> tuple[Rows, Cosines]:
        """See ``Backend.nearest``."""
        scores = next(self.cosines(query[None]))
        if allowed is not None:
            scores[~allowed] = -np.inf
        return select(scores, k)

    def cosines(self, queries: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
        """(n,) cosines of each of several queries (m, D), by one product for as many queries as fit into memory."""
        block = max(1, _PRODUCT // max(1, len(self.matrix)))
        for start in range(0, len(queries), block):
            some = queries[start : start + block]
            yield from [self.matrix @ some[0]] if len(some) == 1 else some @ self.matrix.T


class Faiss:
    """Candidates from FAISS, cosines from the float32 vectors.

    A row whose 8-bit cosine is far too low can be missed.

    Args:
        matrix: (n, D) float32 unit vectors.
        index: FAISS index of the same rows.
    """

    def __init__(self, matrix: NDArray[np.float32], index: Any) -> None:
        self.matrix, self._index = matrix, index

    @classmethod
    def open(cls, vectors: Vectors, folder: Path, identity: str) -> Self:
        """Read the cached FAISS index if it belongs to these vectors; otherwise build it and write the cache.

        Raises:
            DependencyError: FAISS is not installed.
        """
        faiss, path = _import_faiss(), folder / _FAISS_FILE
        stamp = {"identity": identity, "generation": vectors.generation, "rows": len(vectors)}
        with contextlib.suppress(OSError, ValueError):
            line, _, body = path.read_bytes().partition(b"\n")
            if json.loads(line) == stamp | {"checksum": zlib.crc32(body)}:
                return cls(vectors.matrix, faiss.deserialize_index(np.frombuffer(body, dtype=np.uint8)))
        index = cls.train(vectors.matrix)
        body = cast("NDArray[np.uint8]", faiss.serialize_index(index))
        header = json.dumps(stamp | {"checksum": zlib.crc32(body.data)}).encode()
        with contextlib.suppress(OSError):  # no room for the cache: it is built again next time
            write_atomic(path, [header + b"\n", body.data])
        return cls(vectors.matrix, index)

    @staticmethod
    def train(matrix: NDArray[np.float32]) -> Any:
        """Build the FAISS index of unit vectors (n, D)."""
        faiss = _import_faiss()
        rows, width = matrix.shape
        kind = "SQ8" if rows < _IVF_ROWS else f"IVF{int(np.sqrt(rows))},SQ8"
        index = faiss.index_factory(width, kind, faiss.METRIC_INNER_PRODUCT)
        sample = np.linspace(0, max(0, rows - 1), min(rows, 100_000)).astype(np.int64)
        if rows:
            index.train(np.ascontiguousarray(matrix[sample]))
        for start in range(0, rows, 65_536):
            index.add(np.ascontiguousarray(matrix[start : start + 65_536]))
        if hasattr(index, "nprobe"):
            index.nprobe = max(8, int(_PROBES * index.nlist))
        return index

    def nearest(
        self, query: NDArray[np.float32], k: int, allowed: NDArray[np.bool_] | None = None
    ) -> tuple[Rows, Cosines]:
        """See ``Backend.nearest``."""
        count = min(len(self.matrix), max(_CANDIDATES * k, 64))
        if not count:
            return np.zeros(0, np.int64), np.zeros(0, np.float32)
        faiss = _import_faiss()
        parameters: Any = None
        if allowed is not None:
            selector = faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
            if hasattr(self._index, "nprobe"):
                parameters = faiss.SearchParametersIVF(sel=selector, nprobe=self._index.nprobe)
            else:
                parameters = faiss.SearchParameters(sel=selector)
        found = self._index.search(query[None], count, params=parameters)[1][0]
        rows = np.sort(cast("Rows", found[found >= 0]).astype(np.int64))
        cosines = self.matrix[rows] @ query
        order = top_k(cosines, k)
        return rows[order], cosines[order]


class Lance:
    """Nearest rows of a LanceDB table, for indexes larger than memory.

    LanceDB does not flush its files to the disk, so the table is only a copy of the database.

    Args:
        table: with columns ``row`` and ``vector``.
        rows: number of rows.
    """

    def __init__(self, table: Any, rows: int) -> None:
        self._table, self.rows = table, rows

    @classmethod
    def open(cls, vectors: Vectors, folder: Path, identity: str) -> Self:
        """Open the cached table if it belongs to these vectors; otherwise write it.

        Raises:
            DependencyError: LanceDB is not installed.
        """
        try:
            import lancedb as lance  # pyright: ignore[reportMissingImports, reportMissingTypeStubs], an extra
            import pyarrow as pa  # pyright: ignore[reportMissingImports, reportMissingTypeStubs], comes with it
        except ModuleNotFoundError:
            raise DependencyError(
                "the backend lance needs LanceDB: pip install 'evilm[lance]', or search with --backend exact"
            ) from None
        lancedb, arrow = cast("Any", lance), cast("Any", pa)
        place, width = folder / _LANCE_FOLDER, vectors.matrix.shape[1]
        name = f"segments_{identity[:8]}_{vectors.generation}_{len(vectors)}"
        complete = place / f"{name}.whole"  # written last: a table without it was interrupted
        if complete.is_file():
            return cls(lancedb.connect(str(place)).open_table(name), len(vectors))
        shutil.rmtree(place, ignore_errors=True)
        schema = arrow.schema([("row", arrow.int64()), ("vector", arrow.list_(arrow.float32(), width))])

        def batches() -> Iterator[Any]:
            for start in range(0, len(vectors), _LANCE_BATCH):
                some = np.ascontiguousarray(vectors.matrix[start : start + _LANCE_BATCH])
                rows = arrow.array(np.arange(start, start + len(some), dtype=np.int64))
                lists = arrow.FixedSizeListArray.from_arrays(arrow.array(some.reshape(-1)), width)
                yield arrow.record_batch([rows, lists], schema=schema)

        table = lancedb.connect(str(place)).create_table(name, data=batches(), schema=schema)
        complete.touch()
        return cls(table, len(vectors))

    def nearest(
        self, query: NDArray[np.float32], k: int, allowed: NDArray[np.bool_] | None = None
    ) -> tuple[Rows, Cosines]:
        """See ``Backend.nearest``."""
        if not self.rows or (allowed is not None and not allowed.any()):
            return np.zeros(0, np.int64), np.zeros(0, np.float32)
        if allowed is not None and allowed.sum() > LISTED:
            return filtered(lambda count: self._fetch(query, count), k, allowed, self.rows)
        condition = None
        if allowed is not None:
            condition = f"row IN ({','.join(str(row) for row in np.flatnonzero(allowed))})"
        return self._fetch(query, k, condition)

    def _fetch(self, query: NDArray[np.float32], count: int, condition: str | None = None) -> tuple[Rows, Cosines]:
        search = self._table.search(query).distance_type("dot")
        if condition is not None:
            search = search.where(condition, prefilter=True)
        found = search.limit(count).select(["row", "vector", "_distance"]).to_arrow()
        rows = found["row"].to_numpy().astype(np.int64)
        matrix = np.stack(found["vector"].to_numpy(zero_copy_only=False)).astype(np.float32)
        order = np.argsort(rows)
        rows, cosines = rows[order], matrix[order] @ query
        best = top_k(cosines, count)
        return rows[best], cosines[best]


def _import_faiss() -> Any:
    try:
        import faiss  # pyright: ignore[reportMissingImports], an extra
    except ModuleNotFoundError:
        raise DependencyError(
            "the backend faiss needs FAISS: pip install 'evilm[faiss]', or search with --backend exact"
        ) from None
    return cast("Any", faiss)
