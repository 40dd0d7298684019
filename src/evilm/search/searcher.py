"""Searches in the vectors of one index: loaded once for each generation, compared by one backend."""

from __future__ import annotations

import itertools
import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from evilm.errors import VideoIndexError
from evilm.progress import say
from evilm.search import calibration, vectors, words
from evilm.search.calibration import Calibration
from evilm.search.database import UNFINISHED
from evilm.search.nearest import Exact, check_backend, open_backend, resolve_backend
from evilm.search.query import Hit, Hits
from evilm.search.ranking import select

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from evilm.inference import Embedder
    from evilm.search.database import Database, Segment
    from evilm.search.nearest import Backend, BackendName
    from evilm.search.query import Filter, QueryVector

ATTEMPTS = 3  # of a search, while another process removes segments that it found


@dataclass
class Loaded:
    """The vectors of one generation, a sample of them for lifts, and, once needed, the backend and means of words."""

    vectors: vectors.Vectors
    sample: NDArray[np.float32]
    backend: Backend | None = None
    word_means: NDArray[np.float32] | None = None


@dataclass
class _Found:
    """Rows of the vectors that a query found: (n,) each; numbers of good ones and of all that were compared."""

    rows: NDArray[np.int64]
    cosines: NDArray[np.float32]
    scores: NDArray[np.float64]
    good: int = 0
    total: int = 0


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
        self._words: words.Words | None = None

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
        self, queries: Sequence[QueryVector], counts: Sequence[int], where: Sequence[Filter | None],
        offsets: Sequence[int],
    ) -> list[Hits]:  # fmt: skip
        """The best hits of each query: at most so many, of files that meet its condition, without the first ones.

        Raises:
            QueryError: no indexed file lies in the folder of a condition.
            VideoIndexError: the vectors of the index have another width.
        """
        results, complete = self._search_once(queries, counts, where, offsets)
        for _ in range(ATTEMPTS - 1):
            if not complete:
                results, complete = self._search_once(queries, counts, where, offsets)
        return results

    def _search_once(
        self, queries: Sequence[QueryVector], counts: Sequence[int], where: Sequence[Filter | None],
        offsets: Sequence[int],
    ) -> tuple[list[Hits], bool]:  # fmt: skip
        """The results, and whether all segments that were found are still in the database."""
        loaded = self.load()
        for query in queries:
            if len(loaded.vectors) and loaded.vectors.matrix.shape[1] != len(query.vector):
                width = loaded.vectors.matrix.shape[1]
                raise VideoIndexError(f"{self._folder}: has vectors of {width} numbers, not {len(query.vector)}")
        backend, curves = self._open_backend(loaded), dict[bool, Calibration]()
        cosines: Iterable[NDArray[np.float32] | None] = itertools.repeat(None, len(queries))
        if isinstance(backend, Exact) and len(loaded.vectors) and queries:
            cosines = backend.cosines(np.stack([query.vector for query in queries]))
        found: list[_Found] = []
        for query, count, condition, offset, every in zip(queries, counts, where, offsets, cosines, strict=True):
            allowed = None
            if condition:
                ids = self._database.file_ids(*condition.condition(self._database))
                allowed = np.isin(loaded.vectors.file_ids, ids)
            curve = curves.setdefault(query.by_text, curves.get(query.by_text) or self._calibration(query))
            if every is None:
                rows, best = backend.nearest(query.vector, offset + count, allowed)
            else:
                every = every if allowed is None else np.where(allowed, every, np.float32(-np.inf))  # noqa: PLW2901
                rows, best = select(every, offset + count)
            scores = curve.score(best, query.vector, loaded.sample)
            good = int(np.count_nonzero(scores >= calibration.GOOD))
            if every is not None and good == len(rows):  # further ones may be good, too
                good = max(good, int(np.count_nonzero(every >= curve.good_cosine(query.vector, loaded.sample))))
            total = len(loaded.vectors) if allowed is None else int(allowed.sum())
            found.append(_Found(rows[offset:], best[offset:], scores[offset:], good, total))
        segments, results = self._segments(loaded, found), list[Hits]()
        for query, each in zip(queries, found, strict=True):
            hits = tuple(_hits(loaded, each, segments))
            results.append(Hits(query.label, hits, not each.good, curves[query.by_text], each.total, each.good))
        return results, all(len(hits) == len(each.rows) for hits, each in zip(results, found, strict=True))

    def lifts(self, segment_ids: Sequence[int], queries: Sequence[QueryVector]) -> NDArray[np.float64]:
        """How much segments (n,) fit queries (m,): (n, m) standard deviations above the mean cosine of the query.

        Zero for a segment that does not exist.
        """
        loaded, result = self.load(), np.zeros((len(segment_ids), len(queries)))
        if not (len(loaded.vectors) and len(segment_ids) and queries):
            return result
        known = loaded.vectors.segment_ids  # increasing
        rows = np.minimum(np.searchsorted(known, np.asarray(segment_ids, np.int64)), len(known) - 1)
        present = known[rows] == segment_ids
        matrix = np.stack([query.vector for query in queries])
        result[present] = calibration.lifts(loaded.vectors.matrix[rows[present]] @ matrix.T, matrix, loaded.sample)
        return result

    def explain(self, results: Sequence[Hits], queries: Sequence[QueryVector], model: Embedder) -> list[Hits]:
        """The results with words of each hit, which ``model`` embeds once; see ``words``."""
        if not any(results):
            return list(results)
        loaded = self.load()
        with self._lock:
            if self._words is None:
                self._words = words.of_model(model, self._folder)
            if loaded.word_means is None:
                loaded.word_means = self._words.means(loaded.sample)
        known, explained = loaded.vectors.segment_ids, list[Hits]()
        for result, query in zip(results, queries, strict=True):
            rows = np.searchsorted(known, [hit.segment_id for hit in result])
            rows = np.minimum(rows, max(0, len(known) - 1))  # a segment may be gone since
            vectors_of_hits = loaded.vectors.matrix[rows] if len(rows) else np.zeros((0, len(query.vector)), np.float32)
            found = self._words.explain(vectors_of_hits, query.vector, loaded.word_means)
            hits = tuple(replace(hit, words=some) for hit, some in zip(result, found, strict=True))
            explained.append(replace(result, hits=hits))
        return explained

    def hits(
        self, loaded: Loaded, rows: NDArray[np.int64], cosines: NDArray[np.float32], query: QueryVector
    ) -> list[Hit]:
        """Rows of the vectors as hits, without segments that are no longer there."""
        found = _Found(rows, cosines, self._calibration(query).score(cosines, query.vector, loaded.sample))
        return _hits(loaded, found, self._segments(loaded, [found]))

    def _segments(self, loaded: Loaded, found: Sequence[_Found]) -> dict[int, Segment]:
        """The segments that were found, read together, by their ids."""
        rows = np.unique(np.concatenate([np.zeros(0, np.int64), *(each.rows for each in found)]))
        return {each.id: each for each in self._database.segments(loaded.vectors.segment_ids[rows].tolist())}

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


def _hits(loaded: Loaded, found: _Found, segments: Mapping[int, Segment]) -> list[Hit]:
    ids = loaded.vectors.segment_ids[found.rows].tolist()
    return [
        Hit(each.path, each.start, each.end, score, cosine, each.id, each.video_id)
        for number, cosine, score in zip(ids, found.cosines.tolist(), found.scores.tolist(), strict=True)
        if (each := segments.get(number)) is not None
    ]
