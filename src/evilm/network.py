"""The hub's files, or one sentence at once where they are not to be had."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from evilm import reach
from evilm.errors import CheckpointError, DependencyError

if TYPE_CHECKING:
    from collections.abc import Sequence


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
    near = reach.hub_reachable()
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
    near = reach.hub_reachable()
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
