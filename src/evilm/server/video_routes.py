"""Routes of videos: stills, files, playable versions, scores, questions."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

import anyio.to_thread
from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse, JSONResponse, Response

from evilm.server import media, schemas
from evilm.server.search_routes import Number  # noqa: TC001, FastAPI reads it
from evilm.server.services import Here  # noqa: TC001

if TYPE_CHECKING:
    from pathlib import Path

router = APIRouter(prefix="/api")
HEIGHTS = (90, 180, 360, 720)
MAX_RANGES = 8
_RANGE = r" *(?:\d{1,40}-\d{0,40}|-\d{1,40}) *"
_RANGES = re.compile(f"bytes={_RANGE}(?:,{_RANGE})*", re.ASCII | re.IGNORECASE)


@router.get("/thumbnails/{segment}", response_class=Response)
async def thumbnail(
    segment: Number, here: Here, n: Annotated[int | None, Query(ge=0, le=7)] = None, height: int = 180
) -> Response:
    """A still of a segment: the middle, or one of eight."""

    def read() -> bytes:
        path, times = here.catalog.stills(segment)
        return here.media.stills(path, times[4:5] if n is None else times, _height(height))[n or 0]

    picture = await anyio.to_thread.run_sync(read, limiter=here.decoding)
    headers = {"Cache-Control": "private, max-age=86400, immutable"}
    return Response(picture, media_type="image/jpeg", headers=headers)


@router.get("/videos/{video}")
def video(video: Number, here: Here) -> schemas.VideoOut:
    """A video and its segments."""
    return here.catalog.video(video, here.media)


@router.get("/videos/{video}/scores")
def scores(
    video: Number, here: Here, text: Annotated[str | None, Query(max_length=1000)] = None,
    segment: Annotated[int | None, Query(ge=0, le=10**18)] = None,
    upload: Annotated[str | None, Query(max_length=40)] = None,
) -> dict[str, list[schemas.SpanOut]]:  # fmt: skip
    """The score of a query for each segment of a video."""
    return {"segments": here.catalog.scores(video, text, segment, upload)}


@router.get("/videos/{video}/still", response_class=Response)
async def still(video: Number, here: Here, time: Annotated[float, Query(ge=0, le=1e7)], height: int = 90) -> Response:
    """The frame of a video at a time."""

    def read() -> bytes:
        return here.media.stills(here.catalog.path(video), [time], _height(height))[0]

    return Response(await anyio.to_thread.run_sync(read, limiter=here.decoding), media_type="image/jpeg")


@router.head("/videos/{video}/file", include_in_schema=False)
@router.get("/videos/{video}/file", response_class=FileResponse)
def file(video: Number, request: Request, here: Here) -> FileResponse:
    """The file of a video; answers Range requests."""
    path = here.catalog.path(video)
    return _ranged(request, path, media.TYPES.get(path.suffix.lower(), "application/octet-stream"))


@router.get("/videos/{video}/proxy", response_model=None)
def proxy(video: Number, request: Request, here: Here, state: Annotated[int, Query(ge=0, le=1)] = 0) -> Response:
    """A version of a video that browsers play; 202 while it is made. With ``state=1`` only how far it is."""
    job = here.media.proxy(here.catalog.path(video))
    path = here.media.file(job.job)
    if state or path is None:
        return JSONResponse(media.as_json(job), 200 if state or job.state in ("done", "failed") else 202)
    return _ranged(request, path, "video/mp4")


@router.post("/videos/{video}/ask")
def ask(video: Number, body: schemas.AskBody, here: Here) -> dict[str, Any]:
    """Answer a question about a video or a part of it."""
    return here.catalog.ask(video, body)


def _height(height: int) -> int:
    """The nearest height that stills are made in, so that few sizes are kept."""
    return min(HEIGHTS, key=lambda each: abs(each - height))


def _ranged(request: Request, path: Path, kind: str) -> FileResponse:
    """The file, or the ranges of it that the request asks for.

    A range in another unit, an invalid one, or more than a few of them are ignored (RFC 9110, sections 14.2 and 17.15);
    so are ranges behind the end of the file beside others within it.
    """
    headers = [pair for pair in request.scope["headers"] if pair[0].lower() != b"range"]
    if (ranges := _usable_ranges(request.headers.get("range", ""), path.stat().st_size)) and request.method == "GET":
        headers.append((b"range", f"bytes={ranges}".encode()))
    request.scope["headers"] = headers
    return FileResponse(path, media_type=kind)


def _usable_ranges(value: str, size: int) -> str:
    """The ranges of a header that lie in the file, or all of them if none does; empty if the header is ignored."""
    parts = value.partition("=")[2].replace(" ", "").split(",")
    if _RANGES.fullmatch(value) is None or len(parts) > MAX_RANGES:
        return ""
    within: list[str] = []
    for first, last in (part.split("-") for part in parts):
        if first and last and int(first) > int(last):
            return ""
        if int(first or 0) < size and (first or int(last)):
            within.append(f"{first}-{last}")
    return ",".join(within or parts)
