"""What an ``Embedder`` stands on: three graphs, some heads, and what is to be known about them.

A model is cut at the same places whichever form it has, so that one form can be checked against the other:

    video    (n, T, H, W, 3) uint8            -> (n, N, D)   regions, as fusion takes them (Eq. 1)
    text     (n, L) ids, (n, L) mask          -> (n, L, D)   words, as fusion takes them (Eq. 1)
    fusion   (n, S, D) tokens, (n, S) mask    -> (n, D), (n, S)   h^CLS (Eq. 2), and where it looked
    a head   (n, D)                           -> (n, K)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol

from pydantic import Field

from evilm.config import Config
from evilm.data.video.limits import Fit

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

Head = Literal["embed_video", "embed_text", "match", "answer", "classify"]


class Threshold(Config):
    """Below which probability an answer is withheld, and what that does to the rows that it was set on.

    Attributes:
        probability: answers less probable than this are "cannot tell".
        answered: the share of rows that are then still answered, in percent.
        right: the share of these that are right, in percent.
        samples: how many rows it was set on.
    """

    probability: float = Field(ge=0, le=1)
    answered: float
    right: float
    samples: int


class Metadata(Config):
    """What a model takes and gives.

    Attributes:
        task: the task that it was trained for last.
        frames, size: T, and the pixels of a frame's side.
        fit: how a picture becomes square, as in ``VideoReader.frames_at``.
        grid: (h, w), cells of a frame.
        words: the longest text, in word pieces.
        width: D.
        embedding: width of the space where cosines rank, or None without one.
        temperature: of these cosines.
        heads: those there are.
        answers: of the answer head.
        classes: of the trained probe.
        cannot_tell: the threshold on answers, where validation data set one.
        source: where it comes from: ``weights`` (sha256), ``step``, ``recipe``, ``validation``, ``versions``.
    """

    task: str
    num_frames: int = Field(gt=0, le=4096)
    image_size: int = Field(gt=0, le=8192)
    resize_mode: Fit = "crop"
    grid: tuple[int, int]
    max_text_len: int = Field(gt=2, le=65536)
    hidden_dim: int = Field(gt=0)
    embed_dim: int | None = None
    temperature: float | None = None
    heads: tuple[Head, ...] = ()
    answers: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    answer_threshold: Threshold | None = None
    source: dict[str, Any] = {}


class VocabularyLike(Protocol):
    """What turns texts into the numbers that a model reads; ``Vocabulary`` is ours."""

    def encode_arrays(self, texts: Sequence[str], length: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Ids and mask, (n, L) each; raises VocabularyError."""
        ...

    def unknown_share(self, texts: Sequence[str]) -> float:
        """The share of pieces that the model does not know."""
        ...


class Runtime(Protocol):
    """A model that can be run: ``TorchEngine``, ``OnnxEngine``, and ``DualEngine`` for models of other libraries."""

    metadata: Metadata
    fingerprint: str
    form: str

    @property
    def folder(self) -> Path | None:
        """Where its files are; None for a model of another library, which is not ours to publish."""
        ...

    @property
    def vocabulary(self) -> VocabularyLike:
        """Its words."""
        ...

    def encode_video(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(n, T, H, W, 3) to regions (n, N, D)."""
        ...

    def encode_text(self, ids: NDArray[np.int64], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
        """(n, L) each to words (n, L, D)."""
        ...

    def fuse(
        self, tokens: NDArray[np.float32], mask: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(n, S, D) and (n, S) to h^CLS (n, D) and its attention (n, S)."""
        ...

    def apply_head(self, name: Head, cls: NDArray[np.float32]) -> NDArray[np.float32]:
        """(n, D) to (n, K)."""
        ...
