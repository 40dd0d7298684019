"""Videos at addresses such as ``s3://bucket/clips/a.mp4``: list them, and copy one to the local disk to decode it.

Any file system of fsspec works (``s3``, ``gs``, ``az``, ``memory``, ...); its settings are those of fsspec, such as
``AWS_ENDPOINT_URL``. Decoders read local regular files only, so a video is copied before it is decoded.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import re
import tempfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from evilm.errors import DependencyError, VideoIndexError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

_SCHEME = re.compile(rb"[a-z][a-z0-9+.-]*://")
_COLLAPSED = re.compile(r"^([a-z][a-z0-9+.-]*):/(?!/)")
_REQUESTS = 16  # that are made at the same time for a list of addresses
_BLOCK = 2**20  # bytes that are copied at once


def is_remote(path: bytes | str) -> bool:
    """Whether a path is an address with a scheme."""
    return _SCHEME.match(path if isinstance(path, bytes) else os.fsencode(path)) is not None


def address(path: Path) -> str:
    """A path as text; an address that went through ``Path`` gets back its second slash (``s3:/a`` to ``s3://a``)."""
    return _COLLAPSED.sub(r"\1://", str(path))


def open_filesystem(url: str) -> Any:
    """The file system of an address.

    Raises:
        DependencyError: its package is not installed.
        VideoIndexError: the scheme is unknown.
    """
    try:
        import fsspec  # pyright: ignore[reportMissingTypeStubs], an extra
    except ModuleNotFoundError:
        raise DependencyError(f"{url}: addresses need fsspec: pip install 'evilm[s3]'") from None
    scheme = url.partition("://")[0]
    try:
        return cast("Any", fsspec).filesystem(scheme)
    except ImportError as error:
        raise DependencyError(f"{url}: {error}; for s3: pip install 'evilm[s3]'") from None
    except ValueError as error:
        raise VideoIndexError(f"{url}: {error}") from None


def list_prefix(url: str) -> list[tuple[bytes, int, int, int]]:
    """Every object under an address: its address, size, time of the last change in ns, and a number of its version.

    Raises:
        DependencyError, VideoIndexError: the package is missing; the address cannot be listed.
    """
    system, scheme = open_filesystem(url), url.partition("://")[0]
    try:
        found: dict[str, dict[str, Any]] = system.find(url, detail=True, refresh=True)
    except Exception as error:  # noqa: BLE001 - each file system raises its own errors
        raise VideoIndexError(f"{url}: cannot be listed: {type(error).__name__}: {error}") from None
    return [(f"{scheme}://{name.lstrip('/')}".encode(), *_state(facts)) for name, facts in sorted(found.items())]


def stat_all(urls: Iterable[str]) -> list[tuple[int, int, int] | str]:
    """Size, time and version of each address, or the reason why it cannot be read."""

    def one(url: str) -> tuple[int, int, int] | str:
        try:
            return _state(open_filesystem(url).info(url))
        except FileNotFoundError:
            return "there is no such object"
        except (DependencyError, VideoIndexError):
            raise
        except Exception as error:  # noqa: BLE001 - each file system raises its own errors
            return f"cannot be examined: {type(error).__name__}"

    with ThreadPoolExecutor(_REQUESTS) as threads:
        return list(threads.map(one, urls))


def _state(facts: dict[str, Any]) -> tuple[int, int, int]:
    when = facts.get("LastModified") or facts.get("mtime") or facts.get("created") or 0
    seconds = when.replace(tzinfo=when.tzinfo or dt.UTC).timestamp() if isinstance(when, dt.datetime) else float(when)
    version = str(facts.get("ETag") or facts.get("etag") or "")
    return int(facts.get("size") or 0), int(seconds * 1e9), zlib.crc32(version.encode())


@contextlib.contextmanager
def local_copy(path: bytes) -> Generator[Path]:
    """The file at a path; an address is copied to a temporary file, which is deleted afterwards.

    Raises:
        FileNotFoundError: there is no such object any more.
        OSError: it cannot be read.
    """
    if not is_remote(path):
        yield Path(os.fsdecode(path))
        return
    url = os.fsdecode(path)
    system = open_filesystem(url)
    with tempfile.NamedTemporaryFile(prefix="evilm-", suffix=Path(url).suffix) as copy:
        try:
            with system.open(url, "rb") as source:
                while block := source.read(_BLOCK):
                    copy.write(block)
        except OSError:
            raise
        except Exception as error:  # noqa: BLE001 - each file system raises its own errors
            raise OSError(0, f"{type(error).__name__}: {error}") from None
        copy.flush()
        yield Path(copy.name)
