"""A model that needs no training: pictures to their colours, texts to the colours that they name."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

COLOURS = {
    "red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 60, 220), "yellow": (230, 220, 50),
    "black": (10, 10, 10), "white": (245, 245, 245), "cyan": (40, 220, 220), "magenta": (220, 40, 220),
}  # fmt: skip
WIDTH = 32


class Fake:
    """The part of ``evilm.inference.Embedder`` that search uses. Equal seeds are equal models."""

    def __init__(self, seed: int = 0, frames: int = 2, size: int = 32) -> None:
        self.seed, self.num_frames, self.image_size = seed, frames, size
        self.resize_mode: Literal["crop", "squash"] = "crop"
        self.metadata = SimpleNamespace(heads=("embed_video", "embed_text", "match"))
        self._turn = np.linalg.qr(np.random.default_rng(seed).standard_normal((WIDTH, WIDTH)))[0]
        self.encoded = 0

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(f"fake {self.seed} {self.num_frames} {self.image_size}".encode()).hexdigest()

    def embed_frames(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        assert frames.dtype == np.uint8
        assert frames.shape[1:] == (self.num_frames, self.image_size, self.image_size, 3)
        self.encoded += len(frames)
        half = self.image_size // 2
        means = frames.reshape(len(frames), self.num_frames, 2, half, 2, half, 3).mean((3, 5)).reshape(len(frames), -1)
        return self._space(means / 127.5 - 1.0)

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self._space(np.stack([self._meaning(text) for text in texts]))

    def match(self, videos: Sequence[tuple[Path, float, float]], texts: Sequence[str]) -> NDArray[np.float32]:
        """Earlier segments fit better, whatever the text: an order that cosines would not give."""
        return np.array([[-start for _ in texts] for _, start, _ in videos], dtype=np.float32)

    def unknown_share(self, texts: Sequence[str]) -> float:
        letters = [c for text in texts for c in text if not c.isspace()]
        return sum(not c.isascii() for c in letters) / max(1, len(letters))

    def _space(self, values: NDArray[np.floating]) -> NDArray[np.float32]:
        padded = np.zeros((len(values), WIDTH))
        padded[:, : values.shape[1]] = values + 1e-3  # black and white too have a direction
        turned = padded @ self._turn
        return (turned / np.linalg.norm(turned, axis=1, keepdims=True)).astype(np.float32)

    def _meaning(self, text: str) -> NDArray[np.floating]:
        """The colour that a text names; a text without one lies mostly where no picture does."""
        for word in text.lower().split():
            if word in COLOURS:
                seen = np.tile(np.array(COLOURS[word]) / 127.5 - 1.0, 4 * self.num_frames)
                return np.pad(seen, (0, WIDTH - len(seen)))
        rng = np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little"))
        seen, unseen = rng.standard_normal(12 * self.num_frames), rng.standard_normal(WIDTH - 12 * self.num_frames)
        return np.concatenate([0.4 * seen / np.linalg.norm(seen), unseen / np.linalg.norm(unseen)])
