"""Routes of the index, scans, training runs, events and the server itself."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, HTTPException, Query
from fastapi.responses import Response, StreamingResponse

from evilm import __version__
from evilm.errors import QueryError
from evilm.server import scans, schemas
from evilm.server.search_routes import Name  # noqa: TC001, FastAPI reads it
from evilm.server.services import Here  # noqa: TC001

if TYPE_CHECKING:
    from pathlib import Path

router = APIRouter()
MAX_EVENTS = 64  # open event streams


@router.get("/api/health")
def health(here: Here) -> dict[str, Any]:
    """Whether the server works."""
    return {"status": "ok", "version": __version__, "uptime_seconds": round(time.monotonic() - here.began, 1)}


@router.get("/metrics", response_class=Response)
def metrics(here: Here) -> Response:
    """Counters for Prometheus."""
    access, searches = here.config.access, here.catalog.searches
    values = {
        "evilm_requests_total": access.requests, "evilm_refused_total": access.refused,
        "evilm_errors_total": access.errors, "evilm_searches_total": searches.items,
        "evilm_search_batches_total": searches.batches, "evilm_requests_in_work": access.in_work,
        "evilm_uptime_seconds": time.monotonic() - here.began,
    }  # fmt: skip
    lines = [
        f"# TYPE {name} {'counter' if name.endswith('total') else 'gauge'}\n{name} {value:g}"
        for name, value in values.items()
    ]
    return Response("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4")


@router.get("/api/index")
def index(here: Here) -> dict[str, Any]:
    """What the index holds, its model, and the scan."""
    return here.summary()


@router.get("/api/folders")
def folders(here: Here, parent: Annotated[str | None, Query(max_length=40)] = None) -> dict[str, Any]:
    """Folders below the allowed roots."""
    return {"folders": here.folders.list(parent)}


@router.post("/api/scan")
def start_scan(body: schemas.ScanBody, here: Here) -> schemas.ScanOut:
    """Scan a folder into the index: a new one, the sample clips, or the folder of the index again."""
    scan = here.scans.start(_folder(body, here), here.config.model, pictures=body.pictures)
    if scan is None:
        raise HTTPException(409, "A scan is running; stop it or wait for it.")
    return schemas.ScanOut.model_validate(scans.as_json(scan))


def _folder(body: schemas.ScanBody, here: Here) -> Path:
    if body.samples:
        if here.config.samples is None:
            raise QueryError("no sample clips are installed")
        return here.config.samples
    if body.folder is not None:
        return here.folders.find(body.folder)
    folder = here.catalog.library.need().scanned_folder
    if folder is None:
        raise QueryError("this index does not state its folder: choose the folder")
    return folder


@router.delete("/api/scan")
def stop_scan(here: Here) -> dict[str, Any]:
    """Stop the scan; what it committed is kept."""
    here.scans.stop()
    return {"scan": scans.as_json(here.scans.current)}


@router.get("/api/events", response_class=StreamingResponse)
async def event_stream(here: Here) -> StreamingResponse:
    """Server-sent events: scan, index, job, run."""
    if len(here.events.queues) >= MAX_EVENTS:
        raise HTTPException(503, "Too many pages are open.", {"Retry-After": "10"})
    headers = {"Cache-Control": "no-store"}
    return StreamingResponse(here.events.stream(), media_type="text/event-stream", headers=headers)


@router.get("/api/runs")
def list_runs(here: Here) -> dict[str, Any]:
    """Training runs."""
    return {"runs": here.runs.list()}


@router.get("/api/runs/{run}")
def one_run(run: Name, here: Here) -> dict[str, Any]:
    """Curves, evaluation and samples of a run."""
    values = here.runs.get(run)
    if values is None:
        raise HTTPException(404, "There is no such run.")
    return values
