"""The index as the interface shows it: results as JSON, folders and uploads by opaque ids, saved searches."""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import json
import os
import secrets
import tempfile
import threading
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from evilm import files
from evilm.errors import EvilmError, QueryError, VideoError
from evilm.search.query import Filter
from evilm.server import schemas
from evilm.server.library import Library, Request, day_of, parse_text, timed
from evilm.server.media import Media, Part, playable

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from evilm.search.query import Hit, Video

GOOD = 0.5
PAGE = 100  # rows of lists
SORTED = 2000  # best hits that are sorted by date or name
UPLOADS = 200  # that can still be searched by
SAVED = "saved-searches.json"


class Catalog:
    """What the routes ask of the index.

    Args:
        folder: of the index.
        model: of the index; None takes the one that made it.
        roots: folders whose subfolders may be scanned.
        samples: folder of sample clips, if any.
    """

    def __init__(self, folder: Path, model: str | None, roots: tuple[Path, ...], samples: Path | None) -> None:
        self.library = Library(folder, model)
        self.samples = samples
        self._folder = folder
        self._roots = {_folder_id(root): root.resolve() for root in roots}
        self._known: OrderedDict[str, Path] = OrderedDict()
        self._uploads: OrderedDict[str, NDArray[np.float32]] = OrderedDict()
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close the index."""
        self.library.close()

    def warm_up(self) -> None:
        """Load the model and the vectors, so that the first search is as fast as the others."""
        with contextlib.suppress(EvilmError):
            self.library.search(Request(plus=("a video",), count=1))

    # Content

    def version(self) -> int:
        """A number that changes with each commit of the index."""
        try:
            return sum(
                (self._folder / name).stat().st_mtime_ns
                for name in ("index.db", "index.db-wal")
                if (self._folder / name).exists()
            )
        except OSError:
            return 0

    def summary(self) -> dict[str, Any]:
        """Counts, model and folders."""
        index = self.library.index
        if index is None:
            empty = {"ready": False, "name": "", "files": 0, "segments": 0, "hours": 0.0, "bytes": 0, "updated": None}
            return empty | {"statuses": {}, "folders": [], "model": None}
        videos = index.videos()
        root = self._root(videos)
        folders = sorted({_relative(video.path.parent, root) for video in videos})
        size = sum(path.stat().st_size for path in self._folder.iterdir() if path.is_file())
        try:
            model: dict[str, Any] | None = self._about_model()
        except EvilmError as error:
            model = {"name": "not available", "about": " ".join(str(error).split()), "asks": False, "embeds": False}
        changed = dt.datetime.fromtimestamp((self._folder / "index.db").stat().st_mtime, dt.UTC)
        return {
            "ready": len(index) > 0, "name": root.name, "files": index.num_videos, "segments": len(index),
            "hours": sum(video.duration for video in videos if video.num_segments) / 3600, "bytes": size,
            "updated": changed.isoformat(), "statuses": index.status_counts(), "folders": folders[:2000], "model": model,
        }  # fmt: skip

    def _about_model(self) -> dict[str, Any]:
        from evilm.inference.loading import BUNDLED

        model = self.library.model
        name = str(self.library.model_name or getattr(model, "name", "") or "the model of this index")
        heads = model.metadata.heads
        bundled = BUNDLED.get(Path(name).name)
        about = "" if bundled is None else str(bundled)
        return {"name": Path(name).name, "about": about, "asks": "answer" in heads or "match" in heads, "embeds": True,
                "example": "a dog runs on the beach"}  # fmt: skip

    def _root(self, videos: Sequence[Video]) -> Path:
        """The folder that all videos lie in."""
        if not videos:
            return Path()
        return Path(os.path.commonpath([video.path.parent for video in videos]))

    # Searching

    def search(self, body: schemas.SearchBody) -> schemas.SearchOut:
        """Answer a search."""
        index, seconds = self.library.need(), timed()
        root = self._root(index.videos())
        offset = int(body.cursor or 0)
        where = self._filter(body.filters, root)
        plus, minus = parse_text(body.text or "")
        if not (plus or minus or body.segment or body.upload):
            return self._browse(body, where, offset, root, seconds())
        vector = self._upload(body.upload)
        count = SORTED if body.sort != "score" else offset + body.limit
        request = Request(plus, minus, int(body.segment) if body.segment else None, vector, where, count)
        hits = self.library.search(request)
        found = list(hits)
        if body.sort != "score":
            found = [hit for hit in found if hit.score >= GOOD] or found[: body.limit]
            found.sort(key=lambda hit: hit.path.name if body.sort == "name" else -_modified(hit.path))
        page = found[offset : offset + body.limit]
        total = hits.total if body.sort == "score" else len(found)
        more = offset + len(page) < total and bool(page)
        return schemas.SearchOut(
            hits=[self._segment(hit, root) for hit in page], next=str(offset + len(page)) if more else None,
            total=hits.total, good=sum(hit.score >= GOOD for hit in found), no_good_match=hits.no_good_match,
            seconds=seconds(), query={"plus": list(plus), "minus": list(minus)},
        )  # fmt: skip

    def _browse(
        self, body: schemas.SearchBody, where: Filter | None, offset: int, root: Path, took: float
    ) -> schemas.SearchOut:
        """All segments, without a query: by date, newest first, or by name."""
        index = self.library.need()
        videos = [video for video in index.videos(where) if video.num_segments]
        videos.sort(key=lambda video: video.path.name if body.sort == "name" else -video.modified.timestamp())
        total = sum(video.num_segments for video in videos)
        page: list[schemas.SegmentOut] = []
        at = 0
        for video in videos:
            if at + video.num_segments > offset:
                for segment in index.segments_of(video.id):
                    if offset <= at < offset + body.limit:
                        page.append(self._row(segment.id, video, segment.start, segment.end, root))
                    at += 1
            else:
                at += video.num_segments
            if len(page) >= body.limit:
                break
        following = offset + len(page)
        return schemas.SearchOut(
            hits=page, next=str(following) if following < total else None, total=total, good=0, no_good_match=False,
            seconds=took, query={"plus": [], "minus": []},
        )  # fmt: skip

    def _filter(self, filters: schemas.Filters, root: Path) -> Filter | None:
        name = f"*{filters.name}*" if filters.name else None
        folder = None
        if filters.folder:
            folder = root / filters.folder
            if ".." in Path(filters.folder).parts or Path(filters.folder).is_absolute():
                raise QueryError("the folder has to lie in the indexed one")
        made = Filter(
            folder, name, filters.min_seconds, filters.max_seconds, day_of(filters.after),
            None if filters.before is None else day_of(filters.before),
        )  # fmt: skip
        return made or None

    def _segment(self, hit: Hit, root: Path) -> schemas.SegmentOut:
        video = self._video(hit.video_id)
        row = self._row(hit.segment_id, video, hit.start, hit.end, root)
        return row.model_copy(
            update={
                "score": round(float(hit.score), 4),
                "good": hit.score >= GOOD,
                "words": list(getattr(hit, "words", ())),
            }
        )

    def _row(self, number: int, video: Video, start: float, end: float, root: Path) -> schemas.SegmentOut:
        return schemas.SegmentOut(
            segment=str(number), video=str(video.id), start=start, end=end, seconds=end - start, name=video.path.name,
            folder=_relative(video.path.parent, root), date=video.modified.isoformat(), duration=video.duration,
        )  # fmt: skip

    def segment(self, number: int) -> schemas.SegmentOut:
        """One segment."""
        index = self.library.need()
        segment = index.segment(number)
        if segment is None:
            raise _missing("segment")
        return self._row(
            segment.id, self._video(segment.video_id), segment.start, segment.end, self._root(index.videos())
        )

    def stills(self, number: int) -> tuple[Path, list[float]]:
        """The file of a segment and eight times in it."""
        segment = self.library.need().segment(number)
        if segment is None:
            raise _missing("segment")
        length = segment.end - segment.start
        return segment.path, [segment.start + length * (n + 0.5) / 8 for n in range(8)]

    def video(self, number: int, media: Media) -> schemas.VideoOut:
        """A video, how it can be played, and its segments."""
        index, video = self.library.need(), self._video(number)
        spans = [
            schemas.SpanOut(segment=str(each.id), start=each.start, end=each.end) for each in index.segments_of(number)
        ]
        try:
            facts = media.facts(video.path)
            play, shape = playable(facts, video.path), (facts.width, facts.height, facts.codec, facts.container)
        except (VideoError, OSError):
            play, shape = "none", (0, 0, "unknown", "unknown")
        root = self._root(index.videos())
        return schemas.VideoOut(
            video=str(video.id), name=video.path.name, folder=_relative(video.path.parent, root),
            date=video.modified.isoformat(), duration=video.duration, width=shape[0], height=shape[1], codec=shape[2],
            container=shape[3], bytes=video.size, play=play, segments=spans,
        )  # fmt: skip

    def path(self, number: int) -> Path:
        """The file of a video; it must still be a regular file."""
        path = self._video(number).path
        if not path.is_file():
            raise VideoError(path, "not_a_file", "it is no longer there; scan the folder again")
        return path

    def _video(self, number: int) -> Video:
        video = self.library.video(number)
        if video is None:
            raise _missing("video")
        return video

    def scores(self, number: int, text: str | None, segment: int | None, upload: str | None) -> list[schemas.SpanOut]:
        """The score of each segment of a video for a query."""
        plus, minus = parse_text(text or "")
        vector = self.library.vector(Request(plus, minus, segment, self._upload(upload)))
        hits = self.library.need().scores_of(number, vector)
        return [
            schemas.SpanOut(segment=str(hit.segment_id), start=hit.start, end=hit.end, score=round(float(hit.score), 4))
            for hit in hits
        ]

    def ask(self, number: int, body: schemas.AskBody) -> dict[str, Any]:
        """Answer a question about a video."""
        video = self._video(number)
        start, end = body.start or 0.0, body.end if body.end is not None else video.duration
        if not 0 <= start < end:
            raise QueryError(f"the part from {start:g} s to {end:g} s is empty")
        return self.library.ask(self.path(number), start, end, body.question, body.choices)

    def unreadable(self, cursor: int) -> dict[str, Any]:
        """A page of files that could not be read."""
        index = self.library.index
        videos = [] if index is None else index.unreadable()
        root = self._root(videos)
        page = videos[cursor : cursor + PAGE]
        rows = [
            {
                "name": each.path.name,
                "folder": _relative(each.path.parent, root),
                "status": each.status,
                "reason": each.reason,
            }
            for each in page
        ]
        return {"files": rows, "next": cursor + PAGE if cursor + PAGE < len(videos) else None, "total": len(videos)}

    def parts(self, segments: Sequence[schemas.SegmentPart]) -> list[Part]:
        """Segments as parts of files, with the bounds that were asked for."""
        index = self.library.need()
        root = self._root(index.videos())
        parts: list[Part] = []
        for each in segments:
            segment = index.segment(int(each.segment))
            if segment is None:
                raise _missing("segment")
            start = segment.start if each.start is None else each.start
            end = segment.end if each.end is None else each.end
            if not 0 <= start < end:
                raise QueryError(f"the part from {start:g} s to {end:g} s is empty")
            video = self._video(segment.video_id)
            row = {
                "name": video.path.name,
                "folder": _relative(video.path.parent, root),
                "date": video.modified.isoformat(),
            }
            parts.append(Part(segment.path, start, end, row))
        return parts

    # Uploads

    def upload(self, data: bytes, name: str, media: Media) -> dict[str, str]:
        """Embed an uploaded picture or clip, and keep its vector."""
        shown = "".join(c for c in Path(unquote(name)).name if c.isprintable())[:80] or "upload"
        suffix = Path(shown).suffix.lower()
        if suffix not in (*files.VIDEO_SUFFIXES, *files.PICTURE_SUFFIXES):
            suffix = _suffix_of(data)
        with tempfile.NamedTemporaryFile(suffix=suffix, dir=media.folder) as file:
            file.write(data)
            file.flush()
            vector = self.library.embed_file(Path(file.name))
        key = secrets.token_hex(8)
        with self._lock:
            self._uploads[key] = vector
            while len(self._uploads) > UPLOADS:
                self._uploads.popitem(last=False)
        kind = "picture" if suffix in files.PICTURE_SUFFIXES else "video"
        return {"upload": key, "kind": kind, "name": shown}

    def _upload(self, key: str | None) -> NDArray[np.float32] | None:
        if not key:
            return None
        with self._lock:
            vector = self._uploads.get(key)
        if vector is None:
            raise QueryError("this upload is no longer kept; upload it again")
        return vector

    # Folders

    def folders(self, parent: str | None) -> list[dict[str, Any]]:
        """Folders below an allowed one; without a parent the allowed ones."""
        if parent is None:
            return [{"folder": key, "name": str(root)} for key, root in self._roots.items()]
        folder = self._resolve(parent)
        rows: list[dict[str, Any]] = []
        try:
            entries = sorted(folder.iterdir(), key=lambda path: path.name.lower())
        except OSError:
            raise QueryError("this folder cannot be listed") from None
        for path in entries[:2000]:
            if path.name.startswith(".") or not path.is_dir() or not self._allowed(path):
                continue
            key = _folder_id(path)
            self._known[key] = path.resolve()
            rows.append({"folder": key, "name": path.name})
        while len(self._known) > 20_000:
            self._known.popitem(last=False)
        return rows

    def scan_folder(self, body: schemas.ScanBody) -> Path:
        """The folder that a scan is about."""
        if body.samples:
            if self.samples is None:
                raise QueryError("no sample clips are installed")
            return self.samples
        if body.folder is not None:
            return self._resolve(body.folder)
        index = self.library.need()
        videos = index.videos(limit=None)
        return Path(index.scanned_folder or self._root(videos))

    def _resolve(self, key: str) -> Path:
        path = self._roots.get(key) or self._known.get(key)
        if path is None or not self._allowed(path):
            raise QueryError("there is no such folder below the allowed ones; see `evilm serve --root`")
        return path

    def _allowed(self, path: Path) -> bool:
        real = path.resolve()
        return any(real == root or real.is_relative_to(root) for root in self._roots.values())

    # Saved searches

    def saved(self) -> list[dict[str, str]]:
        """Saved searches."""
        try:
            value: Any = json.loads((self._folder / SAVED).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return []
        return (
            [row for row in value if isinstance(row, dict) and {"name", "query"} <= row.keys()]
            if isinstance(value, list)
            else []
        )

    def save(self, rows: list[dict[str, str]]) -> None:
        """Replace the saved searches."""
        self._folder.mkdir(parents=True, exist_ok=True)
        files.write_atomic(self._folder / SAVED, json.dumps(rows, indent=2, ensure_ascii=False))


def _missing(what: str) -> EvilmError:
    return QueryError(f"there is no such {what} in the index; it may have been removed")


def _folder_id(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:24]


def _relative(folder: Path, root: Path) -> str:
    try:
        text = folder.relative_to(root).as_posix()
    except ValueError:
        text = folder.name
    return "" if text == "." else text


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _suffix_of(data: bytes) -> str:
    """The suffix of a picture or video by its first bytes."""
    for start, suffix in ((b"\xff\xd8\xff", ".jpg"), (b"\x89PNG", ".png"), (b"RIFF", ".webp"), (b"BM", ".bmp")):
        if data.startswith(start):
            return suffix
    return ".mp4"
