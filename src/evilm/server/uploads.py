"""Uploaded pictures and clips: written to a temporary file, embedded, and kept only as a vector."""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from evilm import files
from evilm.errors import QueryError, VideoError

if TYPE_CHECKING:
    from evilm.search.query import QueryVector
    from evilm.server.library import Library

MAX_KEPT = 500  # uploads that can still be searched by
MAX_TOGETHER = 4  # uploads that are received and embedded at the same time
_FIRST_BYTES = ((b"\xff\xd8\xff", ".jpg"), (b"\x89PNG", ".png"), (b"BM", ".bmp"))


class Uploads:
    """Vectors of uploads by their ids.

    Args:
        library: whose model embeds them.
    """

    def __init__(self, library: Library) -> None:
        self.library = library
        self.places = threading.BoundedSemaphore(MAX_TOGETHER)
        self._vectors: OrderedDict[str, QueryVector] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, path: Path, filename: str) -> dict[str, str]:
        """Embed a file.

        Args:
            path: where the upload was written; it is renamed, so that its suffix tells what it is.
            filename: as the sender calls it; nothing depends on it but its suffix.

        Raises:
            VideoError: it cannot be read.
        """
        name = "".join(c for c in Path(unquote(filename)).name if c.isprintable())[:80] or "upload"
        suffix = Path(name).suffix.lower()
        if suffix not in (*files.VIDEO_SUFFIXES, *files.PICTURE_SUFFIXES):
            suffix = _suffix_of(path)
        file = path.rename(path.with_suffix(suffix))
        try:
            vector = self.library.need().embed(file)
        except VideoError as error:
            raise VideoError(name, error.status, error.reason) from None
        finally:
            file.unlink(missing_ok=True)
        key = secrets.token_hex(8)
        with self._lock:
            self._vectors[key] = vector
            while len(self._vectors) > MAX_KEPT:
                self._vectors.popitem(last=False)
        return {"upload": key, "kind": "picture" if suffix in files.PICTURE_SUFFIXES else "video", "name": name}

    def get(self, key: str | None) -> QueryVector | None:
        """The vector of an upload; None without a key.

        Raises:
            QueryError: the upload is not kept any more.
        """
        if not key:
            return None
        with self._lock:
            vector = self._vectors.get(key)
        if vector is None:
            raise QueryError("this upload is no longer kept; upload it again")
        return vector


def _suffix_of(path: Path) -> str:
    """The suffix of a picture or video by its first bytes."""
    with path.open("rb") as file:
        start = file.read(16)
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return ".webp"
    return next((suffix for mark, suffix in _FIRST_BYTES if start.startswith(mark)), ".mp4")
