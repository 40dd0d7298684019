"""The guard in front of the routes: hosts, origins, token, real bytes, headers, bounded requests."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from typing import Any

import pytest

from evilm.server import index_routes, security
from evilm.server.security import Access, Guard


def ask(
    access: Access,
    path: str = "/api/index",
    method: str = "GET",
    body: bytes = b"",
    query: bytes = b"",
    pause: float = 0.0,
    **headers: str,
) -> tuple[int, dict[str, str], bytes]:
    """One request through the guard to an application that answers ``ok``."""
    sent: list[dict[str, Any]] = []

    async def app(_: Any, receive: Any, send: Any) -> None:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            if not message.get("more_body"):
                break
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": b"ok"})

    chunks = [body[i : i + 1000] for i in range(0, len(body), 1000)] or [b""]

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(pause)
        chunk = chunks.pop(0)
        return {"type": "http.request", "body": chunk, "more_body": bool(chunks)}

    async def send(message: Any) -> None:
        sent.append(message)

    pairs = {"host": "127.0.0.1:8000", **{name.replace("_", "-"): value for name, value in headers.items()}}
    sent_headers = [(name.encode(), value.encode("latin-1")) for name, value in pairs.items() if value]
    scope = {"type": "http", "path": path, "method": method, "query_string": query, "headers": sent_headers}
    asyncio.run(Guard(app, access)(scope, receive, send))
    if not sent:
        return 0, {}, b""
    return sent[0]["status"], {k.decode(): v.decode() for k, v in sent[0]["headers"]}, sent[-1]["body"]


def test_loopback_names_are_answered() -> None:
    for host in ("127.0.0.1:8000", "localhost", "LOCALHOST:1", "[::1]:8000"):
        assert ask(Access(), host=host)[0] == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "", "169.254.169.254", "[::2]:8000", "localhost@evil.example"]
)
def test_other_hosts_are_refused(host: str) -> None:
    status, _, body = ask(Access(), host=host)
    assert status == 421
    assert json.loads(body)["error"]["code"] == "wrong_host"


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "OPTIONS"])
def test_other_origins_are_refused_on_every_method(method: str) -> None:
    assert ask(Access(), method=method, origin="http://evil.example")[0] == 403
    assert ask(Access(), method=method, origin="http://127.0.0.1:9999")[0] == 403
    assert ask(Access(), method=method, origin="null")[0] == 403
    assert ask(Access(), method=method, origin="http://127.0.0.1:8000")[0] == 200


def test_a_token_is_needed_where_one_is_set() -> None:
    access = Access(frozenset({"nas"}), token="secret-token")  # noqa: S106
    assert ask(access, host="nas:8000")[0] == 401
    assert ask(access, host="nas:8000", authorization="Bearer wrong")[0] == 401
    assert ask(access, host="nas:8000", authorization="Bearer secret-token")[0] == 200
    assert ask(access, host="nas:8000", cookie="evilm_token=secret-token")[0] == 200
    assert ask(access, host="nas:8000", query=b"token=secret-token")[0] == 401, (
        "only the page takes it from the address"
    )
    status, headers, _ = ask(access, path="/", host="nas:8000", query=b"token=secret-token")
    assert (status, headers["location"]) == (303, "/")
    assert "HttpOnly" in headers["set-cookie"]
    assert "SameSite=Strict" in headers["set-cookie"]


def test_bodies_are_limited_by_the_bytes_that_arrive() -> None:
    access = Access(max_body=5000)
    assert ask(access, method="POST", body=b"x" * 4000)[0] == 200
    assert ask(access, method="POST", body=b"x" * 9000, content_length="9000")[0] == 413
    assert ask(access, method="POST", body=b"x" * 9000, content_length="10")[0] == 413
    assert ask(access, method="POST", body=b"", content_length="many")[0] == 413


@pytest.mark.parametrize("path", ["/api/search", "/api/uploads"])
def test_a_body_that_arrives_slowly_is_refused(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(security, "BODY_SECONDS", 0.2)
    access = Access()
    began = time.monotonic()
    status, headers, _ = ask(access, path, "POST", b"x" * 20_000, pause=0.05)
    assert (status, "content-security-policy" in headers) == (408, True)
    assert time.monotonic() - began < 5
    assert access.in_work == 0, "its place is free again"
    assert ask(access, path, "POST", b"x" * 3000, pause=0.01)[0] == 200
    monkeypatch.setattr(security, "BODY_RATE", 5_000)
    assert ask(access, path, "POST", b"x" * 4000, pause=0.06)[0] == 200, "bytes that arrive give more time"


def test_a_client_that_leaves_is_no_error_of_the_server(site: Any) -> None:
    before = site.services.config.access.errors
    for path in ("/api/uploads", "/api/search"):
        with socket.create_connection(("127.0.0.1", site.port)) as client:
            head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5000\r\n\r\nabc"
            client.sendall(head.encode())
            time.sleep(0.2)
    end = time.monotonic() + 10
    while site.services.config.access.in_work and time.monotonic() < end:
        time.sleep(0.02)
    assert (site.services.config.access.in_work, site.services.config.access.errors) == (0, before)
    assert site.ask("GET", "/api/health").status == 200


def test_more_open_pages_than_the_limit_get_503(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_routes, "MAX_EVENTS", len(site.services.events.queues))
    reply = site.ask("GET", "/api/events")
    assert (reply.status, reply.headers["retry-after"]) == (503, "10")


def test_every_answer_has_the_headers() -> None:
    for answer in (ask(Access()), ask(Access(), host="evil.example")):
        assert "default-src 'self'" in answer[1]["content-security-policy"]
        assert "unsafe" not in answer[1]["content-security-policy"]
        assert answer[1]["x-content-type-options"] == "nosniff"


def test_more_requests_than_the_limit_get_503() -> None:
    access = Access(max_requests=1)
    access.in_work = 1
    status, headers, _ = ask(access)
    assert (status, headers["retry-after"]) == (503, "1")
    assert ask(access, path="/app.css")[0] == 200, "the page itself is always answered"
