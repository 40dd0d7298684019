"""Routes that search: segments, uploads, exports, saved searches."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query, Request
from fastapi import Path as InPath
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from evilm.server import exports, media, schemas
from evilm.server import saved as store
from evilm.server.services import Here  # noqa: TC001, FastAPI reads it

router = APIRouter(prefix="/api")
Number = Annotated[int, InPath(ge=0, le=10**18)]
Name = Annotated[str, InPath(max_length=40, pattern=r"^[A-Za-z0-9-]+$")]
_BYTES = {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}


@router.post("/search", response_model=schemas.SearchOut)
async def search(body: schemas.SearchBody, here: Here) -> Response:
    """Find segments by text, a segment, an uploaded picture or clip, or all of them together."""
    return Response(await here.catalog.search(body), media_type="application/json")


@router.get("/segments/{segment}")
def segment(segment: Number, here: Here) -> schemas.SegmentOut:
    """One segment."""
    return here.catalog.segment(segment)


@router.post("/uploads", openapi_extra={"requestBody": _BYTES})
async def upload(request: Request, here: Here) -> dict[str, str]:
    """Keep a picture or clip to search by; the body is the file."""
    if not here.catalog.uploads.places.acquire(blocking=False):
        raise HTTPException(503, "Too many uploads are in work; try again in a few seconds.", {"Retry-After": "2"})
    path = None
    try:
        with tempfile.NamedTemporaryFile(dir=here.media.folder, delete=False) as file:
            path, size = Path(file.name), 0
            async for chunk in request.stream():
                size += len(chunk)
                if size > here.config.max_upload:
                    raise HTTPException(413, f"An upload may have {here.config.max_upload:,} bytes at most.")
                file.write(chunk)
        name = request.headers.get("x-filename", "upload")
        return await run_in_threadpool(here.catalog.uploads.add, path, name)
    finally:
        here.catalog.uploads.places.release()
        if path is not None:
            path.unlink(missing_ok=True)


@router.post("/exports", response_model=None)
def export(body: schemas.ExportBody, here: Here) -> Response:
    """Export segments: a list at once, or a job that cuts clips."""
    parts = here.catalog.parts(body.segments, copied=body.format == "clips")
    if body.format == "clips":
        return JSONResponse(media.as_json(here.media.clips(parts, exact=body.exact)), 202)
    write, kind = exports.WRITERS[body.format]
    headers = {"Content-Disposition": f'attachment; filename="segments.{body.format}"'}
    return Response(write(parts), media_type=kind, headers=headers)


@router.get("/jobs/{job}")
def job(job: Name, here: Here) -> schemas.JobOut:
    """The state of a job."""
    known = here.media.job(job)
    if known is None:
        raise HTTPException(404, "There is no such job; it may have been removed.")
    return schemas.JobOut(**media.as_json(known))


@router.get("/jobs/{job}/file", response_class=FileResponse)
def job_file(job: Name, here: Here) -> FileResponse:
    """The file that a job made."""
    path = here.media.file(job)
    if path is None:
        raise HTTPException(404, "There is no such file; it may have been removed.")
    return FileResponse(path, filename=f"segments{path.suffix}")


@router.get("/unreadable")
def unreadable(here: Here, cursor: Annotated[int, Query(ge=0, le=10**9)] = 0) -> dict[str, Any]:
    """Files that gave no segments, or not all, and why."""
    return here.catalog.unreadable(cursor)


@router.get("/saved")
def saved(here: Here) -> dict[str, Any]:
    """Saved searches."""
    return {"saved": store.load(here.config.index)}


@router.put("/saved")
def save(body: schemas.SavedBody, here: Here) -> dict[str, Any]:
    """Replace the saved searches."""
    store.store(here.config.index, body.saved)
    return {"saved": store.load(here.config.index)}
