"""Where the frames of a batch come from: video files, or a store of frames that were decoded once.

A pixel source is used by this process, or is sent to worker processes, where it decodes one sample at a time for the
loader, ``evilm data pack`` or a frame cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from evilm.data import sampling, transforms
from evilm.data.video import LIMITS, Fit
from evilm.data.video.clips import frames_of

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from evilm.types import Clip


@dataclass(frozen=True, slots=True)
class Job:
    """The frames that one sample needs.

    Attributes:
        clip: where its pixels are.
        seed: draws the times of the frames; None takes those at ``position``.
        position: of each frame within its segment, as a fraction of it, without a seed.
        plan: random changes of the frames.
    """

    clip: Clip
    seed: int | None = None
    plan: transforms.Plan = transforms.IDENTITY
    position: float = 0.5

    @property
    def rng(self) -> np.random.Generator | None:
        return None if self.seed is None else sampling.generator(self.seed, "moments")

    def positions(self, count: int) -> NDArray[np.float64]:
        """(count,) the position of each frame within its segment."""
        rng = self.rng
        return np.full(count, self.position) if rng is None else sampling.draw_positions(count, rng)


class Store(Protocol):
    """Frames decoded once: ``FrameCache`` or ``PackedFrames``.

    Attributes:
        folder: where the store is.
        cached_frames: number of evenly spaced frames of each clip.
        size: H = W in pixels.
    """

    folder: Path
    cached_frames: int
    size: int

    def __len__(self) -> int:
        """The number of clips."""
        ...

    @property
    def encoded(self) -> bool:
        """Whether frames are compressed pictures, which worker processes should decode."""
        ...

    def row(self, clip: Clip) -> int:
        """The row of a clip; raises DataError if the store does not have it."""
        ...

    def clip_id(self, row: int) -> str:
        """``Clip.id`` of a row."""
        ...

    def read(self, clip: Clip, chosen: NDArray[np.int64] | None = None) -> NDArray[np.uint8]:
        """The frames ``chosen`` (None: all) of a clip, (T, size, size, 3); raises VideoError if it was unreadable."""
        ...

    def frames_of(self, row: int) -> NDArray[np.uint8] | None:
        """All frames of a row, or None if the clip was unreadable."""
        ...


@dataclass(frozen=True)
class FilePixels:
    """Frames decoded from files each time they are needed.

    Attributes:
        size: H = W in pixels.
        fit: ``crop`` or ``squash``, see ``pictures.to_rgb``.
    """

    size: int
    fit: Fit = "crop"

    @property
    def needs_workers(self) -> bool:
        """Whether reading takes so long that worker processes should do it."""
        return True

    def read(self, job: Job, count: int) -> NDArray[np.uint8]:
        """``count`` frames of a job, (count, size, size, 3) uint8; raises VideoError."""
        return transforms.apply(
            frames_of(job.clip, job.positions(count), self.size, "exact", self.fit, LIMITS), job.plan
        )


@dataclass(frozen=True)
class NoPixels(FilePixels):
    """Black frames, for a task that reads only captions: the videos need not exist."""

    @property
    def needs_workers(self) -> bool:
        return False

    def read(self, job: Job, count: int) -> NDArray[np.uint8]:
        return np.zeros((count, self.size, self.size, 3), dtype=np.uint8)


@dataclass(frozen=True)
class StoredPixels:
    """Frames of a store."""

    store: Store

    @property
    def needs_workers(self) -> bool:
        return self.store.encoded

    def read(self, job: Job, count: int) -> NDArray[np.uint8]:
        """``count`` frames of a job, (count, size, size, 3) uint8, none for 0; raises VideoError."""
        if not count:  # only whether the clip is readable
            return self.store.read(job.clip, np.empty(0, np.int64))
        return transforms.apply(self.store.read(job.clip, self.choose(job, count)), job.plan)

    def choose(self, job: Job, count: int) -> NDArray[np.int64]:
        """(count,) which frames of the store ``read`` returns."""
        return sampling.frames_at(self.store.cached_frames, job.positions(count))
