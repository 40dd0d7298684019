"""Names of other libraries' models; see ``evilm.encoders``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self, cast

from evilm.errors import CheckpointError

Library = Literal["open_clip", "transformers"]
FRAMES = 4  # of a clip, by default
_MOST_FRAMES = 64
_FORM = re.compile(r"(open_clip|transformers|timm):(.+?)(?:@(\d+))?")
_SCHEMES = ("hf-hub:", "local-dir:")  # open_clip's own prefixes, which are not needed here


@dataclass(frozen=True, slots=True)
class EncoderName:
    """A parsed name.

    Attributes:
        library: the library that loads it.
        model: an architecture, a folder, a configuration file, or ``owner/name`` on the hub.
        weights: a published tag or a file, for an architecture or a configuration of open_clip.
        num_frames: T.
    """

    library: Library
    model: str
    weights: str | None = None
    num_frames: int = FRAMES

    def __str__(self) -> str:
        weights = "" if self.weights is None else f":{self.weights}"
        return f"{self.library}:{self.model}{weights}" + (f"@{self.num_frames}" if self.num_frames != FRAMES else "")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a name.

        Raises:
            CheckpointError: it is not the name of an encoder.
        """
        match = _FORM.fullmatch(text)
        if match is None:
            raise CheckpointError(f"{text}: not an encoder: use open_clip:MODEL:WEIGHTS or transformers:NAME")
        library, model, count = match.groups()
        if library == "timm":
            raise CheckpointError(
                f"{text}: timm's encoders take images only; use open_clip:MobileCLIP-S1:datacompdr or "
                "open_clip:PE-Core-B-16:meta"
            )
        frames = FRAMES if count is None else int(count)
        if not 0 < frames <= _MOST_FRAMES:
            raise CheckpointError(f"{text}: @{count} frames: the number must be from 1 to {_MOST_FRAMES}")
        weights = None
        if library == "open_clip":
            for scheme in _SCHEMES:
                model = model.removeprefix(scheme)
            model, weights = _split_weights(model)
        return cls(cast("Library", library), model, weights, frames)


def is_name(text: str) -> bool:
    """Whether ``text`` has the form of an encoder's name."""
    return _FORM.fullmatch(text) is not None


def absolute_name(text: str) -> str:
    """The name with absolute paths of its folder or files, so that it does not depend on the working directory."""

    def absolute(part: str) -> str:
        path = Path(part).expanduser()
        return str(path.resolve()) if path.exists() else part

    name = EncoderName.parse(text)
    weights = None if name.weights is None else absolute(name.weights)
    return str(EncoderName(name.library, absolute(name.model), weights, name.num_frames))


def _split_weights(model: str) -> tuple[str, str | None]:
    """Split MODEL:WEIGHTS of open_clip; both may be paths with colons."""
    if Path(model).expanduser().exists():
        return model, None
    parts = model.split(":")
    for i in range(len(parts) - 1, 0, -1):
        head, tail = ":".join(parts[:i]), ":".join(parts[i:])
        if Path(head).expanduser().exists():
            return head, tail
    head, colon, tail = model.partition(":")
    return head, tail if colon else None
