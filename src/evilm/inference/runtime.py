"""The interface between an ``Embedder`` and a model: three graphs and some heads, and the model's metadata.

Every form of a model has the same graphs, so that one form can be compared with another:

    video    (n, T, H, W, 3) uint8            -> (n, N, D) patches (Eq. 1), and (n, C) pooled features
    text     (n, L) ids, (n, L) mask          -> (n, L, D) words (Eq. 1), and (n, 2 d) pooled features
    fusion   (n, S, D) tokens, (n, S) mask    -> (n, D) h^CLS (Eq. 2), and (n, S) its attention
    a head   (n, D); for embeddings (n, D), pooled features, or both    -> (n, K)

Only models whose embeddings use pooled features have them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from pydantic import Field

from evilm.config import Config
from evilm.data.video.limits import Fit

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

Head = Literal["embed_video", "embed_text", "match", "answer", "classify"]


class Threshold(Config):
    """The probability below which an answer is reported as "cannot tell".

    Attributes:
        probability: the threshold.
        answered: percentage of the validation rows that are still answered.
        right: percentage of these answers that are right.
        samples: number of the validation rows that set the threshold.
    """

    probability: float = Field(ge=0, le=1)
    answered: float
    right: float
    samples: int


class Metadata(Config):
    """What a model takes and gives.

    Attributes:
        task: of the last training stage.
        num_frames: T.
        image_size: H = W of a frame in pixels.
        resize_mode: how a picture becomes square, see ``pictures.to_rgb``.
        grid: (h, w), patches of a frame.
        max_text_len: length of the longest text in word pieces.
        hidden_dim: D, width of patches, words and h^CLS.
        embedding: what embeddings are made of, see ``ModelConfig.embedding``.
        embed_dim: d, width of the embeddings; None without embedding heads.
        temperature: of the cosines of embeddings, as trained.
        heads: names of the heads.
        answers: of the answer head.
        classes: of the trained probe.
        answer_threshold: for "cannot tell"; None if no validation data set one.
        source: provenance: ``weights`` (sha256), ``step``, ``recipe``, ``model``, ``validation``, ``versions``.
    """

    task: str
    num_frames: int = Field(gt=0, le=4096)
    image_size: int = Field(gt=0, le=8192)
    resize_mode: Fit = "crop"
    grid: tuple[int, int]
    max_text_len: int = Field(gt=2, le=65536)
    hidden_dim: int = Field(gt=0)
    embedding: Literal["fused", "pooled", "both"] = "fused"
    embed_dim: int | None = None
    temperature: float | None = None
    heads: tuple[Head, ...] = ()
    answers: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    answer_threshold: Threshold | None = None
    source: dict[str, Any] = {}


@dataclass(frozen=True, slots=True)
class EncodedArrays:
    """Encoded videos or texts, the input of fusion: ``types.Encoded`` in NumPy.

    Attributes:
        tokens: (n, S, D) patches or word pieces, with their type embedding.
        mask: (n, S) bool, False in the padding.
        pooled: (n, C) pooled features, or None where embeddings do not use them.
    """

    tokens: NDArray[np.float32]
    mask: NDArray[np.bool_]
    pooled: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: slice) -> EncodedArrays:
        return EncodedArrays(self.tokens[rows], self.mask[rows], None if self.pooled is None else self.pooled[rows])

    @staticmethod
    def concatenate(parts: Sequence[EncodedArrays]) -> EncodedArrays:
        """The rows of all parts, at least one, which have equal shapes."""
        pooled = [part.pooled for part in parts if part.pooled is not None]
        return EncodedArrays(
            np.concatenate([part.tokens for part in parts]),
            np.concatenate([part.mask for part in parts]),
            np.concatenate(pooled) if pooled else None,
        )


class VocabularyLike(Protocol):
    """Texts to token ids: ``Vocabulary``, or the text tokenizer of another library."""

    def encode_arrays(self, texts: Sequence[str], length: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Ids and mask, (n, L) each; raises VocabularyError."""
        ...

    def unknown_share(self, texts: Sequence[str]) -> float:
        """Fraction of the word pieces that are unknown."""
        ...


class Runtime(Protocol):
    """A model that can be run: ``TorchRuntime``, ``OnnxRuntime``, or ``DualEncoderRuntime`` for other libraries.

    Its methods may be called from several threads at once.
    """

    metadata: Metadata
    fingerprint: str
    form: str

    @property
    def folder(self) -> Path | None:
        """The model's folder; None for a model of another library."""
        ...

    @property
    def vocabulary(self) -> VocabularyLike:
        """Texts to token ids."""
        ...

    def encode_video(self, frames: NDArray[np.uint8]) -> EncodedArrays:
        """(n, T, H, W, 3) to patches (n, N, D)."""
        ...

    def encode_text(self, ids: NDArray[np.int64], mask: NDArray[np.bool_]) -> EncodedArrays:
        """(n, L) each to words (n, L, D)."""
        ...

    def fuse(
        self, tokens: NDArray[np.float32], mask: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(n, S, D) and (n, S) to h^CLS (n, D) and its attention (n, S)."""
        ...

    def apply_head(
        self, name: Head, cls: NDArray[np.float32] | None, pooled: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """h^CLS (n, D), pooled features, or both, as ``Metadata.embedding`` says for embeddings, to (n, K)."""
        ...
