"""The best rows of a set of scores, and of a store that cannot filter; what all backends of ``nearest`` share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Rows = NDArray[np.int64]
    Cosines = NDArray[np.float32]

LISTED = 10_000  # a filter lists at most so many row numbers; for more, hits are filtered afterwards
_TOP_GROUP = 64  # scores of which only the highest is looked at first


def select(scores: NDArray[np.float32], k: int) -> tuple[Rows, Cosines]:
    """Rows of the ``k`` highest finite scores, and these scores."""
    rows = top_k(scores, k)
    rows = rows[np.isfinite(scores[rows])]
    return rows, scores[rows]


def top_k(scores: NDArray[np.float32], k: int) -> Rows:
    """Rows of the ``k`` highest scores, highest first, ties in order of rows."""
    if min(k, len(scores)) <= 0:
        return np.zeros(0, dtype=np.int64)
    bound = -np.inf
    groups = len(scores) // _TOP_GROUP  # a group holds every ``groups``-th score: NumPy's fast direction
    if groups > 2 * k:  # at least k scores reach the k-th highest maximum of the groups, and few others do
        highest = scores[: groups * _TOP_GROUP].reshape(_TOP_GROUP, groups).max(0)
        bound = float(np.partition(highest, groups - k)[groups - k])
    candidates = np.flatnonzero(scores >= bound)
    return candidates[np.lexsort((candidates, -scores[candidates]))[:k]]


def filtered(
    fetch: Callable[[int], tuple[Rows, Cosines]], k: int, allowed: NDArray[np.bool_], total: int
) -> tuple[Rows, Cosines]:
    """The ``k`` best allowed rows of a store that cannot filter: ever more rows are fetched until enough are allowed.

    Args:
        fetch: returns so many best rows and their cosines.
        k: number of rows.
        allowed: (n,) rows that may be returned.
        total: n.
    """
    wanted = min(k, int(allowed.sum()))
    count = min(total, 2 * k * total // max(1, int(allowed.sum())))
    while True:
        rows, cosines = fetch(count)
        kept = allowed[rows]
        if kept.sum() >= wanted or count == total:
            best = top_k(cosines[kept], k)
            return rows[kept][best], cosines[kept][best]
        count = min(total, 4 * count)
