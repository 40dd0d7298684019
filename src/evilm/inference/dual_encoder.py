"""A dual encoder of another library as a runtime: each frame is one patch, and fusion is the mean over frames."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from evilm.encoders.base import normalise_rows
from evilm.inference.runtime import EncodedArrays, Metadata

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from evilm.encoders.base import DualEncoder
    from evilm.inference.runtime import Head


class DualEncoderRuntime:
    """CLIP and similar models behind the interface of ``Runtime``.

    Args:
        encoder: pictures and texts to vectors.
    """

    folder: Path | None = None  # a model of another library cannot be published from here

    def __init__(self, encoder: DualEncoder) -> None:
        self.encoder = encoder
        self.vocabulary = EncoderVocabulary(encoder)
        self.fingerprint = encoder.fingerprint
        self.form = f"{encoder.name}, {encoder.device.type}"
        self.metadata = Metadata(
            task="dual encoder",
            num_frames=encoder.num_frames,
            image_size=encoder.image_size,
            resize_mode=encoder.resize_mode,
            grid=(1, 1),
            max_text_len=encoder.max_text_len,
            hidden_dim=encoder.embed_dim,
            embed_dim=encoder.embed_dim,
            temperature=encoder.temperature,
            heads=("embed_video", "embed_text"),
            source={"name": str(encoder.name), "weights": encoder.fingerprint},
        )

    def encode_video(self, frames: NDArray[np.uint8]) -> EncodedArrays:
        """(n, T, H, W, 3) to a unit vector for each frame, (n, T, d)."""
        vectors = self.encoder.encode_frames(frames)
        return EncodedArrays(vectors, np.ones(vectors.shape[:2], dtype=np.bool_))

    def encode_text(self, ids: NDArray[np.int64], mask: NDArray[np.bool_]) -> EncodedArrays:
        """(n, L) each to (n, L, d): the text's one vector, repeated at each of its positions."""
        vectors = self.encoder.encode_tokens(ids, mask)
        return EncodedArrays(np.repeat(vectors[:, None], ids.shape[1], axis=1), mask)

    def fuse(
        self, tokens: NDArray[np.float32], mask: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The mean over the unmasked tokens, (n, d), and the weight of each token, (n, S)."""
        weights = (mask / mask.sum(1, keepdims=True)).astype(np.float32)
        return np.einsum("nsd,ns->nd", tokens, weights), weights

    def apply_head(
        self, name: Head, cls: NDArray[np.float32] | None, pooled: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """(n, d), l2-normalised."""
        assert cls is not None
        return normalise_rows(cls)


class EncoderVocabulary:
    """The encoder's text tokenizer behind the interface of ``VocabularyLike``."""

    def __init__(self, encoder: DualEncoder) -> None:
        self._encoder = encoder

    def encode_arrays(self, texts: Sequence[str], length: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Ids and mask (n, L), cut at the encoder's own length."""
        return self._encoder.tokenize(texts)

    def unknown_share(self, texts: Sequence[str]) -> float:
        return self._encoder.unknown_share(texts)
