"""What search needs of a model: a few properties and methods, whichever form the model has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from evilm.errors import VideoIndexError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from evilm.data.video import Fit


@runtime_checkable
class Embedder(Protocol):
    """A dual encoder: texts and clips into one space of unit vectors."""

    @property
    def fingerprint(self) -> str:
        """Equal for models that give equal vectors; an index is bound to it."""
        ...

    @property
    def num_frames(self) -> int:
        """T, frames of a clip."""
        ...

    @property
    def image_size(self) -> int:
        """H = W in pixels."""
        ...

    @property
    def resize_mode(self) -> Fit:
        """How a picture becomes square."""
        ...

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, D), l2-normalised."""
        ...

    def embed_frames(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(n, T, H, W, 3) uint8 to (n, D), l2-normalised."""
        ...


@runtime_checkable
class Matcher(Protocol):
    """A model whose fusion decoder can say how well a text fits a video: for re-ranking."""

    def match(self, videos: Sequence[tuple[Path, float, float]], texts: Sequence[str]) -> NDArray[np.float32]:
        """(path, start, end) and texts to scores (videos, texts), higher is better.

        Raises:
            VideoError: a video gives no frames.
        """
        ...


def unit(vectors: NDArray[np.floating], model: str) -> NDArray[np.float32]:
    """Rows of length one, in float32.

    Raises:
        VideoIndexError: a row that is not finite or has no direction.
    """
    rows = np.ascontiguousarray(vectors, dtype=np.float32)
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    if rows.ndim != 2 or not np.isfinite(lengths).all() or not (lengths > 0).all():
        raise VideoIndexError(
            f"{model}: the model gave a vector that is not a number or has no direction; take another"
        )
    return np.ascontiguousarray(rows / lengths, dtype=np.float32)
