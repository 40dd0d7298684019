"""Where the frames of a batch come from: video files, or a store of frames that were decoded once.

``decode`` is what a process that decodes does for one sample, whoever asks: the loader, ``evilm data pack``, a store
that is being filled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from evilm.data import sampling, transforms
from evilm.data.sampling import pick_frames
from evilm.data.video import Fit, read_clip

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from evilm.types import Clip


@dataclass(frozen=True, slots=True)
class Job:
    """The frames that one sample needs.

    Attributes:
        clip: of it.
        moments: the seed that draws them; None takes the middles.
        plan: what is done to them.
    """

    clip: Clip
    moments: int | None = None
    plan: transforms.Plan = transforms.IDENTITY

    @property
    def rng(self) -> np.random.Generator | None:
        return None if self.moments is None else sampling.generator(self.moments, "moments")


@dataclass(frozen=True, slots=True)
class Decoding:
    """How video files become frames.

    Attributes:
        count: T.
        size: pixels of a frame's side.
        fit: ``crop`` or ``squash``, see ``pictures.to_rgb``.
    """

    count: int
    size: int
    fit: Fit = "crop"

    def frames(self, job: Job) -> NDArray[np.uint8]:
        """(T, size, size, 3) uint8; raises VideoError."""
        return transforms.apply(read_clip(job.clip, self.count, self.size, job.rng, fit=self.fit), job.plan)


class Decoder(Protocol):
    """What a decoder process does for a sample: ``Decoding`` or ``StoredDecoding``."""

    def frames(self, job: Job) -> NDArray[np.uint8]:
        """(T, H, W, 3) uint8; raises VideoError."""
        ...


class Store(Protocol):
    """Frames decoded once: ``FrameStore`` and ``PackedFrames``.

    Attributes:
        folder: where it lies.
        cached_frames: evenly spaced frames kept of each clip.
        size: pixels of a frame's side.
    """

    folder: Path
    cached_frames: int
    size: int

    def __len__(self) -> int:
        """How many clips there are."""
        ...

    @property
    def encoded(self) -> bool:
        """Whether frames have to be decoded once more, which is work for other processes."""
        ...

    def row(self, clip: Clip) -> int:
        """Where a clip is; raises DataError for a clip that is not in the store."""
        ...

    def clip_id(self, row: int) -> str:
        """``Clip.id`` of a row."""
        ...

    def read(self, clip: Clip, chosen: NDArray[np.int64] | None = None) -> NDArray[np.uint8]:
        """The candidates ``chosen`` (None: all) of a clip, (T, size, size, 3); raises VideoError with its status."""
        ...

    def frames_of(self, row: int) -> NDArray[np.uint8] | None:
        """All candidates of a row, or None where the clip could not be read."""
        ...


@dataclass(frozen=True)
class FilePixels:
    """Frames decoded when they are asked for."""

    size: int
    fit: Fit = "crop"

    @property
    def heavy(self) -> bool:
        """Whether reading is work for other processes."""
        return True

    def decoding(self, count: int) -> Decoding:
        """How ``count`` frames come about, here or in another process."""
        return Decoding(count, self.size, self.fit)

    def read(self, job: Job, count: int) -> NDArray[np.uint8]:
        return self.decoding(count).frames(job)


@dataclass(frozen=True)
class NoPixels(FilePixels):
    """Black frames, for a task that reads captions alone: the videos need not be there."""

    @property
    def heavy(self) -> bool:
        return False

    def read(self, job: Job, count: int) -> NDArray[np.uint8]:
        return np.zeros((count, self.size, self.size, 3), dtype=np.uint8)


@dataclass(frozen=True)
class StoredPixels:
    """Frames out of a store, and which candidates they were."""

    store: Store

    @property
    def heavy(self) -> bool:
        """Whether reading is work for other processes."""
        return self.store.encoded

    def decoding(self, count: int) -> StoredDecoding:
        """How ``count`` frames come about, here or in another process."""
        return StoredDecoding(self, count)

    def read(self, job: Job, count: int) -> NDArray[np.uint8]:
        return transforms.apply(self.store.read(job.clip, self.choose(job, count)), job.plan)

    def choose(self, job: Job, count: int) -> NDArray[np.int64]:
        return pick_frames(self.store.cached_frames, count, job.rng)


@dataclass(frozen=True, slots=True)
class StoredDecoding:
    """How kept frames become frames."""

    pixels: StoredPixels
    count: int

    def frames(self, job: Job) -> NDArray[np.uint8]:
        return self.pixels.read(job, self.count)
