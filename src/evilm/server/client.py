"""``evilm.Client``: the HTTP interface of ``evilm serve`` from Python, with the standard library alone."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote, urlencode

from evilm.errors import EvilmError


class ServerError(EvilmError):
    """An answer of the server that is an error.

    Args:
        status: of HTTP; 0 if the server does not answer.
        code: a short name such as ``busy``.
        message: one sentence.
    """

    def __init__(self, status: int, code: str, message: str) -> None:
        self.status, self.code = status, code
        super().__init__(message)


@dataclass(frozen=True)
class FoundSegment:
    """A segment that a search returned.

    Attributes:
        segment, video: ids.
        name, folder: of the file, the folder relative to the indexed one.
        start, end: seconds.
        score: 0 to 1; below 0.5 is no good match.
    """

    segment: str
    video: str
    name: str
    folder: str
    start: float
    end: float
    score: float


class Client:
    """A connection to a server.

    Args:
        address: such as ``http://127.0.0.1:8000``.
        token: that the server printed, if it has one.
        timeout: seconds to wait for an answer.
    """

    def __init__(self, address: str = "http://127.0.0.1:8000", token: str | None = None, timeout: float = 60.0) -> None:
        self.address, self.token, self.timeout = address.rstrip("/"), token, timeout

    def search(self, text: str, k: int = 10, **filters: Any) -> list[FoundSegment]:
        """The best segments for a text.

        Args:
            text: ``-word`` subtracts a word.
            k: number of segments.
            filters: ``folder``, ``after``, ``before``, ``min_seconds``, ``max_seconds``, ``name``.

        Raises:
            ServerError: the server refuses or does not answer.
        """
        found: list[FoundSegment] = []
        cursor: str | None = None
        while len(found) < k:
            body = {"text": text, "limit": min(200, k - len(found)), "filters": filters, "cursor": cursor}
            answer = self.call("POST", "/api/search", body)
            names = FoundSegment.__dataclass_fields__
            found += [FoundSegment(**{name: row[name] for name in names}) for row in answer["hits"]]
            cursor = answer["next"]
            if cursor is None:
                break
        return found

    def ask(self, video: str, question: str, start: float | None = None, end: float | None = None) -> dict[str, Any]:
        """The answer to a question about a video or a part of it."""
        return self.call("POST", f"/api/videos/{quote(video)}/ask", {"question": question, "start": start, "end": end})

    def index(self) -> dict[str, Any]:
        """What the index holds."""
        return self.call("GET", "/api/index")

    def upload(self, path: str | Path) -> str:
        """Upload a picture or clip; the id to search by."""
        data = Path(path).read_bytes()
        return str(self.call("POST", "/api/uploads", data, {"X-Filename": quote(Path(path).name)})["upload"])

    def scan(self, wait: bool = True) -> dict[str, Any]:
        """Scan the folder of the index again; with ``wait`` until it ends."""
        scan = self.call("POST", "/api/scan", {})
        while wait and scan["state"] in ("running", "stopping"):
            time.sleep(0.2)
            scan = self.index()["scan"]
        return scan

    def thumbnail(self, segment: str, height: int = 180) -> bytes:
        """The middle still of a segment as JPEG."""
        return self._raw("GET", f"/api/thumbnails/{quote(segment)}?{urlencode({'height': height})}")

    def call(
        self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None
    ) -> dict[str, Any]:
        """Any route that answers JSON."""
        return cast("dict[str, Any]", json.loads(self._raw(method, path, body, headers)))

    def _raw(self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None) -> bytes:
        sent = {"Accept": "application/json", **(headers or {})}
        if self.token:
            sent["Authorization"] = f"Bearer {self.token}"
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        if data is not None and not isinstance(body, bytes):
            sent["Content-Type"] = "application/json"
        request = urllib.request.Request(self.address + path, data, sent, method=method)  # noqa: S310, the user's server
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as answer:  # noqa: S310
                return bytes(answer.read())
        except urllib.error.HTTPError as error:
            try:
                values = json.loads(error.read())["error"]
            except (ValueError, KeyError, TypeError):
                values = {"code": "error", "message": str(error)}
            raise ServerError(error.code, str(values["code"]), str(values["message"])) from None
        except OSError as error:
            raise ServerError(
                0, "offline", f"{self.address}: no server answers ({error}); start one: evilm serve INDEX"
            ) from None
