"""``VideoIndex``: an index of a folder of videos that can be searched.

index = evilm.VideoIndex.build("~/clips", "runs/retrieval")
for hit in index.search("a dog catches a frisbee", k=5):
    print(hit.path, hit.start, hit.end, hit.score)
"""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from evilm.errors import QueryError, VideoIndexError
from evilm.search import calibration, labels, vectors
from evilm.search.database import UNFINISHED, Database
from evilm.search.model import check_model, stored_config, unit_rows
from evilm.search.nearest import check_backend
from evilm.search.pipeline import LIMITS
from evilm.search.query import (
    Filter,
    Hit,
    Hits,
    QueryVector,
    Video,
    embed_example,
    embed_segment,
    embed_texts,
    rerank_hits,
)
from evilm.search.searcher import Searcher
from evilm.search.source import Source
from evilm.search.update import update_index, writing
from evilm.types import Clip

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from evilm.data.video import Limits
    from evilm.inference import Embedder
    from evilm.search.calibration import Calibration
    from evilm.search.database import Segment
    from evilm.search.model import IndexConfig
    from evilm.search.nearest import BackendName
    from evilm.search.query import Query
    from evilm.search.source import Shard
    from evilm.search.update import Report, Runner

DEFAULT_FOLDER = ".evilm-index"  # of an index, within the folder of videos; scans leave out hidden folders


class VideoIndex:
    """An open index: ``build`` makes one, ``open`` opens one.

    Any number of threads may search. While another process updates the index, a search sees the last commit.

    Args:
        folder: of the index.
        model: that made the index; None loads it from where it was when the index was made, on first use.
        backend: of nearest neighbours, see ``nearest``; ``auto`` takes ``exact`` up to ``nearest.EXACT_LIMIT``.

    Attributes:
        report: of the update that ``build`` or ``update`` made.

    Raises:
        VideoIndexError: there is no index, it is damaged, or another model made it.
    """

    def __init__(self, folder: Path, model: Embedder | str | Path | None = None, backend: str = "auto") -> None:
        self.folder = folder
        self.backend: BackendName = check_backend(backend)
        self.report: Report | None = None
        self._database = Database(folder)
        self._searcher = Searcher(self._database, backend)
        self._given_model = model
        self._model: Embedder | None = None
        self._lock = threading.RLock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files; safe to call twice."""
        self._database.close()

    def __len__(self) -> int:
        """Number of segments."""
        return self._database.counts[1]

    @property
    def num_videos(self) -> int:
        """Number of videos that have segments."""
        return self._database.counts[0]

    @property
    def model(self) -> Embedder:
        """The model that made the index.

        Raises:
            VideoIndexError: it cannot be found, or another model was given.
        """
        with self._lock:
            if self._model is None:
                stored = self._database.metadata("model")
                if stored is None:
                    raise VideoIndexError(f"{self.folder}: {UNFINISHED}")
                self._model = check_model(self._given_model or stored["path"], stored, self.folder)
            return self._model

    # Making and changing

    @classmethod
    def build(
        cls, folder: str | Path, model: Embedder | str | Path | None = None, index_dir: str | Path | None = None, *,
        config: IndexConfig | None = None, workers: int = 2, batch: int = 16, limits: Limits = LIMITS,
        allow_empty: bool = False, on_commit: Callable[[Sequence[bytes], int, int], None] | None = None,
        shard: Shard | None = None, runner: Runner | None = None, pictures: bool | None = None,
    ) -> Self:  # fmt: skip
        """Make an index of a folder, or bring one up to date. After an interruption, the same call continues.

        Args:
            folder: with videos, scanned with all folders below it; or a list of videos, or an address (see ``source``).
            model: an ``Embedder``, or what ``evilm.load`` takes; None: the index's own, or a bundled one.
            index_dir: folder of the index; None: ``.evilm-index`` within ``folder``.
            config: how videos are decoded and cut; an existing index keeps its own.
            workers: number of decoder processes.
            batch: segments that are encoded together at most.
            limits: of each file.
            allow_empty: remove all entries of a folder that has no videos any more.
            on_commit: called with the paths of files that were just committed, the number of files done and of all.
            shard: the part of the videos that is indexed; ``merge.merge`` joins the indexes of all shards.
            runner: does the work elsewhere (see ``cluster``); None: in this process and its decoders.
            pictures: index still pictures too, each as one segment of 0 seconds; None: as the last time.

        Raises:
            VideoIndexError: there is nothing to index, another model made the index, or another process writes to it.
            OutputError: the index's folder holds something else, or the disk is full (what is committed is kept).
        """
        source = Source.of(folder, shard)
        if index_dir is None and source.kind != "folder":
            raise VideoIndexError(f"{folder}: name a folder for its index")
        place = Path(source.name) / DEFAULT_FOLDER if index_dir is None else Path(index_dir).expanduser()
        embedder, report = update_index(
            source, place, model, config=config, workers=workers, batch=batch, limits=limits, allow_empty=allow_empty,
            on_commit=on_commit, runner=runner, pictures=pictures,
        )  # fmt: skip
        index = cls(place, embedder)
        index.report = report
        return index

    @classmethod
    def open(cls, folder: str | Path, model: Embedder | str | Path | None = None, backend: str = "auto") -> Self:
        """Open an existing index; arguments and errors are those of ``VideoIndex``."""
        return cls(Path(folder).expanduser(), model, backend)

    def update(
        self, folder: str | Path, *, workers: int = 2, limits: Limits = LIMITS, allow_empty: bool = False,
        on_commit: Callable[[Sequence[bytes], int, int], None] | None = None,
    ) -> Report:  # fmt: skip
        """Bring this index up to date with a folder; see ``build``."""
        _, self.report = update_index(
            Source.of(folder), self.folder, self.model, config=None, workers=workers, batch=16, limits=limits,
            allow_empty=allow_empty, on_commit=on_commit,
        )  # fmt: skip
        return self.report

    def compact(self) -> None:
        """Return the disk space of deleted videos to the system, and write the cache again.

        Raises:
            VideoIndexError, OutputError: another process writes to the index; there is no room. Nothing is lost.
        """
        with writing(self.folder), Database(self.folder, write=True) as database:
            database.compact()
            width = database.metadata("width")
            if width is not None:
                vectors.save(self.folder, database.metadata("identity"), vectors.load(database, width))

    def calibrate(self, pairs: Sequence[tuple[str, str | Path]]) -> Calibration:
        """Calibrate the scores of text searches with texts and the videos of the index that they describe.

        Args:
            pairs: text and path, for some dozens of texts; a text may have several videos. Others are ignored.

        Raises:
            VideoIndexError: fewer than two texts describe videos of the index, or another process writes to it.
            VocabularyError: the model does not know ordinary words.
        """
        ids = {record.path: record.id for record in self._database.files()}
        described: dict[str, set[int]] = {}
        for text, path in pairs:
            absolute = Path(path).expanduser()  # as the scan writes it: links are followed in the folder, not the file
            key = os.fsencode(os.path.join(os.path.realpath(absolute.parent), absolute.name))  # noqa: PTH118
            if key in ids:
                described.setdefault(text, set()).add(ids[key])
        loaded = self._searcher.load()
        if len(described) < 2 or len(np.unique(loaded.vectors.file_ids)) < 2:
            raise VideoIndexError(f"{self.folder}: calibration needs at least two texts that describe indexed videos")
        queries = unit_rows(self.model.embed_texts(list(described)), "text")
        unrelated = unit_rows(self.model.embed_texts(list(calibration.UNRELATED)), "text")
        result = calibration.from_texts(queries, list(described.values()), unrelated, loaded.vectors, loaded.sample)
        with writing(self.folder), Database(self.folder, write=True) as database, database.transaction():
            database.set_metadata("text_calibration", result.as_json())
        return result

    # Searching

    def search(
        self, query: Query, k: int = 10, where: Filter | None = None, *, offset: int = 0, rerank: int = 0
    ) -> Hits:
        """Find the segments that match a query best.

        Args:
            query: a text (``str``); a picture or video file (``Path``); a part of a video (``Clip``); or the id of a
                segment of this index (``int``).
            k: number of hits.
            where: only files that meet these conditions.
            offset: number of best hits to leave out, for paging.
            rerank: number of best hits that the fusion decoder orders, for a text; scores stay those of the cosine.

        Raises:
            QueryError: the text is empty, too long or in unknown words; there is no such segment; or no indexed file
                lies in the folder of ``where``.
            VideoError: the file does not exist or gives no frames.
            VideoIndexError: the model cannot be found, or another one was given.
        """
        if k < 1 or offset < 0:
            raise QueryError(f"k = {k}, offset = {offset}: ask for at least one hit, and leave out none or more")
        if rerank and not (isinstance(query, str) and "match" in self.model.metadata.heads):
            what = "this model has no fusion decoder" if isinstance(query, str) else "only a text can be re-ranked"
            raise QueryError(f"{what}: search without --rerank")
        embedded = self.embed(query)
        label = query if isinstance(query, str) else embedded.label
        count, first = (max(offset + k, rerank), 0) if rerank else (k, offset)
        found = self._searcher.search([embedded], [count], [where], [first])
        if rerank:
            hits = rerank_hits([*found[0].hits], embedded.label, self.model, rerank)
            found = [replace(found[0], hits=tuple(hits[offset : offset + k]))]
        return replace(self._searcher.explain(found, [embedded], self.model)[0], query=label)

    def search_many(
        self, queries: Sequence[Query], k: int | Sequence[int] = 10, where: Sequence[Filter | None] | None = None, *,
        offsets: Sequence[int] | None = None,
    ) -> list[Hits]:  # fmt: skip
        """Answer several searches together: texts in one pass of the encoder, cosines by one matrix product.

        Args:
            queries: see ``search``.
            k: number of hits, of all queries or of each.
            where: for each query, only files that meet these conditions.
            offsets: for each query, the number of best hits to leave out.

        Raises:
            QueryError, VideoError, VideoIndexError: as ``search``, if one of the queries is wrong.
        """
        counts = [k] * len(queries) if isinstance(k, int) else list(k)
        texts = [query for query in queries if isinstance(query, str)]
        by_text = dict(zip(texts, self.embed_texts(texts), strict=True))
        embedded = [by_text[query] if isinstance(query, str) else self.embed(query) for query in queries]
        filters, offsets = where or [None] * len(queries), offsets or [0] * len(queries)
        found = self._searcher.search(embedded, counts, filters, offsets)
        return self._searcher.explain(found, embedded, self.model)

    def embed(self, query: Query) -> QueryVector:
        """The vector of a query, which can be searched for; arguments and errors are those of ``search``."""
        if isinstance(query, QueryVector):
            return query
        if isinstance(query, str):
            return self.embed_texts([query])[0]
        if isinstance(query, int):
            return embed_segment(query, self._searcher.load().vectors)
        label = query.id if isinstance(query, Clip) else str(query)
        return QueryVector(embed_example(query, self.model, stored_config(self._database).mode), False, label)

    def embed_texts(self, texts: Sequence[str]) -> list[QueryVector]:
        """The vectors of texts by one pass of the encoder; see ``embed``."""
        return embed_texts(texts, self.model)

    def scores_of(self, video_id: int, query: Query) -> list[Hit]:
        """Score every segment of one video, in order of time; the query is as in ``search``.

        Raises:
            QueryError: the video has no segments; and others as in ``search``.
        """
        embedded, loaded = self.embed(query), self._searcher.load()
        rows = np.flatnonzero(loaded.vectors.file_ids == video_id)
        if not len(rows):
            raise QueryError(f"video {video_id}: the index has no segments of such a video")
        hits = self._searcher.hits(loaded, rows, loaded.vectors.matrix[rows] @ embedded.vector, embedded)
        return sorted(hits, key=lambda hit: (hit.start, hit.segment_id))

    # Content
    def videos(self, where: Filter | None = None, *, limit: int | None = None, offset: int = 0) -> list[Video]:
        """Files of the index in order of paths, unreadable ones included."""
        condition, values = (where or Filter()).condition(self._database)
        return [Video.of(record) for record in self._database.files(condition, values, limit, offset)]

    def videos_by_id(self, ids: Sequence[int]) -> list[Video]:
        """Files of the index by their ids; those that do not exist are left out."""
        condition = "id IN (SELECT value FROM json_each(?))"
        return [Video.of(record) for record in self._database.files(condition, [str([*ids])])]

    def segment(self, segment_id: int) -> Segment | None:
        """A segment of the index; None if there is no such segment."""
        return next(iter(self._database.segments([segment_id])), None)

    def lifts(self, segment_ids: Sequence[int], queries: Sequence[QueryVector]) -> NDArray[np.float64]:
        """How much segments fit queries; see ``Searcher.lifts``."""
        return self._searcher.lifts(segment_ids, queries)

    def label(self, names: Sequence[str]) -> Iterator[labels.Label]:
        """The best of ``names`` for each segment, in order of segment ids; see ``search.labels``."""
        return labels.label(self._database, self._searcher.load(), self.model, names)

    @property
    def pictures(self) -> bool:
        """Whether updates index still pictures too."""
        return self._database.metadata("pictures", False)

    @property
    def generation(self) -> int:
        """A number that grows with every change of the index."""
        return self._database.generation

    @property
    def scanned_folder(self) -> Path | None:
        """The folder that was scanned last; None for an index of an earlier version."""
        folder = self._database.metadata("folder")
        return None if folder is None else Path(folder)

    def segments_of(self, video_id: int) -> list[Segment]:
        """Segments of a video in order of time; none if there is no such video or it is unreadable."""
        return self._database.segments(file_id=video_id)

    def unreadable(self) -> list[Video]:
        """Files that gave no segments or not all of them, with status and reason."""
        return [Video.of(record) for record in self._database.files("status != 'ok'")]

    def status_counts(self) -> dict[str, int]:
        """Number of files of each status, ``ok`` and unreadable ones."""
        return self._database.status_counts()
