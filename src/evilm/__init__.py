"""E-ViLM: a small video-language model, pre-trained by predicting the semantic codes of masked video.

Everything here is loaded when it is first used: ``import evilm`` brings in no torch and touches no network.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evilm.errors import EvilmError
    from evilm.inference import Embedder, load
    from evilm.search.index import VideoIndex
    from evilm.server.client import Client

__version__ = "0.1.0"

__all__ = ["Client", "Embedder", "EvilmError", "VideoIndex", "__version__", "load"]

# Where each public name lives.
_HOMES = {
    "Client": "evilm.server.client",
    "Embedder": "evilm.inference",
    "EvilmError": "evilm.errors",
    "VideoIndex": "evilm.search.index",
    "load": "evilm.inference",
}


def __getattr__(name: str) -> object:
    """The public name ``name``, imported from the module that it lives in."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'evilm' has no attribute {name!r}; its public names are {', '.join(__all__)}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return __all__
