"""The index as the interface shows it: searches, segments and videos as the models of ``schemas``."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic_core import to_json
from starlette.concurrency import run_in_threadpool

from evilm.errors import EvilmError, QueryError, VideoError
from evilm.files import is_picture
from evilm.server import schemas
from evilm.server.batches import Batches
from evilm.server.library import Library, Request, filter_of, parse_text
from evilm.server.media import Part, playable
from evilm.server.uploads import Uploads
from evilm.server.videos import MissingError, Videos, order, printable, relative

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Future
    from pathlib import Path

    from evilm.search.database import Segment
    from evilm.search.query import Hit, Hits, Video
    from evilm.server.media import Media
    from evilm.server.videos import Shown

GOOD, PAGE = 0.5, 100  # score of a good hit; rows of lists
SORTED = 2000  # best hits that are sorted by date or name
MAX_BATCH, MAX_WAITING = 64, 256  # searches that are answered together; that wait
SECONDS = 30.0  # that a search waits at most


class Catalog:
    """What the routes ask of the index.

    Args:
        folder: of the index.
        model: of the index; None takes the one that made it.
    """

    def __init__(self, folder: Path, model: str | None) -> None:
        self.library = Library(folder, model)
        self.uploads = Uploads(self.library)
        self.videos = Videos(self.library)
        self.searches = Batches(self._answer, "evilm-search", MAX_BATCH, MAX_WAITING)
        self._folder = folder

    def close(self) -> None:
        """Answer the searches that wait, and close the index."""
        self.searches.close()
        self.library.close()

    def warm_up(self) -> None:
        """Load the model and the vectors, so that the first search is as fast as the others."""
        with contextlib.suppress(EvilmError):
            self._answer([(schemas.SearchBody(text="a video"), time.perf_counter())])

    # Content

    def generation(self) -> int:
        """A number that changes with each commit of the index; 0 without one."""
        index = self.library.index
        return 0 if index is None else index.generation

    def summary(self) -> dict[str, Any]:
        """Counts, model and folders."""
        index = self.library.index
        if index is None:
            empty = {"ready": False, "name": "", "files": 0, "segments": 0, "hours": 0.0, "bytes": 0, "updated": None,
                     "pictures": False}  # fmt: skip
            return empty | {"statuses": {}, "folders": [], "model": None}
        overview = self.videos.overview()
        try:
            model = self._about_model()
        except EvilmError:
            model = {"name": "not available", "about": "it cannot be loaded; see `evilm serve --model`",
                     "embeds": False, "asks": False, "chooses": False, "example": ""}  # fmt: skip
        changed = dt.datetime.fromtimestamp((self._folder / "index.db").stat().st_mtime, dt.UTC)
        return {
            "ready": len(index) > 0, "name": printable(overview.root.name), "files": index.num_videos,
            "segments": len(index), "hours": overview.hours, "pictures": index.pictures,
            "bytes": sum(path.stat().st_size for path in self._folder.iterdir() if path.is_file()),
            "updated": changed.isoformat(), "statuses": index.status_counts(), "folders": overview.folders,
            "model": model,
        }  # fmt: skip

    def _about_model(self) -> dict[str, Any]:
        from evilm.inference.loading import BUNDLED, TINY

        model = self.library.model
        heads, folder = model.metadata.heads, model.runtime.folder
        name = model.form if folder is None else folder.name
        embeds = {"embed_video", "embed_text"} <= {*heads}
        return {
            "name": name, "about": BUNDLED.get(name, ""), "embeds": embeds, "asks": "answer" in heads,
            "chooses": "match" in heads or embeds,
            "example": "a red square moves to the left" if name == TINY else "a dog runs on the beach",
        }  # fmt: skip

    def _video(self, number: int) -> Video:
        return self.videos[number].video

    def _segment(self, number: int) -> Segment:
        segment = self.library.need().segment(number)
        if segment is None:
            raise MissingError("segment")
        return segment

    # Searching

    async def search(self, body: schemas.SearchBody) -> bytes:
        """Answer a search by a ``SearchOut`` in JSON; without a query, list all segments.

        The thread of ``searches`` writes the JSON of a whole batch. So a search needs no thread of its own: many
        threads would compete for the interpreter.

        Raises:
            BusyError, TimeoutError: too many searches wait.
            EvilmError: the query cannot be searched for.
        """
        if not ((body.text or "").strip() or body.segment or body.upload):
            return await run_in_threadpool(self._list, body)
        future: Future[bytes] = self.searches.submit((body, time.perf_counter()))
        return await asyncio.wait_for(asyncio.wrap_future(future), SECONDS)

    def _answer(self, batch: Sequence[tuple[schemas.SearchBody, float]]) -> list[bytes]:
        """The answers to searches that came at some times of ``perf_counter``."""
        root = self.videos.overview().root
        requests = [self._request(body, root) for body, _ in batch]
        found = self.library.search(requests)
        shown = self.videos.get({hit.video_id for hits in found for hit in hits})
        pages = [_page(hits, body, shown) for hits, (body, _) in zip(found, batch, strict=True)]
        good = [[hit for hit in page.hits if hit.score >= GOOD] for page in pages]
        words = self.library.matching_words([*zip(requests, good, strict=True)])
        answers: list[bytes] = []
        for (_, began), request, page, fits, some in zip(batch, requests, pages, good, words, strict=True):
            matched = dict(zip(fits, some, strict=True))
            rows = [
                _row(hit.segment_id, shown[hit.video_id], hit.start, hit.end)
                | {
                    "score": round(hit.score, 4),
                    "good": hit.score >= GOOD,
                    "words": matched.get(hit, []),
                    "why": hit.words,
                }
                for hit in page.hits
            ]
            counts = {"total": page.total, "good": page.good, "no_good_match": page.no_good_match}
            query = {"plus": request.plus, "minus": request.minus}
            answers.append(_json(rows, page.next, began, query, counts))
        return answers

    def _request(self, body: schemas.SearchBody, root: Path) -> Request:
        plus, minus = parse_text(body.text or "")
        segment = int(body.segment) if body.segment else None
        by_score = body.sort == "score"
        count, offset = (body.limit, int(body.cursor or 0)) if by_score else (SORTED, 0)
        where = filter_of(body.filters, root)
        return Request(plus, minus, segment, self.uploads.get(body.upload), where, count, offset)

    def _list(self, body: schemas.SearchBody) -> bytes:
        """All segments that meet the filters, by date (newest first) or by name."""
        began, root = time.perf_counter(), self.videos.overview().root
        listing = self.videos.listing(filter_of(body.filters, root), "name" if body.sort == "name" else "date")
        offset, total = int(body.cursor or 0), int(listing.ends[-1]) if len(listing.ends) else 0
        first = int(np.searchsorted(listing.ends, offset, "right"))
        skip = offset - int(listing.ends[first - 1]) if first else offset
        rows: list[dict[str, Any]] = []
        for number in listing.ids[first:].tolist():
            if len(rows) >= body.limit:
                break
            segments = self.library.need().segments_of(number)[skip : skip + body.limit - len(rows)]
            skip = 0
            if segments and (known := self.videos.get([number]).get(number)) is not None:
                rows += [_row(segment.id, known, segment.start, segment.end) for segment in segments]
        following = offset + len(rows)
        return _json(
            rows, str(following) if rows and following < total else None, began, {"plus": (), "minus": ()},
            {"total": total, "good": 0, "no_good_match": False},
        )  # fmt: skip

    # Segments and videos

    def segment(self, number: int) -> schemas.SegmentOut:
        """One segment."""
        segment = self._segment(number)
        row = _row(segment.id, self.videos[segment.video_id], segment.start, segment.end)
        return schemas.SegmentOut.model_validate(row)

    def stills(self, number: int) -> tuple[Path, list[float]]:
        """The file of a segment and eight times in it."""
        segment = self._segment(number)
        length = segment.end - segment.start
        return self.path(segment.video_id), [segment.start + length * (n + 0.5) / 8 for n in range(8)]

    def video(self, number: int, media: Media) -> schemas.VideoOut:
        """A video, how it can be played, and its segments."""
        index, video = self.library.need(), self._video(number)
        spans = [
            schemas.SpanOut(segment=str(each.id), start=each.start, end=each.end) for each in index.segments_of(number)
        ]
        try:
            facts = media.facts(self.path(number))
            play, shape = playable(facts, video.path), (facts.width, facts.height, facts.codec, facts.container)
        except (VideoError, OSError):
            play, shape = "none", (0, 0, "unknown", "unknown")
        return schemas.VideoOut(
            video=str(video.id), name=printable(video.path.name),
            folder=relative(video.path.parent, self.videos.overview().root), date=video.modified.isoformat(),
            duration=video.duration, width=shape[0], height=shape[1], codec=shape[2], container=shape[3],
            bytes=video.size, play=play, segments=spans,
        )  # fmt: skip

    def path(self, number: int) -> Path:
        """The file of a video: still a regular file, and below the indexed folder or unchanged since it was indexed.

        Raises:
            VideoError: it is not; so a link that was put in its place later opens no other file.
        """
        video = self._video(number)
        with contextlib.suppress(OSError):
            real, status = video.path.resolve(strict=True), video.path.stat()
            same = (status.st_size, int(status.st_mtime)) == (video.size, int(video.modified.timestamp()))
            if real.is_file() and (same or real.is_relative_to(self.videos.overview().root.resolve())):
                return video.path
        raise VideoError(video.path, "not_a_file", "it is no longer there; scan the folder again")

    def scores(self, number: int, text: str | None, segment: int | None, upload: str | None) -> list[schemas.SpanOut]:
        """The score of each segment of a video for a query."""
        self._video(number)
        plus, minus = parse_text(text or "")
        vector = self.library.vector(Request(plus, minus, segment, self.uploads.get(upload)))
        return [
            schemas.SpanOut(segment=str(hit.segment_id), start=hit.start, end=hit.end, score=round(hit.score, 4))
            for hit in self.library.need().scores_of(number, vector)
        ]

    def ask(self, number: int, body: schemas.AskBody) -> dict[str, Any]:
        """Answer a question about a video."""
        video = self._video(number)
        start, end = _bounds(body.start or 0.0, body.end if body.end is not None else video.duration, video.path)
        return self.library.ask(self.path(number), start, end, body.question, body.choices)

    def unreadable(self, cursor: int) -> dict[str, Any]:
        """A page of files that could not be read."""
        index = self.library.index
        videos = [] if index is None else index.unreadable()
        rows = [
            {"name": printable(each.path.name), "folder": relative(each.path.parent, self.videos.overview().root),
             "status": each.status, "reason": each.reason}
            for each in videos[cursor : cursor + PAGE]
        ]  # fmt: skip
        return {"files": rows, "next": cursor + PAGE if cursor + PAGE < len(videos) else None, "total": len(videos)}

    def parts(self, segments: Sequence[schemas.SegmentPart], *, copied: bool) -> list[Part]:
        """Segments as parts of files, with the bounds that were asked for.

        Args:
            segments: as the request has them.
            copied: whether pictures will be copied; they are checked as ``path`` does.
        """
        parts: list[Part] = []
        for each in segments:
            row = self.segment(int(each.segment))
            path = self._video(int(row.video)).path
            path = self.path(int(row.video)) if copied and is_picture(path) else path
            start, end = _bounds(
                row.start if each.start is None else each.start, row.end if each.end is None else each.end, path
            )
            parts.append(Part(path, start, end, {"name": row.name, "folder": row.folder, "date": row.date}))
        return parts


def _bounds(start: float, end: float, path: Path) -> tuple[float, float]:
    if is_picture(path):
        return 0.0, 0.0
    if 0 <= start < end:
        return start, end
    raise QueryError(f"the part from {start:g} s to {end:g} s is empty")


@dataclass(frozen=True)
class _Page:
    """The hits that an answer shows, the cursor of the next page, and the counts of the whole search."""

    hits: Sequence[Hit]
    next: str | None
    total: int
    good: int
    no_good_match: bool


def _page(hits: Hits, body: schemas.SearchBody, shown: dict[int, Shown]) -> _Page:
    """The page of the hits that a request asks for, without hits whose video was removed meanwhile."""
    ordered, offset = [hit for hit in hits if hit.video_id in shown], int(body.cursor or 0)
    following, total = offset + len(hits), hits.total
    if body.sort != "score":
        ordered = [hit for hit in ordered if hit.score >= GOOD] or ordered[: body.limit]
        ordered.sort(key=lambda hit: order(shown[hit.video_id].video, body.sort))
        following, total = min(offset + body.limit, len(ordered)), len(ordered)
        ordered = ordered[offset:following]
    more = bool(ordered) and following < total
    return _Page(ordered, str(following) if more else None, hits.total, hits.good, hits.no_good_match)


def _json(
    rows: list[dict[str, Any]], cursor: str | None, began: float, query: dict[str, tuple[str, ...]],
    counts: dict[str, Any],
) -> bytes:  # fmt: skip
    """A ``SearchOut`` in JSON."""
    seconds = time.perf_counter() - began
    return to_json({"hits": rows, "next": cursor, **counts, "seconds": seconds, "query": query}, inf_nan_mode="null")


def _row(number: int, shown: Shown, start: float, end: float) -> dict[str, Any]:
    """The fields of a ``SegmentOut``."""
    return {
        "segment": str(number), "start": start, "end": end, "seconds": end - start, "score": 0.0, "good": False,
        "words": [], "why": [], **shown.fields,
    }  # fmt: skip
