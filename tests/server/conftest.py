"""A server over a small index of the synthetic world and of files that browsers cannot play, and a browser."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from evilm.server.services import Services

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = ("--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync "
         "--no-first-run --disable-quic --autoplay-policy=no-user-gesture-required").split()  # fmt: skip
SCRIPT = "<script>alert(1)<"  # with the file name below it: <script>alert(1)</script>.mp4


@dataclass
class Reply:
    """An answer of the server."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Site:
    """A server that runs in this process.

    Attributes:
        port: on loopback.
        videos, index, roots, runs: its folders.
        services: what it holds.
    """

    port: int
    videos: Path
    index: Path
    services: Services

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Reply:
        """One request; ``path`` is sent as it is, and a body that is not bytes as JSON."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None and not isinstance(body, bytes):
            body, sent["Content-Type"] = json.dumps(body).encode(), "application/json"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def search(self, **body: Any) -> Any:
        reply = self.ask("POST", "/api/search", body)
        assert reply.status == 200, reply.body
        return reply.json

    def hit(self, name: str) -> Any:
        """The first segment of a file."""
        return next(hit for hit in self.search(filters={"name": name}, limit=200)["hits"] if hit["name"] == name)

    def wait_for_job(self, job: Any, seconds: float = 60.0) -> Any:
        """A job once it has ended."""
        end = time.monotonic() + seconds
        while job["state"] in ("queued", "running") and time.monotonic() < end:
            time.sleep(0.05)
            job = self.ask("GET", f"/api/jobs/{job['job']}").json
        return job

    def wait_for_scan(self, seconds: float = 90.0) -> Any:
        """The scan once it has ended."""
        end = time.monotonic() + seconds
        while True:
            scan = self.ask("GET", "/api/index").json["scan"]
            if scan["state"] not in ("running", "stopping") or time.monotonic() > end:
                return scan
            time.sleep(0.1)


@contextlib.contextmanager
def serving(index: Path, videos: Path, **options: Any) -> Iterator[Site]:
    """A server on a free port of loopback, in a thread."""
    import uvicorn

    from evilm.server.app import ServerConfig, create_app

    app = create_app(ServerConfig(index, **options))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2))
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    site = Site(listener.getsockname()[1], videos, index, app.state.services)
    end = time.monotonic() + 60
    while not server.started and time.monotonic() < end:
        time.sleep(0.02)
    try:
        yield site
    finally:
        app.state.services.events.close()
        server.should_exit = True
        thread.join(20)
        listener.close()


@pytest.fixture(scope="session")
def serve() -> Callable[..., contextlib.AbstractContextManager[Site]]:
    """``with serve(index, videos, **options) as site``."""
    return serving


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 24 clips of the world, a clip of two of them, and odd files; it is never changed."""
    from fractions import Fraction

    import av
    import numpy as np

    import films
    from evilm.data.synthetic import build

    home = tmp_path_factory.mktemp("server")
    videos = build(home / "world", 24, 3, val=2, test=2, workers=1).path / "videos"
    (videos / "trips").mkdir()
    for number in range(4):
        (videos / f"video{number}.mp4").rename(videos / "trips" / f"trip{number}.mp4")
    (videos / SCRIPT).mkdir()
    stamps = list(range(0, 300, 8))
    films.write(videos / SCRIPT / "script>.mp4", stamps, size=(96, 96))
    films.write(videos / "boat.mkv", stamps, size=(96, 128), gop=10)
    films.write(videos / "cliff.mp4", stamps, codec="libx265", size=(96, 128), **{"x265-params": "log-level=none"})
    (videos / "broken.mp4").write_bytes(b"this is no video " * 40)
    with av.open(str(videos / "long.mp4"), "w") as out:  # 24 s: three segments of a red, a green and a blue square
        stream = out.add_stream("libx264", rate=10, options={"g": "10"})
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        for number in range(240):
            picture = np.full((120, 160, 3), 90, np.uint8)
            left = 20 + number % 80
            picture[40:80, left : left + 40] = [(220, 40, 40), (40, 200, 60), (50, 60, 220)][number // 80]
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 10)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return videos


@pytest.fixture(scope="session")
def world_index(world: Path) -> Path:
    """An index of ``world`` by the bundled model; tests that change an index take a copy."""
    from evilm.search.index import VideoIndex

    with VideoIndex.build(world, "world-tiny", world.parent.parent / "index", workers=1) as index:
        assert len(index) > 25
    return world.parent.parent / "index"


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two training runs."""
    home = tmp_path_factory.mktemp("runs")
    for name, offset in (("retrieval", 0.0), ("pretrain", 0.5)):
        folder = home / name
        folder.mkdir()
        (folder / "run.json").write_text(json.dumps({"task": name, "recipe": {"run": {"seed": 0}}, "starts": []}))
        rows = [{"step": step, "loss": offset + 2 / (1 + step / 20), "lr": 1e-3} for step in range(1, 81)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "validation.jsonl").write_text(
            "".join(json.dumps({"step": s, "R@1": s / 4}) + "\n" for s in (40, 80))
        )
    return home


@pytest.fixture(scope="session")
def site(world: Path, world_index: Path, run_folder: Path) -> Iterator[Site]:
    """The server that most tests ask; none of them changes the index."""
    with serving(world_index, world, roots=(world.parent,), runs=(run_folder,), max_upload=4 << 20) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's Chromium."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: the page is not tested")
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is missing: the page is not tested")
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield running
        running.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """``visit(site, path, width=1280, height=800, dark=False)``: a page; at the end it must have had no error."""
    problems: list[str] = []
    contexts: list[Any] = []

    def opened(
        site: Any, path: str = "/", width: int = 1280, height: int = 800, dark: bool = False, script: str = ""
    ) -> Any:
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light", accept_downloads=True
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(180_000)  # of slow machines
        if script:
            page.add_init_script(script)
        page.on("console", lambda message: message.type == "error" and problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: _is_foreign(request.url, site) and problems.append(f"left: {request.url}"))
        page.goto(site.address + path)
        page.wait_for_selector("header.bar")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert problems == []


def _is_foreign(url: str, site: Any) -> bool:
    parts = urlsplit(url)
    return parts.scheme not in ("blob", "data") and parts.netloc != f"127.0.0.1:{site.port}"
