"""The nearest moments of a query: one method wide, so that another store can stand behind it.

``Exact`` looks at every vector; so does ``ranking_codes`` for many, in 8 bits first. ``ranking_faiss`` and
``ranking_lance`` hold the same method for more of them.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from evilm.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from evilm.search.database import Database
    from evilm.search.vectors import Vectors

Store = Literal["auto", "exact", "faiss", "lance"]
STORES: tuple[Store, ...] = ("auto", "exact", "faiss", "lance")
LARGE = 800_000_000  # numbers (rows times width) past which comparing with all of them comes near to 60 ms
_BLOCK = 64  # scores of which the best is looked at before all of them are


class Ranking(Protocol):
    """The seam."""

    def nearest(
        self, query: NDArray[np.float32], k: int, allowed: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The rows most similar to a query.

        Args:
            query: (D,) of length one.
            k: how many.
            allowed: (n,) rows that may be found; None: all.

        Returns:
            rows and their cosines, best first, equal ones in order of rows; fewer than ``k`` where there are no more.
        """
        ...


class Exact:
    """Every vector is looked at.

    Args:
        vectors: (n, D) float32 of length one.
    """

    def __init__(self, vectors: NDArray[np.float32]) -> None:
        self.vectors = vectors

    def nearest(
        self, query: NDArray[np.float32], k: int, allowed: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        scores = np.asarray(self.vectors @ query)
        if allowed is not None:
            scores[~allowed] = -np.inf
        rows = best(scores, k)
        rows = rows[np.isfinite(scores[rows])]
        return rows, scores[rows]


def best(scores: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Rows of the ``k`` highest scores, best first, equal ones in order of rows; what reaches ``bar`` is sorted."""
    if min(k, len(scores)) <= 0:
        return np.zeros(0, dtype=np.int64)
    candidates = np.flatnonzero(scores >= bar(scores, k))
    order = np.lexsort((candidates, -scores[candidates]))[:k]
    return candidates[order]


def bar(scores: NDArray[np.float32], k: int) -> float:
    """A score that at least ``k`` of ``scores`` reach, and not many more; minus infinity where there are few of them.

    It is the k-th highest of the maxima of blocks.
    """
    blocks = len(scores) // _BLOCK
    if blocks <= 2 * k:
        return -np.inf
    tops = scores[: blocks * _BLOCK].reshape(blocks, _BLOCK).max(1)
    return float(np.partition(tops, blocks - k)[blocks - k])


def store_named(name: str) -> Store:
    """A store's name, checked.

    Raises:
        ConfigError: there is none of that name.
    """
    for store in STORES:
        if store == name:
            return store
    raise ConfigError(f"store {name!r}: there are {', '.join(STORES)}")


def chosen(store: Store, rows: int, width: int) -> Store:
    """What answers where ``auto`` leaves it open: every vector, or FAISS where they are many and it is there.

    Args:
        store: as it was asked for.
        rows, width: of the vectors.
    """
    if store != "auto":
        return store
    return "faiss" if rows * width > LARGE and importlib.util.find_spec("faiss") is not None else "exact"


def ranking(store: Store, matrix: Vectors, catalogue: Database) -> Ranking:
    """The store of that name, none of them ``auto``, over the vectors of an index.

    Raises:
        DependencyError: its package is not installed.
    """
    if store == "faiss":
        from evilm.search.nearest_faiss import Faiss

        return Faiss.over(matrix, catalogue.folder, catalogue.fact("identity"))
    if store == "lance":
        from evilm.search.nearest_lance import Lance

        return Lance.over(matrix, catalogue.folder, catalogue.fact("identity"))
    from evilm.search import nearest_codes

    if matrix.vectors.size >= nearest_codes.LEAST:
        coded = nearest_codes.Coded.over(matrix, catalogue.folder, catalogue.fact("identity"))
        if coded is not None:
            return coded
    return Exact(matrix.vectors)
