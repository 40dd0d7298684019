"""FAISS behind the seam of ``ranking``: vectors in 8 bits, a quarter of the memory that each search goes through.

FAISS finds some times more candidates than asked for, and their cosines are computed again from the true vectors.
The file is a cache like that of ``matrix``: written beside the old one, checked by a checksum, made anew where it does
not fit.
"""

from __future__ import annotations

import json
import zlib
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np

from evilm.errors import DependencyError
from evilm.search import cache
from evilm.search.nearest import best

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from evilm.search.vectors import Vectors

NAME = "faiss.cache"
_LARGE = 2_000_000  # rows from which on they are put into cells, of which some are searched
_WIDER = 8  # candidates for each hit asked for
_PROBES = 0.05  # share of the cells that is searched


class Faiss:
    """Candidates from FAISS, cosines from the vectors.

    Args:
        vectors: (n, D) float32 of length one.
        index: FAISS's, over the same rows.
    """

    def __init__(self, vectors: NDArray[np.float32], index: Any) -> None:
        self.vectors, self._index = vectors, index

    @classmethod
    def over(cls, matrix: Vectors, folder: Path, identity: str) -> Self:
        """FAISS's index of a matrix, from the cache where that is of the same rows.

        Raises:
            DependencyError: FAISS is not installed.
        """
        faiss = _faiss()
        stamp = {"identity": identity, "generation": matrix.generation, "rows": len(matrix)}
        index = _read(faiss, folder / NAME, stamp)
        if index is None:
            index = trained(matrix.vectors)
            _write(faiss, folder / NAME, stamp, index)
        return cls(matrix.vectors, index)

    def nearest(
        self, query: NDArray[np.float32], k: int, allowed: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """As ``ranking.Ranking.nearest``; a row that 8 bits put far too low may be missed."""
        wanted = min(len(self.vectors), max(_WIDER * k, 64))
        if not wanted:
            return np.zeros(0, np.int64), np.zeros(0, np.float32)
        faiss = _faiss()
        options: Any = None
        if allowed is not None:
            selector = faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
            plain = not hasattr(self._index, "nprobe")
            options = faiss.SearchParameters(sel=selector) if plain else faiss.SearchParametersIVF(
                sel=selector, nprobe=self._index.nprobe
            )  # fmt: skip
        found = self._index.search(query[None], wanted, params=options)[1][0]
        rows = np.sort(cast("NDArray[np.int64]", found[found >= 0]).astype(np.int64))
        cosines = self.vectors[rows] @ query
        order = best(cosines, k)
        return rows[order], cosines[order]


def _faiss() -> Any:
    try:
        import faiss  # pyright: ignore[reportMissingImports], an extra
    except ModuleNotFoundError:
        raise DependencyError("the store faiss needs faiss: pip install 'evilm[faiss]', or search with exact") from None
    return cast("Any", faiss)


def trained(vectors: NDArray[np.float32]) -> Any:
    """FAISS's index of unit vectors (n, D).

    Raises:
        DependencyError: FAISS is not installed.
    """
    faiss = _faiss()
    rows, width = vectors.shape
    kind = "SQ8" if rows < _LARGE else f"IVF{int(np.sqrt(rows))},SQ8"
    index = faiss.index_factory(width, kind, faiss.METRIC_INNER_PRODUCT)
    sample = np.linspace(0, max(0, rows - 1), min(rows, 100_000)).astype(np.int64)
    if rows:
        index.train(np.ascontiguousarray(vectors[sample]))
    for some in np.array_split(vectors, max(1, rows // 65536)):
        if len(some):
            index.add(np.ascontiguousarray(some))
    if hasattr(index, "nprobe"):
        index.nprobe = max(8, int(_PROBES * index.nlist))
    return index


def _read(faiss: Any, path: Path, stamp: dict[str, Any]) -> Any:
    """The cached index, or None where it is of other rows or damaged."""
    try:
        line, _, body = path.read_bytes().partition(b"\n")
        header = json.loads(line)
    except (OSError, ValueError):
        return None
    if header != stamp | {"checksum": zlib.crc32(body)}:
        return None
    return faiss.deserialize_index(np.frombuffer(body, dtype=np.uint8))


def _write(faiss: Any, path: Path, stamp: dict[str, Any], index: Any) -> None:
    """Keep the index; where there is no room it is made anew next time."""
    body = cast("NDArray[np.uint8]", faiss.serialize_index(index))
    cache.write(path, [json.dumps(stamp | {"checksum": zlib.crc32(body.data)}).encode() + b"\n", body.data])
