"""What the routes work with: the configuration, the index, media, scans, runs and the event stream."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import anyio.to_thread
from anyio import CapacityLimiter
from fastapi import Depends, Request
from starlette.concurrency import run_in_threadpool

from evilm.server import media, scans
from evilm.server.catalog import Catalog
from evilm.server.folders import Folders
from evilm.server.media import Media
from evilm.server.runs import Runs
from evilm.server.scans import Scans
from evilm.server.security import Access

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

MAX_THREADS = 96  # that answer requests; searches wait in them for their batch
SECONDS_ALIVE = 15.0  # after which an idle event stream sends a comment


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
        self.queues: set[asyncio.Queue[str | None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    def send(self, name: str, value: Any) -> None:
        """Send an event, from any thread."""
        self._put(f"event: {name}\ndata: {json.dumps(value)}\n\n")

    def close(self) -> None:
        """End all streams, from any thread or signal handler, so that the server can stop."""
        self._closed = True
        self._put(None)

    def _put(self, text: str | None) -> None:
        def put() -> None:
            for each in self.queues:
                if each.full():
                    each.get_nowait()  # a page that does not read loses the oldest event
                each.put_nowait(text)

        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(put)

    def start(self) -> None:
        """Use the running event loop."""
        self._loop = asyncio.get_running_loop()

    async def stream(self) -> AsyncIterator[str]:
        """The events of one page."""
        own: asyncio.Queue[str | None] = asyncio.Queue(200)
        self.queues.add(own)
        try:
            yield "retry: 2000\n\n"
            while not self._closed:
                try:
                    text = await asyncio.wait_for(own.get(), SECONDS_ALIVE)
                except TimeoutError:
                    text = ": idle\n\n"
                if text is None:
                    return
                yield text
        finally:
            self.queues.discard(own)


class Services:
    """Everything that a server holds.

    Args:
        config: what it serves.
    """

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self.events = Events()
        self.catalog = Catalog(config.index, config.model)
        self.folders = Folders(config.roots)
        self.media = Media(notify=lambda job: self.events.send("job", media.as_json(job)))
        self.scans = Scans(config.index, lambda scan: self.events.send("scan", scans.as_json(scan)))
        self.runs = Runs(config.runs)
        self.began = time.monotonic()
        self.decoding = CapacityLimiter(4)  # threads that wait for stills, apart from those of searches
        self._watcher: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Load the index and begin to watch it."""
        self.events.start()
        anyio.to_thread.current_default_thread_limiter().total_tokens = MAX_THREADS
        await run_in_threadpool(self.catalog.warm_up)
        self._watcher = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """Stop the scan and all work; what the scan committed is kept."""
        self.events.close()
        if self._watcher is not None:
            self._watcher.cancel()
        await run_in_threadpool(self.scans.stop, 10.0)
        await run_in_threadpool(self.media.close)
        self.catalog.close()

    def summary(self) -> dict[str, Any]:
        """What the index holds, and the scan."""
        scan = scans.as_json(self.scans.current)
        return {**self.catalog.summary(), "scan": scan, "samples": self.config.samples is not None}

    async def _watch(self) -> None:
        """Send events when the index grows or a run writes."""
        generation, stamps = await run_in_threadpool(self.catalog.generation), dict[str, float]()
        while True:
            await asyncio.sleep(1.0)
            if not self.events.queues:
                continue
            now = await run_in_threadpool(self.catalog.generation)
            if now != generation:
                generation = now
                self.events.send("index", await run_in_threadpool(self.summary))
            latest = await run_in_threadpool(self.runs.stamps)
            for run, stamp in latest.items():
                if stamps.get(run, stamp) != stamp:
                    self.events.send("run", {"run": run})
            stamps = latest


def services_of(request: Request) -> Services:
    """The services of the application that handles a request."""
    return request.app.state.services


Here = Annotated[Services, Depends(services_of)]
