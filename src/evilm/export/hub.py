"""Models on the Hugging Face hub: fetched and published as folders, never as code."""

from __future__ import annotations

import re
from pathlib import Path

from evilm.errors import CheckpointError, DependencyError

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def is_name(text: str) -> bool:
    """Whether ``text`` may be a hub's ``owner/name`` rather than a path."""
    return _NAME.fullmatch(text) is not None


def download(name: str) -> Path:
    """The local copy of a hub's model, fetched where there is none yet.

    Raises:
        DependencyError: huggingface_hub is missing.
        CheckpointError: no such model, or no network.
    """
    try:
        from huggingface_hub import snapshot_download  # pyright: ignore[reportUnknownVariableType], of its progress bars
        from huggingface_hub.errors import HfHubHTTPError
    except ModuleNotFoundError:
        raise DependencyError(f"{name}: a model on the hub needs huggingface_hub: pip install 'evilm[hub]'") from None
    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.onnx", "*.safetensors", "*.xml", "*.bin"]))
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{name}: no such folder here, and not to be had from the hub: {reason}") from None
