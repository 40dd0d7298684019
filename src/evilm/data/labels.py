"""Token labels made once: what the video tokenizer says of every region of every cached frame.

Two bytes a region. A store is named by the frames' own store and the tokenizer's fingerprint, so labels of another
tokenizer can never be taken for these.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from evilm.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from evilm.data.frame_store import FrameStore
    from evilm.types import Clip, Grid

UNLABELLED = np.iinfo(np.uint16).max


class LabelStore:
    """Labels of a ``FrameStore``, (clips, candidates, h, w) uint16, on disk.

    Args:
        frames: the frames they are labels of.
        fingerprint: of the tokenizer.
        grid: regions of one frame.
    """

    def __init__(self, frames: FrameStore, fingerprint: str, grid: Grid) -> None:
        self.frames = frames
        shape = (len(frames.clips), frames.candidates, grid.height, grid.width)
        path = frames.folder / f"labels-{fingerprint}.u16"
        try:
            if not path.exists() or path.stat().st_size != 2 * int(np.prod(shape)):
                np.full(shape, UNLABELLED, dtype=np.uint16).tofile(path)
            self.labels: NDArray[np.uint16] = np.memmap(path, dtype=np.uint16, mode="r+", shape=shape)
        except OSError as error:
            raise OutputError(f"{path}: cannot keep labels: {error.strerror}") from None

    def fill(
        self,
        label: Callable[[torch.Tensor], torch.Tensor],
        batch: int = 64,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Label what has none yet.

        Args:
            label: (B, T, 3, H, W) uint8 to (B, T, h, w) int64, a tokenizer's ``labels``.
            batch: clips at a time.
            progress: called with clips done and clips in all.
        """
        todo = np.flatnonzero((self.labels == UNLABELLED).any(axis=(1, 2, 3)))
        for start in range(0, len(todo), batch):
            rows = todo[start : start + batch]
            frames = torch.from_numpy(self.frames.frames[rows]).permute(0, 1, 4, 2, 3)
            self.labels[rows] = label(frames).cpu().numpy().astype(np.uint16)
            if progress is not None:
                progress(len(self.labels) - len(todo) + start + len(rows), len(self.labels))
        self.labels.flush()  # pyright: ignore[reportAttributeAccessIssue], a memmap

    def of(self, clip: Clip, chosen: NDArray[np.int64]) -> NDArray[np.uint16]:
        """(T, h, w) labels of the candidates ``chosen`` of a clip."""
        return self.labels[self.frames.index[clip.id], chosen]
