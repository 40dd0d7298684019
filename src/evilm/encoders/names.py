"""How a model of another library is named; see ``evilm.encoders``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self, cast

from evilm.errors import CheckpointError

Library = Literal["open_clip", "transformers"]
FRAMES = 4  # of a clip, unless its name says otherwise
_MOST_FRAMES = 64
_FORM = re.compile(r"(open_clip|transformers|timm):(.+?)(?:@(\d+))?")
_SCHEMES = ("hf-hub:", "local-dir:")  # open_clip's own; what they tell apart shows without them


@dataclass(frozen=True, slots=True)
class Name:
    """A parsed name.

    Attributes:
        library: whose model it is.
        model: an architecture, a folder, a configuration file, or ``owner/name`` on the hub.
        weights: a published tag or a file, for an architecture or a configuration of open_clip.
        frames: T.
    """

    library: Library
    model: str
    weights: str | None = None
    frames: int = FRAMES

    def __str__(self) -> str:
        weights = "" if self.weights is None else f":{self.weights}"
        return f"{self.library}:{self.model}{weights}" + (f"@{self.frames}" if self.frames != FRAMES else "")

    @classmethod
    def parse(cls, text: str) -> Self:
        """The parts of a name.

        Raises:
            CheckpointError: it is none.
        """
        found = _FORM.fullmatch(text)
        if found is None:
            raise CheckpointError(f"{text}: names no encoder: take open_clip:MODEL:WEIGHTS or transformers:NAME")
        library, model, count = found.groups()
        if library == "timm":
            raise CheckpointError(
                f"{text}: timm's encoders read no texts; MobileCLIP and PE come with both halves as "
                "open_clip:MobileCLIP-S1:datacompdr and open_clip:PE-Core-B-16:meta"
            )
        frames = FRAMES if count is None else int(count)
        if not 0 < frames <= _MOST_FRAMES:
            raise CheckpointError(f"{text}: @{count} frames: take 1 to {_MOST_FRAMES}")
        weights = None
        if library == "open_clip":
            for scheme in _SCHEMES:
                model = model.removeprefix(scheme)
            model, weights = _divided(model)
        return cls(cast("Library", library), model, weights, frames)


def is_name(text: str) -> bool:
    """Whether ``text`` begins as such a name does."""
    return _FORM.fullmatch(text) is not None


def absolute(text: str) -> str:
    """The name with its folder or files as absolute paths, so that it means the same wherever it is read."""
    name = Name.parse(text)
    model, weights = (None if part is None else _whole(part) for part in (name.model, name.weights))
    return str(Name(name.library, model or name.model, weights, name.frames))


def _divided(model: str) -> tuple[str, str | None]:
    """An open_clip model and its weights; a path may hold colons of its own."""
    if Path(model).expanduser().exists():
        return model, None
    parts = model.split(":")
    for i in range(len(parts) - 1, 0, -1):
        head, tail = ":".join(parts[:i]), ":".join(parts[i:])
        if Path(head).expanduser().exists():
            return head, tail
    head, colon, tail = model.partition(":")
    return head, tail if colon else None


def _whole(part: str) -> str:
    path = Path(part).expanduser()
    return str(path.resolve()) if path.exists() else part
