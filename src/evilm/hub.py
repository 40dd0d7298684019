"""Downloads from the Hugging Face hub; without a network an error at once, not after minutes of attempts."""

from __future__ import annotations

import os
import socket
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from evilm.errors import CheckpointError, DependencyError

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

CONNECT_TIMEOUT = 3.0  # seconds


def reachable(url: str) -> bool:
    """Whether the host of ``url`` accepts a connection."""
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True  # a direct connection would bypass the proxy and prove nothing
    address = urlsplit(url)
    try:
        socket.create_connection((address.hostname or "", address.port or 443), timeout=CONNECT_TIMEOUT).close()
    except OSError:
        return False
    return True


def hub_reachable() -> bool:
    """Whether the Hugging Face hub can be reached; False if ``HF_HUB_OFFLINE`` is set or huggingface_hub is missing."""
    try:
        from huggingface_hub import constants
    except ImportError:
        return False
    return not constants.HF_HUB_OFFLINE and reachable(str(constants.ENDPOINT))


@contextmanager
def hub_or_cache() -> Generator[None]:
    """Context in which an unreachable hub is not contacted: cached files are found, other downloads fail at once."""
    try:
        from huggingface_hub import constants
    except ImportError:
        yield
        return
    before: bool = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not hub_reachable()  # huggingface_hub reads it at every request
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def library(name: str) -> Any:
    """Import huggingface_hub; ``name`` is the model that needs it, for the error message.

    Raises:
        DependencyError: it is not installed.
    """
    try:
        import huggingface_hub
    except ModuleNotFoundError:
        raise DependencyError(f"{name}: a model on the hub needs huggingface_hub: pip install 'evilm[hub]'") from None
    return huggingface_hub


def fetch(name: str, files: Sequence[str]) -> Path:
    """The folder with those files of ``owner/name`` that match a pattern, downloaded or from the cache.

    Raises:
        DependencyError: huggingface_hub is missing.
        CheckpointError: no such name, or no network and no copy in the cache.
    """
    hub = library(name)
    online = hub_reachable()
    try:
        return Path(hub.snapshot_download(name, allow_patterns=list(files), local_files_only=not online))
    except Exception as error:
        raise CheckpointError(f"{name}: {_reason(error, online)}") from error


def fetch_first(name: str, files: Sequence[str]) -> Path:
    """The first of these files that ``owner/name`` has, downloaded or from the cache.

    Raises:
        DependencyError: huggingface_hub is missing.
        CheckpointError: it has none of them, or there is no network and no copy in the cache.
    """
    hub = library(name)
    online = hub_reachable()
    failed: Exception | None = None
    for file in files:
        try:
            return Path(hub.hf_hub_download(name, file, local_files_only=not online))
        except Exception as error:  # noqa: BLE001 - its error classes change between versions
            failed = error
    raise CheckpointError(f"{name}: {_reason(failed, online)}") from failed


def _reason(error: Exception | None, online: bool) -> str:
    if online:
        return f"cannot be downloaded from the hub: {' '.join(str(error).split())[:160]}"
    return "no network, and no copy in the cache: name a folder or a file instead"
