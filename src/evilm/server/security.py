"""Checks of every request before a route sees it, and headers of every response.

The server answers only requests whose ``Host`` it was started for and whose ``Origin``, if any, is that host (against
DNS rebinding and requests of other sites). On an address other than loopback each request needs a token.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from starlette.requests import ClientDisconnect

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]
    App = Callable[[Message, Receive, Send], Awaitable[None]]

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
COOKIE = "evilm_token"
MAX_BODY = 1 << 20  # bytes of a JSON body
BODY_SECONDS, BODY_RATE = 30.0, 50_000  # in which a body arrives; each of so many bytes adds a second
HEADERS = {
    "content-security-policy": (
        "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; script-src 'self'; style-src 'self'; "
        "connect-src 'self'; object-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
    ),
    "cache-control": "no-cache",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


@dataclass
class Access:
    """Who may send requests.

    Attributes:
        hosts: names and addresses that a ``Host`` header may have, without port, in small letters.
        token: that each request must carry; None on loopback.
        max_requests: number of requests to the interface in work at the same time; more are answered with 503.
        max_body: bytes of a request body, except uploads, which have a limit of their own.
        in_work, requests, refused, errors: numbers of requests in work, of all, of refused ones, of server errors.
    """

    hosts: frozenset[str] = LOOPBACK
    token: str | None = None
    max_requests: int = 128
    max_body: int = MAX_BODY
    upload_path: str = "/api/uploads"
    in_work: int = field(default=0, init=False)
    requests: int = field(default=0, init=False)
    refused: int = field(default=0, init=False)
    errors: int = field(default=0, init=False)


def error_body(code: str, message: str) -> bytes:
    """The JSON body of an error."""
    return json.dumps({"error": {"code": code, "message": message}}).encode()


class Guard:
    """ASGI middleware that refuses requests by ``Access`` and adds the security headers."""

    def __init__(self, app: App, access: Access) -> None:
        self.app, self.access = app, access

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            await self.app(scope, receive, send)
            return
        self.access.requests += 1
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            self.access.refused += 1
            await _answer(send, *refusal)
            return
        if self.access.token is not None and (moved := self._with_cookie(scope)) is not None:
            await _answer(send, 303, b"", moved)
            return
        counted = scope["path"].startswith("/api/") and scope["path"] != "/api/events"
        if counted and self.access.in_work >= self.access.max_requests:
            self.access.refused += 1
            busy = error_body("busy", "The server has too many requests in work; try again in a second.")
            await _answer(send, 503, busy, {"retry-after": "1"})
            return
        self.access.in_work += counted
        body = _Body(receive, None if scope["path"] == self.access.upload_path else self.access.max_body)
        try:
            await self.app(scope, body.receive, self._sending(send, body))
        except ClientDisconnect:
            pass  # nobody waits for an answer, or the body was refused
        except Exception as error:
            logging.getLogger("uvicorn.error").exception("%s %s failed", scope["method"], scope["path"])
            self.access.errors += 1
            if not body.answered:
                fault = error_body("fault", f"The server failed ({type(error).__name__}); its log has the details.")
                await _answer(send, 500, fault)
        finally:
            self.access.in_work -= counted
        if body.refusal is not None and not body.answered:
            await _answer(send, *body.refusal)

    def _sending(self, send: Send, body: _Body) -> Send:
        """``send`` that adds the headers, counts errors, and sends nothing if the body was refused."""

        async def sending(message: Message) -> None:
            if body.refusal is not None and not body.answered:
                return
            if message["type"] == "http.response.start":
                body.answered = True
                self.access.errors += message["status"] >= 500
                present = {name.lower() for name, _ in message["headers"]}
                extra = [(k.encode(), v.encode()) for k, v in HEADERS.items() if k.encode() not in present]
                message["headers"] = [*message["headers"], *extra]
            await send(message)

        return sending

    def _refusal(self, scope: Message, headers: dict[str, str]) -> tuple[int, bytes] | None:
        """Status and body of a refused request, or None."""
        names = [name for name, _ in scope["headers"] if name.lower() == b"host"]
        host = headers.get("host", "")
        if len(names) != 1 or _hostname(host) not in self.access.hosts:
            return 421, error_body(
                "wrong_host", "This server does not answer under that name; see `evilm serve --help`."
            )
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return 403, error_body("wrong_origin", "Requests of other sites are refused.")
        if self.access.token is not None and not self._has_token(scope, headers):
            return 401, error_body("no_token", "Open the address that `evilm serve` printed, with its token.")
        length = headers.get("content-length", "0")
        if scope["path"] != self.access.upload_path and (not length.isdigit() or int(length) > self.access.max_body):
            return 413, _too_large(self.access.max_body)
        return None

    def _has_token(self, scope: Message, headers: dict[str, str]) -> bool:
        given = [headers.get("authorization", "").removeprefix("Bearer ")]
        given += parse_qs(scope["query_string"].decode("latin-1")).get("token", []) if scope["path"] == "/" else []
        try:
            cookie = SimpleCookie(headers.get("cookie", ""))
            given += [cookie[COOKIE].value] if COOKIE in cookie else []
        except CookieError:
            pass
        expected = (self.access.token or "").encode()
        return any(hmac.compare_digest(each.encode(), expected) for each in given)

    def _with_cookie(self, scope: Message) -> dict[str, str] | None:
        """Headers that move ``/?token=...`` to ``/`` and keep the token in a cookie."""
        if scope["path"] != "/" or b"token=" not in scope["query_string"]:
            return None
        cookie = f"{COOKIE}={self.access.token}; HttpOnly; SameSite=Strict; Path=/; Max-Age=2592000"
        return {"location": "/", "set-cookie": cookie}


class _Body:
    """A request body: its bytes are counted as they arrive, whatever Content-Length states, and have limited time.

    Args:
        receive: of the request.
        limit: bytes; None for any number.

    Attributes:
        refusal: status and body of the answer, once the body is too large or too slow.
        answered: whether an answer began.
    """

    def __init__(self, receive: Receive, limit: int | None) -> None:
        self._receive, self._limit, self._size = receive, limit, 0
        self._began, self._complete = asyncio.get_running_loop().time(), False
        self.refusal: tuple[int, bytes] | None = None
        self.answered = False

    async def receive(self) -> Message:
        if self._complete:  # the application waits for the end of the connection
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._began + BODY_SECONDS + self._size / BODY_RATE):
                message = await self._receive()
        except TimeoutError:
            self.refusal = 408, error_body("too_slow", "The request body arrived too slowly.")
            return {"type": "http.disconnect"}
        self._size += len(message.get("body", b""))
        self._complete = not message.get("more_body")
        if self._limit is not None and self._size > self._limit:
            self.refusal = 413, _too_large(self._limit)
            return {"type": "http.disconnect"}
        return message


def _too_large(limit: int) -> bytes:
    return error_body("too_large", f"A request body may have {limit:,} bytes at most.")


def _hostname(host: str) -> str:
    """The name of a ``Host`` header without its port."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if host.count(":") == 1 else host


async def _answer(send: Send, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
    sent = {"content-type": "application/json", "content-length": str(len(body)), **HEADERS, **(headers or {})}
    start = {
        "type": "http.response.start",
        "status": status,
        "headers": [(k.encode(), v.encode()) for k, v in sent.items()],
    }
    await send(start)
    await send({"type": "http.response.body", "body": body})
