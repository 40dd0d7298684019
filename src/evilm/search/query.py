"""Queries and results: what can be searched for, which files may be found, and what a search returns."""

from __future__ import annotations

import datetime as dt
import os
import unicodedata
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self, TypeAlias

import numpy as np

from evilm.data.video import DecoderPool
from evilm.errors import QueryError, VideoError
from evilm.files import decode_path
from evilm.search.database import under
from evilm.search.model import unit_rows
from evilm.search.pipeline import LIMITS, PooledFile, decode_segments, embed_segments
from evilm.search.remote import address
from evilm.types import Clip

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from evilm.data.video import Mode
    from evilm.inference import Embedder
    from evilm.search.calibration import Calibration
    from evilm.search.database import Database, FileRecord
    from evilm.search.vectors import Vectors

    Query: TypeAlias = "str | Path | Clip | int | QueryVector"

MAX_WORDS = 200  # of a text; models read about thirty word pieces
_SHOWN = 60  # characters of a text that a message repeats


@dataclass(frozen=True, slots=True)
class Hit:
    """A segment that a search returned.

    Attributes:
        path: its file.
        start, end: of the segment, in seconds; 0 for a picture.
        score: 0 to 1; below 0.5 is no good match (see ``calibration``).
        cosine: similarity that the score was computed from.
        segment_id, video_id: numbers of the segment and of its file in the index.
        words: at most three that tell what the model sees in the segment (see ``words``).
    """

    path: Path
    start: float
    end: float
    score: float
    cosine: float
    segment_id: int
    video_id: int
    words: tuple[str, ...] = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class Hits:
    """Result of a search, best first.

    Attributes:
        query: what was searched for.
        hits: the segments.
        no_good_match: whether even the best score is below 0.5.
        calibration: by which the scores were computed; its ``origin`` tells how reliable they are.
        total: number of segments that were compared.
        good: number of them that score at least 0.5 (with FAISS and LanceDB, of those among the hits).
    """

    query: str
    hits: tuple[Hit, ...]
    no_good_match: bool
    calibration: Calibration
    total: int = 0
    good: int = 0

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)

    def __len__(self) -> int:
        return len(self.hits)

    def __getitem__(self, place: int) -> Hit:
        return self.hits[place]

    def as_json(self) -> dict[str, Any]:
        """``query``, ``hits`` (``path, start, end, score, why``), ``no_good_match``."""
        rows = [
            {"path": address(each.path), "start": round(each.start, 3), "end": round(each.end, 3),
             "score": round(each.score, 4), "why": list(each.words)}
            for each in self.hits
        ]  # fmt: skip
        return {"query": self.query, "hits": rows, "no_good_match": self.no_good_match}


@dataclass(frozen=True, slots=True)
class Video:
    """A file of the index.

    Attributes:
        id: its number.
        path: absolute.
        duration: in seconds.
        status: ``ok``, ``partial`` (some segments could not be decoded), or why there are no segments.
        reason: explains a status other than ``ok``.
        num_segments: number of segments.
        size: in bytes.
        modified: time of the last change.
    """

    id: int
    path: Path
    duration: float
    status: str
    reason: str
    num_segments: int
    size: int
    modified: dt.datetime

    @classmethod
    def of(cls, record: FileRecord) -> Self:
        """The public form of a record of the database."""
        path = decode_path(record.path)
        modified = dt.datetime.fromtimestamp(record.mtime_ns // 10**9, dt.UTC)
        return cls(
            record.id, path, record.duration, record.status, record.reason, record.num_segments, record.size, modified
        )


@dataclass(frozen=True, slots=True)
class QueryVector:
    """A query as a vector, such as the sum of several queries.

    Attributes:
        vector: (D,) unit vector.
        by_text: whether its scores are calibrated as those of texts; otherwise as those of examples.
        label: for messages.
    """

    vector: NDArray[np.float32]
    by_text: bool
    label: str = "vector"


@dataclass(frozen=True)
class Filter:
    """Conditions on files; None stands for any.

    Attributes:
        folder: they lie under it.
        name: their file name matches this pattern (``*.mkv``; letter case is ignored).
        min_duration, max_duration: in seconds.
        after, before: day of the last change: from this day on, before this day.
    """

    folder: Path | None = None
    name: str | None = None
    min_duration: float | None = None
    max_duration: float | None = None
    after: dt.date | None = None
    before: dt.date | None = None

    def __bool__(self) -> bool:
        return self != Filter()

    def condition(self, database: Database) -> tuple[str, list[Any]]:
        """The condition in SQL and its values (see ``Database.files``).

        Raises:
            QueryError: no indexed file lies under the folder.
        """
        conditions, values = ["1"], list[Any]()
        if self.folder is not None:
            folder = os.fsencode(os.path.realpath(self.folder.expanduser()))
            condition, bounds = under(folder)
            if not database.files(condition, bounds, limit=1):
                raise QueryError(f"{self.folder}: no indexed file lies under this folder")
            conditions.append(condition)
            values += bounds
        bounded = (
            ("name_matches(path, ?)", self.name),
            ("duration >= ?", self.min_duration), ("duration <= ?", self.max_duration),
            ("changed >= ?", _start_of_day(self.after)), ("changed < ?", _start_of_day(self.before)),
        )  # fmt: skip
        for condition, bound in bounded:
            if bound is not None:
                conditions.append(condition)
                values.append(bound)
        return " AND ".join(conditions), values


def _start_of_day(day: dt.date | None) -> int | None:
    """The start of a day in local time, in nanoseconds since 1970."""
    if day is None:
        return None
    return int(dt.datetime(day.year, day.month, day.day).astimezone().timestamp()) * 10**9


def parse_day(text: str) -> dt.date:
    """Read a day such as 2026-01-31.

    Raises:
        QueryError: it is not a day.
    """
    try:
        return dt.date.fromisoformat(text)
    except ValueError:
        raise QueryError(f"{text!r} is not a day: write it as 2026-01-31") from None


def check_text(text: str, model: Embedder) -> str:
    """Check that a text can be searched for; returns it with single spaces.

    Raises:
        QueryError: it is empty, far too long, not text, or in words that the model does not have.
    """
    plain = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if not any(unicodedata.category(c)[0] in "LNS" for c in plain):
        raise QueryError("the query is empty: describe in a few words what the video shows")
    words = len(plain.split())
    if words > MAX_WORDS or len(plain) > 20 * MAX_WORDS:
        length = f"{words:,} words" if words > MAX_WORDS else f"{len(plain):,} characters"
        raise QueryError(f"the query has {length}: write one sentence (at most {MAX_WORDS} words)")
    if model.unknown_share([plain]) > 0.5:
        shown = plain if len(plain) <= _SHOWN else plain[:_SHOWN] + "..."
        raise QueryError(
            f"the model does not know the words of {shown!r}: search in the language of its training captions"
        )
    return plain


def embed_texts(texts: Sequence[str], model: Embedder) -> list[QueryVector]:
    """Texts as queries, by one pass of the text encoder.

    Raises:
        QueryError: see ``check_text``.
    """
    plain = [check_text(text, model) for text in texts]
    if not plain:
        return []
    rows = unit_rows(model.embed_texts(plain), "query")
    return [QueryVector(row, True, text) for row, text in zip(rows, plain, strict=True)]


def embed_segment(number: int, vectors: Vectors) -> QueryVector:
    """A segment of the index as a query.

    Raises:
        QueryError: there is no such segment.
    """
    row = int(np.searchsorted(vectors.segment_ids, number))
    if row == len(vectors) or vectors.segment_ids[row] != number:
        raise QueryError(f"segment {number}: the index has no such segment")
    return QueryVector(np.array(vectors.matrix[row]), False, f"segment {number}")


def embed_example(example: Path | Clip, model: Embedder, mode: Mode) -> NDArray[np.float32]:
    """Unit vector (D,) of a picture, of a video or of a part of one, computed as the vector of a segment is.

    Args:
        example: a file, or a clip of one.
        model: of the index.
        mode: how the index decodes.

    Raises:
        VideoError: the file does not exist or gives no frames.
    """
    path = (example.path if isinstance(example, Clip) else example).expanduser()
    if not path.exists():
        raise VideoError(path, "not_a_file", "there is no such file; name a video or a picture")
    with DecoderPool(limits=LIMITS) as pool:
        file = PooledFile(pool, path)
        start, end = (example.start, example.end) if isinstance(example, Clip) else (0.0, None)
        end = file.duration if end is None else min(end, file.duration)
        if start and start >= end:
            raise VideoError(path, "zero_frames", f"nothing from {start:g} s on: the video lasts {end:g} s")
        pixels = decode_segments(file, [(start, end)], model, mode)
    return embed_segments(model, pixels)[0]


def rerank_hits(hits: list[Hit], text: str, model: Embedder, count: int) -> list[Hit]:
    """Order the first ``count`` hits by the fusion decoder; those that can no longer be read come last of them."""
    fits: dict[Hit, float] = {}
    for hit in hits[:count]:
        try:
            fits[hit] = float(model.match([(hit.path, hit.start, hit.end)], [text])[0, 0])
        except VideoError:
            fits[hit] = -np.inf
    return [*sorted(fits, key=lambda hit: -fits[hit]), *hits[count:]]
