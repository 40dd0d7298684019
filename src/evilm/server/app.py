"""The routes of the interface and the page. Ids are opaque; no route takes a path, an address or a model."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException as StarletteHTTPException

from evilm import __version__
from evilm.errors import EvilmError, VideoError
from evilm.server import media, schemas
from evilm.server.catalog import Catalog
from evilm.server.library import BusyError
from evilm.server.media import FullError, Media
from evilm.server.runs import Runs
from evilm.server.scans import Scans, as_json
from evilm.server.security import Access, Guard

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

STATIC = Path(__file__).parent / "static"
_NUMBER = InPath(ge=0, le=10**18)
_NAME = InPath(max_length=40, pattern=r"^[A-Za-z0-9-]+$")
ERRORS: dict[int | str, dict[str, Any]] = {
    code: {"model": schemas.ErrorOut} for code in (400, 404, 409, 413, 415, 422, 503)
}
HEIGHTS = (90, 180, 360, 720)
MAX_EVENTS = 64  # open event streams


@dataclass(frozen=True)
class ServerConfig:
    """What a server serves.

    Attributes:
        index: folder of the index; it may not exist yet.
        model: of the index; None takes the one that made it, or the default model.
        roots: folders whose subfolders may be scanned.
        runs: folders with training runs.
        samples: folder of bundled sample clips, if any.
        access: who may send requests.
        max_upload: bytes of an uploaded picture or clip.
    """

    index: Path
    model: str | None = None
    roots: tuple[Path, ...] = ()
    runs: tuple[Path, ...] = ()
    samples: Path | None = None
    access: Access = field(default_factory=Access)
    max_upload: int = 64 << 20


class Events:
    """Server-sent events: every open page gets every event."""

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self.queues: set[asyncio.Queue[str]] = set()
        self.closing = asyncio.Event()

    def send(self, name: str, value: Any) -> None:
        """Send an event, from any thread."""
        text = f"event: {name}\ndata: {json.dumps(value)}\n\n"
        if self.loop is not None and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self._put, text)

    def _put(self, text: str) -> None:
        for each in self.queues:
            if each.full():
                each.get_nowait()  # a page that does not read loses the oldest event
            each.put_nowait(text)

    async def stream(self) -> AsyncIterator[str]:
        """The events of one page; a comment every 15 s keeps the connection open."""
        mine: asyncio.Queue[str] = asyncio.Queue(200)
        self.queues.add(mine)
        try:
            yield "retry: 2000\n\n"
            while not self.closing.is_set():
                try:
                    yield await asyncio.wait_for(mine.get(), 1.0)
                except TimeoutError:
                    yield ": still here\n\n"
        finally:
            self.queues.discard(mine)


def create_app(config: ServerConfig) -> FastAPI:
    """The application of a configuration."""
    events = Events()
    catalog = Catalog(config.index, config.model, config.roots, config.samples)
    files = Media(notify=lambda job: events.send("job", media.as_json(job)))
    scans = Scans(config.index, lambda scan: (events.send("scan", as_json(scan)), None)[1])
    runs = Runs(config.runs)
    began = time.monotonic()
    counts = {"requests": 0, "errors": 0}

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        events.loop = asyncio.get_running_loop()
        await run_in_threadpool(catalog.warm_up)
        watcher = asyncio.create_task(_watch(events, catalog, runs))
        yield
        events.closing.set()
        watcher.cancel()
        await run_in_threadpool(scans.stop, 10.0)
        files.close()
        catalog.close()

    app = FastAPI(
        title="E-ViLM", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan, responses=ERRORS
    )
    app.add_middleware(Guard, access=config.access)  # pyright: ignore[reportArgumentType], an ASGI class
    _handle_errors(app, counts)

    @app.get("/api/health")
    def health() -> dict[str, Any]:
        """Whether the server works."""
        return {"status": "ok", "version": __version__, "uptime_seconds": round(time.monotonic() - began, 1)}

    @app.get("/metrics", response_class=Response)
    def metrics() -> Response:
        """Counters for Prometheus."""
        values = {
            "evilm_requests_total": counts["requests"], "evilm_errors_total": counts["errors"],
            "evilm_searches_total": catalog.library.searches, "evilm_search_batches_total": catalog.library.batches,
            "evilm_requests_in_work": config.access.in_work, "evilm_uptime_seconds": time.monotonic() - began,
        }  # fmt: skip
        lines = [
            f"# TYPE {name} {'counter' if name.endswith('total') else 'gauge'}\n{name} {value:g}"
            for name, value in values.items()
        ]
        return Response("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4")

    @app.get("/api/index")
    def index() -> dict[str, Any]:
        """What the index holds, its model, and the running scan."""
        return {**catalog.summary(), "scan": as_json(scans.current), "samples": config.samples is not None}

    @app.post("/api/search")
    def search(body: schemas.SearchBody) -> schemas.SearchOut:
        """Find segments by text, a segment, an uploaded picture or clip, or all of them together."""
        return catalog.search(body)

    @app.post("/api/uploads")
    async def upload(request: Request) -> dict[str, str]:
        """Keep a picture or clip to search by; the body is the file."""
        data = bytearray()
        async for chunk in request.stream():
            data += chunk
            if len(data) > config.max_upload:
                raise HTTPException(413, f"An upload may have {config.max_upload >> 20} MB at most.")
        name = request.headers.get("x-filename", "upload")
        return await run_in_threadpool(catalog.upload, bytes(data), name, files)

    @app.get("/api/segments/{segment}")
    def segment(segment: Annotated[int, _NUMBER]) -> schemas.SegmentOut:
        """One segment."""
        return catalog.segment(segment)

    @app.get("/api/thumbnails/{segment}", response_class=Response)
    def thumbnail(
        segment: Annotated[int, _NUMBER], n: Annotated[int | None, Query(ge=0, le=7)] = None, height: int = 180
    ) -> Response:
        """A still of a segment: the middle, or one of eight."""
        path, times = catalog.stills(segment)
        chosen = times if n is not None else times[4:5]
        picture = files.stills(path, chosen, _height(height))[n or 0]
        return Response(
            picture, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=86400, immutable"}
        )

    @app.get("/api/videos/{video}")
    def video(video: Annotated[int, _NUMBER]) -> schemas.VideoOut:
        """A video and its segments."""
        return catalog.video(video, files)

    @app.get("/api/videos/{video}/scores")
    def scores(
        video: Annotated[int, _NUMBER], text: Annotated[str | None, Query(max_length=1000)] = None,
        segment: Annotated[int | None, Query(ge=0)] = None, upload: Annotated[str | None, Query(max_length=40)] = None,
    ) -> dict[str, list[schemas.SpanOut]]:  # fmt: skip
        """The score of a query for each segment of a video."""
        return {"segments": catalog.scores(video, text, segment, upload)}

    @app.get("/api/videos/{video}/still", response_class=Response)
    def still(
        video: Annotated[int, _NUMBER], time: Annotated[float, Query(ge=0, le=1e7)], height: int = 90
    ) -> Response:
        """The frame of a video at a time."""
        return Response(files.still(catalog.path(video), time, _height(height)), media_type="image/jpeg")

    @app.get("/api/videos/{video}/file", response_class=FileResponse)
    def file(video: Annotated[int, _NUMBER]) -> FileResponse:
        """The file of a video; answers Range requests."""
        path = catalog.path(video)
        return FileResponse(path, media_type=media.TYPES.get(path.suffix.lower(), "application/octet-stream"))

    @app.get("/api/videos/{video}/proxy", response_model=None)
    def proxy(video: Annotated[int, _NUMBER], state: int = 0) -> Response:
        """A version of a video that browsers play; 202 while it is made."""
        job = files.proxy(catalog.path(video))
        made = files.file(job.job)
        if state or made is None:
            return JSONResponse(media.as_json(job), 200 if state or job.state in ("done", "failed") else 202)
        return FileResponse(made, media_type="video/mp4")

    @app.post("/api/videos/{video}/ask")
    def ask(video: Annotated[int, _NUMBER], body: schemas.AskBody) -> dict[str, Any]:
        """Answer a question about a video or a part of it."""
        return catalog.ask(video, body)

    @app.post("/api/exports", response_model=None)
    def export(body: schemas.ExportBody) -> Response:
        """Export segments: a list at once, or a job that cuts clips."""
        parts = catalog.parts(body.segments)
        if body.format == "clips":
            return JSONResponse(media.as_json(files.clips(parts, exact=body.exact)), 202)
        write, kind = media.WRITERS[body.format]
        headers = {"Content-Disposition": f'attachment; filename="segments.{body.format}"'}
        return Response(write(parts), media_type=kind, headers=headers)

    @app.get("/api/jobs/{job}")
    def job(job: Annotated[str, _NAME]) -> schemas.JobOut:
        """The state of a job."""
        found = files.job(job)
        if found is None:
            raise HTTPException(404, "There is no such job; it may have been removed.")
        return schemas.JobOut(**media.as_json(found))

    @app.get("/api/jobs/{job}/file", response_class=FileResponse)
    def job_file(job: Annotated[str, _NAME]) -> FileResponse:
        """The file that a job made."""
        made = files.file(job)
        if made is None:
            raise HTTPException(404, "There is no such file; it may have been removed.")
        return FileResponse(made, filename=f"segments{made.suffix}")

    @app.get("/api/unreadable")
    def unreadable(cursor: Annotated[int, Query(ge=0, le=10**9)] = 0) -> dict[str, Any]:
        """Files that gave no segments, or not all, and why."""
        return catalog.unreadable(cursor)

    @app.get("/api/folders")
    def folders(parent: Annotated[str | None, Query(max_length=40)] = None) -> dict[str, Any]:
        """Folders below the allowed roots."""
        return {"folders": catalog.folders(parent)}

    @app.post("/api/scan")
    def start_scan(body: schemas.ScanBody) -> dict[str, Any]:
        """Scan a folder into the index."""
        started = scans.start(catalog.scan_folder(body), config.model, pictures=body.pictures)
        if started is None:
            raise HTTPException(409, "A scan is running; stop it or wait for it.")
        return as_json(started) or {}

    @app.delete("/api/scan")
    def stop_scan() -> dict[str, Any]:
        """Stop the scan; what it committed is kept."""
        scans.stop()
        return {"scan": as_json(scans.current)}

    @app.get("/api/events", response_class=StreamingResponse)
    async def event_stream() -> StreamingResponse:
        """Server-sent events: scan, index, job, run."""
        if len(events.queues) >= MAX_EVENTS:
            raise HTTPException(503, "Too many pages are open.", {"Retry-After": "10"})
        return StreamingResponse(events.stream(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    @app.get("/api/runs")
    def list_runs() -> dict[str, Any]:
        """Training runs."""
        return {"runs": runs.list()}

    @app.get("/api/runs/{run}")
    def one_run(run: Annotated[str, _NAME]) -> dict[str, Any]:
        """Curves, evaluation and samples of a run."""
        found = runs.get(run)
        if found is None:
            raise HTTPException(404, "There is no such run.")
        return found

    @app.get("/api/saved")
    def saved() -> dict[str, Any]:
        """Saved searches."""
        return {"saved": catalog.saved()}

    @app.put("/api/saved")
    def save(body: schemas.SavedBody) -> dict[str, Any]:
        """Replace the saved searches."""
        catalog.save([each.model_dump() for each in body.saved])
        return {"saved": catalog.saved()}

    app.mount("/", StaticFiles(directory=STATIC, html=True), name="page")
    return app


def _height(height: int) -> int:
    """The nearest height that stills are made in, so that few sizes are kept."""
    return min(HEIGHTS, key=lambda each: abs(each - height))


def _handle_errors(app: FastAPI, counts: dict[str, int]) -> None:
    """Answer every error with one JSON sentence: no trace, no absolute path."""

    def answer(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
        counts["errors"] += status >= 500
        return JSONResponse({"error": {"code": code, "message": message}}, status, headers)

    @app.middleware("http")
    async def count(request: Request, call_next: Any) -> Response:
        counts["requests"] += 1
        return await call_next(request)

    @app.exception_handler(StarletteHTTPException)
    def http(_: Request, error: StarletteHTTPException) -> Response:
        codes = {404: "not_found", 405: "wrong_method", 409: "conflict", 413: "too_large", 503: "busy"}
        message = str(error.detail) if error.detail != "Not Found" else "There is nothing at this address."
        return answer(error.status_code, codes.get(error.status_code, "error"), message, dict(error.headers or {}))

    @app.exception_handler(RequestValidationError)
    def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "body")
        return answer(422, "invalid", f"{place or 'The request'}: {first['msg']}.")

    @app.exception_handler(BusyError)
    @app.exception_handler(FullError)
    def busy(_: Request, __: Exception) -> Response:
        return answer(503, "busy", "The server has too much work; try again in a few seconds.", {"Retry-After": "2"})

    @app.exception_handler(VideoError)
    def video(_: Request, error: VideoError) -> Response:
        return answer(415, error.status, f"{Path(error.path).name}: {error.reason}")

    @app.exception_handler(EvilmError)
    def ours(_: Request, error: EvilmError) -> Response:
        message = " ".join(str(error).split())
        for word in message.split():
            if word.startswith("/"):  # an absolute path of this machine
                message = message.replace(word, Path(word.rstrip(":,;")).name + (":" if word.endswith(":") else ""))
        return answer(400, "refused", message)

    @app.exception_handler(Exception)
    def unexpected(_: Request, error: Exception) -> Response:
        return answer(500, "fault", f"The server failed ({type(error).__name__}); its log has the details.")


async def _watch(events: Events, catalog: Catalog, runs: Runs) -> None:
    """Send events when the index grows or a run writes."""
    version, stamps = 0, dict[str, float]()
    while True:
        await asyncio.sleep(1.0)
        if not events.queues:
            continue
        if (now := await run_in_threadpool(catalog.version)) != version:
            version = now
            events.send("index", await run_in_threadpool(catalog.summary))
        fresh = await run_in_threadpool(runs.stamps)
        for run, stamp in fresh.items():
            if stamps.get(run, stamp) != stamp:
                events.send("run", {"run": run})
        stamps = fresh
