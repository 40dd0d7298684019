"""The hub's files, or one sentence at once where they are not to be had; nothing else here goes to the network."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from evilm.errors import CheckpointError, DependencyError

if TYPE_CHECKING:
    from collections.abc import Sequence

_SECONDS = 3.0  # that the hub has to answer before it counts as out of reach


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


def reachable(hub: Any) -> bool:
    """Whether the hub answers, asked once and shortly: the library itself goes on trying for half a minute."""
    if hub.constants.HF_HUB_OFFLINE:
        return False
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True  # the proxy knows; a connection of ours would go past it
    address = urlsplit(str(hub.constants.ENDPOINT))
    try:
        socket.create_connection((address.hostname, address.port or 443), timeout=_SECONDS).close()
    except OSError:
        return False
    return True


def fetch(name: str, files: Sequence[str]) -> Path:
    """A folder with the files of ``owner/name`` that fit one of the patterns, from the hub or its copy here.

    Raises:
        DependencyError: huggingface_hub is missing.
        CheckpointError: no such name, or no network and no copy.
    """
    hub = library(name)
    near = reachable(hub)
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
    near = reachable(hub)
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
