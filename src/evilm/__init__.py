"""E-ViLM: a small video-language model, pre-trained by predicting the semantic codes of masked video.

Everything here is loaded when it is first used: ``import evilm`` brings in no torch and touches no network.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evilm.errors import EvilmError

__version__ = "0.1.0"

__all__ = ["EvilmError", "__version__"]

# Where each public name lives.
_HOMES = {"EvilmError": "evilm.errors"}


def __getattr__(name: str) -> object:
    """The public name ``name``, imported from the module that it lives in."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'evilm' has no attribute {name!r}; its public names are {', '.join(__all__)}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return __all__
