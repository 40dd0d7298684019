"""Searches in the vectors of one index: loaded once for each generation, compared by one backend."""

from __future__ import annotations

import itertools
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from evilm.errors import VideoIndexError
from evilm.progress import say
from evilm.search import calibration, vectors
from evilm.search.calibration import Calibration
from evilm.search.database import UNFINISHED
from evilm.search.backends import open_backend
from evilm.search.nearest import Exact, check_backend, resolve_backend, select
from evilm.search.query import Hit, Hits

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from evilm.search.database import Database
    from evilm.search.nearest import Backend, BackendName
    from evilm.search.query import Filter, QueryVector

ATTEMPTS = 3  # of a search, while another process removes segments that it found


@dataclass
class Loaded:
    """The vectors of one generation, a sample of them for lifts, and the backend once it is open."""

    vectors: vectors.Vectors
    sample: NDArray[np.float32]
    backend: Backend | None = None


class Searcher:
    """Answers searches in a database; safe to use from several threads.

    Args:
        database: of the index.
        backend: see ``VideoIndex``.
    """

    def __init__(self, database: Database, backend: str) -> None:
        self.backend: BackendName = check_backend(backend)
        self._database, self._folder = database, database.folder
        self._lock = threading.RLock()
        self._loaded: Loaded | None = None
        self._announced = False

    def load(self) -> Loaded:
        """The vectors of the last commit."""
        with self._lock:
            width, previous = self._database.metadata("width"), self._loaded
            if width is None:
                raise VideoIndexError(f"{self._folder}: {UNFINISHED}")
            current = vectors.load(self._database, width, None if previous is None else previous.vectors)
            if previous is None or current is not previous.vectors:
                self._loaded = previous = Loaded(current, calibration.sample_rows(current.matrix))
            return previous

    def search(
        self, queries: Sequence[QueryVector], counts: Sequence[int], where: Sequence[Filter | None]
    ) -> list[Hits]:
        """The best hits of each query: at most so many, of files that meet its condition.

        Raises:
            QueryError: no indexed file lies in the folder of a condition.
            VideoIndexError: the vectors of the index have another width.
        """
        results, complete = self._search_once(queries, counts, where)
        for _ in range(ATTEMPTS - 1):
            if not complete:
                results, complete = self._search_once(queries, counts, where)
        return results

    def _search_once(
        self, queries: Sequence[QueryVector], counts: Sequence[int], where: Sequence[Filter | None]
    ) -> tuple[list[Hits], bool]:
        """The results, and whether all segments that were found are still in the database."""
        loaded, results, all_complete = self.load(), list[Hits](), True
        for query in queries:
            if len(loaded.vectors) and loaded.vectors.matrix.shape[1] != len(query.vector):
                width = loaded.vectors.matrix.shape[1]
                raise VideoIndexError(f"{self._folder}: has vectors of {width} numbers, not {len(query.vector)}")
        backend = self._open_backend(loaded)
        cosines: Iterable[NDArray[np.float32] | None] = itertools.repeat(None, len(queries))
        if isinstance(backend, Exact) and len(loaded.vectors) and queries:
            cosines = backend.cosines(np.stack([query.vector for query in queries]))
        for query, count, condition, scores in zip(queries, counts, where, cosines, strict=True):
            allowed = None
            if condition:
                ids = self._database.file_ids(*condition.condition(self._database))
                allowed = np.isin(loaded.vectors.file_ids, ids)
            if scores is None:
                nearest = backend.nearest(query.vector, count, allowed)
            else:
                scores = scores if allowed is None else np.where(allowed, scores, np.float32(-np.inf))  # noqa: PLW2901
                nearest = select(scores, count)
            curve = self._calibration(query)
            hits, complete = self.hits(loaded, *nearest, query)
            good = sum(hit.score >= calibration.GOOD for hit in hits)
            if scores is not None and good == len(hits):  # further ones may be good, too
                good = max(good, int(np.count_nonzero(scores >= curve.good_cosine(query.vector, loaded.sample))))
            total = len(loaded.vectors) if allowed is None else int(allowed.sum())
            results.append(Hits(query.label, tuple(hits), not good, curve, total, good))
            all_complete &= complete
        return results, all_complete

    def hits(
        self, loaded: Loaded, rows: NDArray[np.int64], cosines: NDArray[np.float32], query: QueryVector
    ) -> tuple[list[Hit], bool]:
        """Rows of the vectors as hits, without segments that are no longer there; and whether all are there."""
        ids = loaded.vectors.segment_ids[rows].tolist()
        segments = {segment.id: segment for segment in self._database.segments(ids)}
        scores = self._calibration(query).score(cosines, query.vector, loaded.sample)
        hits = [
            Hit(found.path, found.start, found.end, float(score), float(cosine), found.id, found.video_id)
            for number, cosine, score in zip(ids, cosines, scores, strict=True)
            if (found := segments.get(number)) is not None
        ]
        return hits, len(hits) == len(rows)

    def _calibration(self, query: QueryVector) -> Calibration:
        value = self._database.metadata("text_calibration" if query.by_text else "example_calibration")
        return calibration.UNKNOWN if value is None else Calibration.from_json(value)

    def _open_backend(self, loaded: Loaded) -> Backend:
        rows, width = loaded.vectors.matrix.shape
        with self._lock:
            if loaded.backend is None:
                chosen = resolve_backend(self.backend, rows, width)
                if chosen not in {self.backend, "exact"} and not self._announced:
                    self._announced = True
                    say(f"{self._folder}: {rows:,} segments, so {chosen} searches; --backend exact is slower")
                identity = self._database.metadata("identity")
                loaded.backend = open_backend(chosen, loaded.vectors, self._folder, identity)
            return loaded.backend
