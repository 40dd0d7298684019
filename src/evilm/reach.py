"""Whether those who publish weights can be reached, asked once and shortly: their libraries try for a minute."""

from __future__ import annotations

import os
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Generator

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
