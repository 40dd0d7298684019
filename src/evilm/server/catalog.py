"""The index as the interface shows it: searches, segments and videos as the models of ``schemas``."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evilm.errors import EvilmError, QueryError, VideoError
from evilm.server import schemas
from evilm.server.library import Library, Request, filter_of, parse_text
from evilm.server.media import Part, playable
from evilm.server.uploads import Uploads

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evilm.search.database import Segment
    from evilm.search.query import Filter, Hit, Video
    from evilm.server.media import Media

GOOD, PAGE = 0.5, 100  # score of a good hit; rows of lists
SORTED = 2000  # best hits that are sorted by date or name
LISTINGS, MAX_FOLDERS = 8, 2000  # sorted lists of videos that are kept; folders that are offered as filters


class MissingError(EvilmError):
    """A segment or video that the index does not have."""

    def __init__(self, what: str) -> None:
        super().__init__(f"there is no such {what} in the index; it may have been removed")


@dataclass(frozen=True)
class _Overview:
    """What is computed from all files of one generation: the folder that holds them all, their folders and hours."""

    generation: int
    root: Path
    folders: list[str]
    hours: float
    at: float
    cost: float


class Catalog:
    """What the routes ask of the index.

    Args:
        folder: of the index.
        model: of the index; None takes the one that made it.
    """

    def __init__(self, folder: Path, model: str | None) -> None:
        self.library = Library(folder, model)
        self.uploads = Uploads(self.library)
        self._folder = folder
        self._lock = threading.Lock()
        self._overview: _Overview | None = None
        self._generation = -1  # of the two below
        self._videos: dict[int, Video] = {}
        self._listings: OrderedDict[tuple[Filter, str], list[Video]] = OrderedDict()

    def close(self) -> None:
        self.library.close()

    def warm_up(self) -> None:
        """Load the model and the vectors, so that the first search is as fast as the others."""
        with contextlib.suppress(EvilmError):
            self.library.search(Request(plus=("a video",), count=1))
            self._current_overview()

    # Content

    def generation(self) -> int:
        """A number that changes with each commit of the index; 0 without one."""
        index = self.library.index
        return 0 if index is None else index.generation

    def summary(self) -> dict[str, Any]:
        """Counts, model and folders."""
        index = self.library.index
        if index is None:
            empty = {"ready": False, "name": "", "files": 0, "segments": 0, "hours": 0.0, "bytes": 0, "updated": None}
            return empty | {"statuses": {}, "folders": [], "model": None}
        overview = self._current_overview()
        try:
            model = self._about_model()
        except EvilmError:
            model = {"name": "not available", "about": "it cannot be loaded; see `evilm serve --model`",
                     "embeds": False, "asks": False, "chooses": False, "example": ""}  # fmt: skip
        changed = dt.datetime.fromtimestamp((self._folder / "index.db").stat().st_mtime, dt.UTC)
        return {
            "ready": len(index) > 0, "name": _printable(overview.root.name), "files": index.num_videos,
            "segments": len(index), "hours": overview.hours,
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

    def _current_overview(self) -> _Overview:
        """The overview of this generation, or an older one while computing it anew would take too much time."""
        index, before, began = self.library.need(), self._overview, time.monotonic()
        generation = index.generation
        if before is not None and (before.generation == generation or began - before.at < 20 * before.cost):
            return before
        videos = index.videos()
        parents = {video.path.parent for video in videos}
        root = index.scanned_folder
        if parents and (root is None or not all(parent.is_relative_to(root) for parent in parents)):
            root = Path(os.path.commonpath([*parents, *([root] if root else [])]))
        root = root or Path()
        folders = sorted(_relative(parent, root) for parent in parents)[:MAX_FOLDERS]
        hours = sum(video.duration for video in videos if video.num_segments) / 3600
        now = time.monotonic()
        self._overview = _Overview(generation, root, folders, hours, now, now - began)
        return self._overview

    def _refresh(self) -> None:
        """Forget what was read of an older generation; the caller holds the lock."""
        generation = self.library.need().generation
        if generation != self._generation:
            self._generation = generation
            self._videos.clear()
            self._listings.clear()

    def _video(self, number: int) -> Video:
        return self._videos_of([number])[number]

    def _videos_of(self, numbers: Sequence[int]) -> dict[int, Video]:
        """Videos by their ids, read once for each generation of the index."""
        with self._lock:
            self._refresh()
            for number in numbers:
                if number not in self._videos:
                    video = self.library.need().video(number)
                    if video is None:
                        raise MissingError("video")
                    self._videos[number] = video
            return {number: self._videos[number] for number in numbers}

    def _segment(self, number: int) -> Segment:
        segment = self.library.need().segment(number)
        if segment is None:
            raise MissingError("segment")
        return segment

    # Searching

    def search(self, body: schemas.SearchBody) -> schemas.SearchOut:
        """Answer a search; without a query, list all segments."""
        began, root = time.perf_counter(), self._current_overview().root
        where, offset = filter_of(body.filters, root), int(body.cursor or 0)
        plus, minus = parse_text(body.text or "")
        if not (plus or minus or body.segment or body.upload):
            return self._list(body, where, offset, root, began)
        segment = int(body.segment) if body.segment else None
        count = SORTED if body.sort != "score" else offset + body.limit
        request = Request(plus, minus, segment, self.uploads.get(body.upload), where, count)
        hits = self.library.search(request)
        ordered = list(hits)
        if body.sort != "score":
            ordered = [hit for hit in ordered if hit.score >= GOOD] or ordered[: body.limit]
            all_videos = self._videos_of([hit.video_id for hit in ordered])
            ordered.sort(key=lambda hit: _order(all_videos[hit.video_id], body.sort))
        page = ordered[offset : offset + body.limit]
        more = bool(page) and offset + len(page) < (hits.total if body.sort == "score" else len(ordered))
        videos = self._videos_of([hit.video_id for hit in page])
        good = [hit for hit in page if hit.score >= GOOD]
        words = dict(zip(good, self.library.matching_words(request, good), strict=True))
        return schemas.SearchOut(
            hits=[_of_hit(hit, videos[hit.video_id], root, words.get(hit, [])) for hit in page],
            next=str(offset + len(page)) if more else None, total=hits.total, good=hits.good,
            no_good_match=hits.no_good_match, seconds=time.perf_counter() - began,
            query={"plus": list(plus), "minus": list(minus)},
        )  # fmt: skip

    def _list(
        self, body: schemas.SearchBody, where: Filter, offset: int, root: Path, began: float
    ) -> schemas.SearchOut:
        """All segments that meet the filters, by date (newest first) or by name."""
        index, sort = self.library.need(), "name" if body.sort == "name" else "date"
        with self._lock:
            self._refresh()
            generation, videos = self._generation, self._listings.get((where, sort))
        if videos is None:
            videos = [video for video in index.videos(where) if video.num_segments]
            videos.sort(key=lambda video: _order(video, sort))
            with self._lock:
                if generation == self._generation:  # else it may be older than the lists beside it
                    self._listings[where, sort] = videos
                while len(self._listings) > LISTINGS:
                    self._listings.popitem(last=False)
        total = sum(video.num_segments for video in videos)
        page: list[schemas.SegmentOut] = []
        skip = offset
        for video in videos:
            if skip >= video.num_segments:
                skip -= video.num_segments
                continue
            segments = index.segments_of(video.id)[skip : skip + body.limit - len(page)]
            page += [_row(segment.id, video, segment.start, segment.end, root) for segment in segments]
            skip = 0
            if len(page) >= body.limit:
                break
        following = offset + len(page)
        return schemas.SearchOut(
            hits=page, next=str(following) if page and following < total else None, total=total, good=0,
            no_good_match=False, seconds=time.perf_counter() - began, query={"plus": [], "minus": []},
        )  # fmt: skip

    # Segments and videos

    def segment(self, number: int) -> schemas.SegmentOut:
        """One segment."""
        segment, root = self._segment(number), self._current_overview().root
        return _row(segment.id, self._video(segment.video_id), segment.start, segment.end, root)

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
            video=str(video.id), name=_printable(video.path.name),
            folder=_relative(video.path.parent, self._current_overview().root), date=video.modified.isoformat(),
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
            if real.is_file() and (same or real.is_relative_to(self._current_overview().root.resolve())):
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
        start, end = _bounds(body.start or 0.0, body.end if body.end is not None else video.duration)
        return self.library.ask(self.path(number), start, end, body.question, body.choices)

    def unreadable(self, cursor: int) -> dict[str, Any]:
        """A page of files that could not be read."""
        index = self.library.index
        videos = [] if index is None else index.unreadable()
        rows = [
            {"name": _printable(each.path.name), "folder": _relative(each.path.parent, self._current_overview().root),
             "status": each.status, "reason": each.reason}
            for each in videos[cursor : cursor + PAGE]
        ]  # fmt: skip
        return {"files": rows, "next": cursor + PAGE if cursor + PAGE < len(videos) else None, "total": len(videos)}

    def parts(self, segments: Sequence[schemas.SegmentPart]) -> list[Part]:
        """Segments as parts of files, with the bounds that were asked for."""
        parts: list[Part] = []
        for each in segments:
            row = self.segment(int(each.segment))
            start, end = _bounds(
                row.start if each.start is None else each.start, row.end if each.end is None else each.end
            )
            path = self._video(int(row.video)).path
            parts.append(Part(path, start, end, {"name": row.name, "folder": row.folder, "date": row.date}))
        return parts


def _bounds(start: float, end: float) -> tuple[float, float]:
    if 0 <= start < end:
        return start, end
    raise QueryError(f"the part from {start:g} s to {end:g} s is empty")


def _order(video: Video, sort: str) -> tuple[Any, ...]:
    return (video.path.name.lower(), video.id) if sort == "name" else (-video.modified.timestamp(), video.id)


def _of_hit(hit: Hit, video: Video, root: Path, words: list[str]) -> schemas.SegmentOut:
    row = _row(hit.segment_id, video, hit.start, hit.end, root)
    row.score, row.good, row.words = round(hit.score, 4), hit.score >= GOOD, words
    return row


def _row(number: int, video: Video, start: float, end: float, root: Path) -> schemas.SegmentOut:
    return schemas.SegmentOut.model_construct(
        segment=str(number), video=str(video.id), start=start, end=end, seconds=end - start, words=[],
        name=_printable(video.path.name), folder=_relative(video.path.parent, root), date=video.modified.isoformat(),
        duration=video.duration)  # fmt: skip


def _printable(name: str) -> str:
    """A file name that JSON can carry: bytes that are not UTF-8 become replacement characters."""
    return os.fsencode(name).decode(errors="replace")


def _relative(folder: Path, root: Path) -> str:
    text = folder.relative_to(root).as_posix() if folder.is_relative_to(root) else folder.name
    return "" if text == "." else _printable(text)
