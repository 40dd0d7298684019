"""LanceDB behind the seam of ``ranking``: a table on disk, for indexes that do not fit into memory.

Lance does not force its files to the disk, so the table is a copy of the catalogue, made anew where it is not of the
same rows, and never the truth.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np

from evilm.errors import DependencyError
from evilm.search.nearest import best

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from evilm.search.vectors import Vectors

NAME = "lance.cache"
_ROWS = 16384  # written at once
_LISTED = 10_000  # rows that a filter names; where more are allowed, more are fetched and sieved instead


class Lance:
    """Nearest rows from a Lance table.

    Args:
        table: columns ``row`` and ``vector``.
        rows: how many it has.
    """

    def __init__(self, table: Any, rows: int) -> None:
        self._table, self.rows = table, rows

    @classmethod
    def over(cls, matrix: Vectors, folder: Path, identity: str) -> Self:
        """The table of a matrix; an old one is kept only if it is of the same rows.

        Raises:
            DependencyError: LanceDB is not installed.
        """
        lancedb, arrow = _lance()
        name = f"moments_{identity[:8]}_{matrix.generation}_{len(matrix)}"
        place = folder / NAME
        mark = place / f"{name}.whole"
        if not mark.is_file():
            shutil.rmtree(place, ignore_errors=True)
        base = lancedb.connect(str(place))
        if mark.is_file():
            return cls(base.open_table(name), len(matrix))
        vector = arrow.list_(arrow.float32(), matrix.vectors.shape[1])
        schema = arrow.schema([("row", arrow.int64()), ("vector", vector)])
        table = base.create_table(name, data=_batches(arrow, matrix, schema), schema=schema)
        mark.touch()
        return cls(table, len(matrix))

    def nearest(
        self, query: NDArray[np.float32], k: int, allowed: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """As ``ranking.Ranking.nearest``."""
        if not self.rows or (allowed is not None and not allowed.any()):
            return np.zeros(0, np.int64), np.zeros(0, np.float32)
        wanted, search = k, self._table.search(query).distance_type("dot")
        if allowed is not None and allowed.sum() <= _LISTED:
            listed = ",".join(str(row) for row in np.flatnonzero(allowed))
            search = search.where(f"row IN ({listed})", prefilter=True)
        elif allowed is not None:
            wanted = min(self.rows, k + int((~allowed).sum()))
        found = search.limit(wanted).select(["row", "vector"]).to_arrow()
        rows = found["row"].to_numpy().astype(np.int64)
        vectors = np.stack(found["vector"].to_numpy(zero_copy_only=False)).astype(np.float32)
        order = np.argsort(rows)
        rows, cosines = rows[order], vectors[order] @ query
        if allowed is not None:
            rows, cosines = rows[allowed[rows]], cosines[allowed[rows]]
        first = best(cosines, k)
        return rows[first], cosines[first]


def _lance() -> tuple[Any, Any]:
    try:
        import lancedb  # pyright: ignore[reportMissingImports, reportMissingTypeStubs], an extra
        import pyarrow as pa  # pyright: ignore[reportMissingImports, reportMissingTypeStubs], comes with it
    except ModuleNotFoundError:
        raise DependencyError(
            "the store lance needs LanceDB: pip install 'evilm[lance]', or search with exact"
        ) from None
    return cast("Any", lancedb), cast("Any", pa)


def _batches(arrow: Any, matrix: Vectors, schema: Any) -> Iterator[Any]:
    for start in range(0, len(matrix), _ROWS):
        vectors = matrix.vectors[start : start + _ROWS]
        flat = arrow.array(np.ascontiguousarray(vectors).reshape(-1))
        rows = arrow.array(np.arange(start, start + len(vectors), dtype=np.int64))
        yield arrow.record_batch([rows, arrow.FixedSizeListArray.from_arrays(flat, vectors.shape[1])], schema=schema)
