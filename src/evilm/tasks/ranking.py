"""Ranks and recalls of large retrieval evaluations, computed in blocks: the memory does not grow with texts x videos.

Cosines are exact, so that a tie is a tie on every machine and in blocks of any shape: embeddings are rounded to
multiples of 2^-24, whose products and their sums fit the 53 bits of a float64 without rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from evilm.metrics import Counts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    Rows = NDArray[np.intp]
    # (r,) rows and (c,) columns to float64 scores (r, c); higher is better. The score of a pair does not depend on the
    # other pairs that are asked for.
    Scores = Callable[[Rows, Rows], NDArray[np.float64]]

BLOCK = (1024, 8192)  # rows and columns of a block: 64 MiB
_GRID = 2.0**24
_PRIOR_ROWS = 256  # summed at a time by ``dual_softmax``


class Relevance(Protocol):
    """Which columns are right answers for which rows."""

    def block(self, rows: Rows, columns: Rows) -> NDArray[np.bool_]:
        """(r, c) bool."""
        ...


@dataclass(frozen=True, slots=True)
class SameLabel:
    """A column is right for a row if both have the same label, (rows,) and (columns,)."""

    rows: NDArray[np.integer]
    columns: NDArray[np.integer]

    def block(self, rows: Rows, columns: Rows) -> NDArray[np.bool_]:
        return self.rows[rows][:, None] == self.columns[columns][None]


@dataclass(frozen=True, slots=True)
class Matrix:
    """Relevance as a whole (rows, columns) matrix, for small evaluations."""

    values: NDArray[np.bool_]

    def block(self, rows: Rows, columns: Rows) -> NDArray[np.bool_]:
        return self.values[np.ix_(rows, columns)]


class Ranking(NamedTuple):
    """Result of ``rank``.

    Attributes:
        rows, columns: counts of each row among the columns, and of each column among the rows.
        relevant_columns, relevant_rows: number of right columns of each row, and of right rows of each column.
        first: (rows, up to 10) the columns with the highest scores, equal ones by their number; -1 where there are
            fewer columns with a score.
    """

    rows: Counts
    columns: Counts
    relevant_columns: NDArray[np.int64]
    relevant_rows: NDArray[np.int64]
    first: NDArray[np.intp]


def cosines(rows: NDArray[np.floating], columns: NDArray[np.floating]) -> Scores:
    """Exact cosines of l2-normalised embeddings (rows, d) and (columns, d), as a function of blocks."""
    left, right = (np.rint(each.astype(np.float64) * _GRID) / _GRID for each in (rows, columns))
    return lambda some, others: left[some] @ right[others].T


def of_matrix(values: NDArray[np.floating]) -> Scores:
    """Scores that are at hand as a whole."""
    return lambda some, others: values[np.ix_(some, others)].astype(np.float64)


def dual_softmax(scores: Scores, rows: int, columns: int, temperature: float) -> Scores:
    """Each score times its share in the softmax over all rows of its column (dual softmax; Cheng et al., 2021).

    It uses all queries of the evaluation at once, which a search does not have: for comparison with published numbers.

    Args:
        scores: the plain scores.
        rows, columns: how many there are.
        temperature: of the softmax.
    """
    every, top, total = np.arange(columns), np.full(columns, -np.inf), np.zeros(columns)
    for start in range(0, rows, _PRIOR_ROWS):  # in parts of one size, so that the sums do not depend on the blocks
        part = np.arange(start, min(rows, start + _PRIOR_ROWS))
        for some in _parts(every, BLOCK[1]):
            values = scores(part, some) / temperature
            high = np.maximum(top[some], values.max(0))
            total[some] = total[some] * np.exp(top[some] - high) + np.exp(values - high).sum(0)
            top[some] = high

    def weighted(some: Rows, others: Rows) -> NDArray[np.float64]:
        values = scores(some, others)
        return values * np.exp(values / temperature - top[others]) / total[others]

    return weighted


def rank(
    scores: Scores,
    relevant: Relevance,
    shape: tuple[int, int],
    readable: NDArray[np.bool_] | None = None,
    first: int = 10,
    block: tuple[int, int] = BLOCK,
) -> Ranking:
    """Rank the columns for each row and the rows for each column.

    The result does not depend on ``block``.

    Args:
        scores: see ``cosines``; NaN ranks last.
        relevant: the right answers.
        shape: numbers of rows and columns.
        readable: (columns,) bool; False for a column that no row finds and that finds no row. None: all are.
        first: number of columns listed for each row.
        block: rows and columns that are computed at a time.
    """
    readable = np.ones(shape[1], dtype=bool) if readable is None else readable
    row_blocks, column_blocks = (list(_parts(np.arange(n), size)) for n, size in zip(shape, block, strict=True))

    def values(rows: Rows, columns: Rows) -> NDArray[np.float64]:
        found = scores(rows, columns)
        found[np.isnan(found)] = -np.inf
        found[:, ~readable[columns]] = -np.inf
        return found

    # The best right answer of each row and of each column, from the right pairs alone.
    best, best_of_column = np.full(shape[0], -np.inf), np.full(shape[1], -np.inf)
    num_columns, num_rows = np.zeros(shape[0], dtype=np.int64), np.zeros(shape[1], dtype=np.int64)
    holds = np.zeros((len(row_blocks), len(column_blocks)), dtype=bool)
    for i, rows in enumerate(row_blocks):
        for j, columns in enumerate(column_blocks):
            right = relevant.block(rows, columns)
            num_columns[rows] += np.count_nonzero(right, axis=1)
            num_rows[columns] += np.count_nonzero(right, axis=0)
            right &= readable[columns]
            some, others = np.flatnonzero(right.any(1)), np.flatnonzero(right.any(0))
            holds[i, j] = len(some) > 0
            if holds[i, j]:
                scored = np.where(right[np.ix_(some, others)], values(rows[some], columns[others]), -np.inf)
                best[rows[some]] = np.maximum(best[rows[some]], scored.max(1))
                best_of_column[columns[others]] = np.maximum(best_of_column[columns[others]], scored.max(0))
    counts, counts_of_column = np.zeros((3, shape[0])), np.zeros((3, shape[1]))
    listed = np.full((shape[0], min(first, shape[1])), -1, dtype=np.intp)
    for i, rows in enumerate(row_blocks):
        top = _Top(len(rows), listed.shape[1])
        for j, columns in enumerate(column_blocks):
            found = values(rows, columns)
            level, level_of_column = found == best[rows, None], found == best_of_column[columns]
            counts[0, rows] += np.count_nonzero(found > best[rows, None], axis=1)
            counts[1, rows] += np.count_nonzero(level, axis=1)
            counts_of_column[0, columns] += np.count_nonzero(found > best_of_column[columns], axis=0)
            counts_of_column[1, columns] += np.count_nonzero(level_of_column, axis=0)
            if holds[i, j]:
                right = relevant.block(rows, columns) & readable[columns]
                counts[2, rows] += np.count_nonzero(level & right, axis=1)
                counts_of_column[2, columns] += np.count_nonzero(level_of_column & right, axis=0)
            top.add(found, columns)
        listed[rows] = top.columns
    return Ranking(
        Counts(*counts, candidates=shape[1]), Counts(*counts_of_column, candidates=shape[0]), num_columns, num_rows,
        listed,
    )  # fmt: skip


class _Top:
    """The highest scores of some rows so far, equal ones by the number of their column.

    Args:
        rows: number of rows.
        count: scores kept for each.
    """

    def __init__(self, rows: int, count: int) -> None:
        self.values, self.columns = np.full((rows, count), -np.inf), np.full((rows, count), -1, dtype=np.intp)

    def add(self, found: NDArray[np.float64], columns: Rows) -> None:
        """Take in scores (rows, c) of columns that come after all earlier ones."""
        count = self.values.shape[1]
        if not count:
            return
        least = self.values[:, -1]
        if (self.columns[:, -1] < 0).any() and found.shape[1] > count:  # the first block: most scores are too low
            kth = np.partition(found, -count, axis=1)[:, -count]
            candidates = (found >= kth[:, None]) & (found > least[:, None])
        else:
            candidates = found > least[:, None]
        row, place = np.nonzero(candidates)
        kept = np.nonzero(self.columns >= 0)
        row, column = np.concatenate([kept[0], row]), np.concatenate([self.columns[kept], columns[place]])
        value = np.concatenate([self.values[kept], found[candidates]])
        order = np.lexsort((column, -value, row))
        row, column, value = row[order], column[order], value[order]
        rank = np.arange(len(row)) - np.searchsorted(row, row)
        short = rank < count
        self.columns[row[short], rank[short]] = column[short]
        self.values[row[short], rank[short]] = value[short]


def _parts(numbers: Rows, size: int) -> Iterator[Rows]:
    """Consecutive parts of at most ``size`` numbers."""
    return (numbers[start : start + size] for start in range(0, len(numbers), size))
