"""Weights from the Hugging Face hub: fetched where it can be reached, otherwise refused at once in one sentence."""

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

SECONDS = 3.0  # to answer, before a place counts as out of reach


def reachable(url: str) -> bool:
    """Whether the host of ``url`` takes a connection."""
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True  # the proxy knows; a connection of ours would go past it
    address = urlsplit(url)
    try:
        socket.create_connection((address.hostname or "", address.port or 443), timeout=SECONDS).close()
    except OSError:
        return False
    return True


def hub_reachable() -> bool:
    """Whether the Hugging Face hub answers; False as well where ``HF_HUB_OFFLINE`` says not to ask, or nobody can."""
    try:
        from huggingface_hub import constants
    except ImportError:
        return False
    return not constants.HF_HUB_OFFLINE and reachable(str(constants.ENDPOINT))


@contextmanager
def hub_or_cache() -> Generator[None]:
    """Inside, a hub out of reach is not asked: what was fetched before is found, and the rest fails at once."""
    try:
        from huggingface_hub import constants
    except ImportError:
        yield
        return
    before: bool = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not hub_reachable()  # the library reads it at every request
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def library(name: str) -> Any:
    """huggingface_hub, for the model ``name``.

    Raises:
        DependencyError: it is not installed.
    """
    try:
        import huggingface_hub
    except ModuleNotFoundError:
        raise DependencyError(f"{name}: a model on the hub needs huggingface_hub: pip install 'evilm[hub]'") from None
    return huggingface_hub


def fetch(name: str, files: Sequence[str]) -> Path:
    """A folder with the files of ``owner/name`` that fit one of the patterns, from the hub or its copy here.

    Raises:
        DependencyError: huggingface_hub is missing.
        CheckpointError: no such name, or no network and no copy.
    """
    hub = library(name)
    near = hub_reachable()
    try:
        return Path(hub.snapshot_download(name, allow_patterns=list(files), local_files_only=not near))
    except Exception as error:
        raise CheckpointError(f"{name}: {_why(error, near)}") from error


def fetch_first(name: str, files: Sequence[str]) -> Path:
    """The first of these files that ``owner/name`` has, from the hub or its copy here.

    Raises:
        DependencyError: huggingface_hub is missing.
        CheckpointError: it has none of them, or no network and no copy.
    """
    hub = library(name)
    near = hub_reachable()
    failed: Exception | None = None
    for file in files:
        try:
            return Path(hub.hf_hub_download(name, file, local_files_only=not near))
        except Exception as error:  # noqa: BLE001 - the hub's own tree of errors changes; the last is told
            failed = error
    raise CheckpointError(f"{name}: {_why(failed, near)}") from failed


def _why(error: Exception | None, near: bool) -> str:
    if near:
        return f"not to be had from the hub: {' '.join(str(error).split())[:160]}"
    return "no network, and no copy of it here: name a folder or a file instead"
