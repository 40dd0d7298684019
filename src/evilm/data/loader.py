"""From rows to batches: order, moments, crops, and what happens to videos that cannot be read.

Everything random about a sample derives from (seed, epoch, sample), never from the order of work.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import torch
from pydantic import Field

from evilm import seeds
from evilm.config import Config
from evilm.data.frames import pick
from evilm.data.video import read_clip
from evilm.errors import ConfigError, DataError, TooManyBadSamplesError, VideoError
from evilm.types import Batch, Clip, Example

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from evilm.data.frame_store import FrameStore


class SourceConfig(Config):
    """One annotation file and its videos."""

    reader: str = Field(description="one of data.readers.READERS")
    annotations: Path
    videos: Path | None = None
    split: str = "train"
    limit: int | None = Field(default=None, gt=0, description="take this many rows, spread evenly over the file")


class AugmentConfig(Config):
    """Random changes to the pixels of a training clip, the same for all its frames."""

    scale: float = Field(default=1.0, gt=0, le=1, description="smallest share of the picture's area that a crop keeps")
    shift: int = Field(default=0, ge=0, description="pixels by which a clip may be moved, edges repeated")
    flip: bool = Field(default=False, description="mirror half of the clips; wrong where captions say left or right")

    @property
    def active(self) -> bool:
        return self.scale < 1 or self.shift > 0 or self.flip


class DataConfig(Config):
    """What to learn from and how it is read."""

    train: SourceConfig
    validation: SourceConfig | None = None
    test: SourceConfig | None = None
    cache: Path | None = Field(default=None, description="folder for frames decoded once; none decodes in every epoch")
    candidates: int = Field(default=8, gt=0, description="frames kept of each clip in the cache")
    fit: Literal["crop", "squash"] = "crop"
    augment: AugmentConfig = AugmentConfig()
    workers: int = Field(default=2, ge=0, description="processes that decode")
    bad_share: float = Field(
        default=0.05, ge=0, le=1, description="unreadable share of training samples that stops the run"
    )


class Pixels(Protocol):
    """A source of frames: the cache, or the files themselves."""

    def read(self, clip: Clip, count: int, rng: np.random.Generator | None) -> NDArray[np.uint8]:
        """(T, size, size, 3) uint8; raises VideoError."""
        ...


@dataclass(frozen=True)
class FilePixels:
    """Frames decoded when they are asked for."""

    size: int
    fit: Literal["crop", "squash"] = "crop"

    def read(self, clip: Clip, count: int, rng: np.random.Generator | None) -> NDArray[np.uint8]:
        return read_clip(clip, count, self.size, rng, fit=self.fit)


@dataclass(frozen=True)
class StoredPixels:
    """Frames out of a ``FrameStore``, and which candidates they were."""

    store: FrameStore

    def read(self, clip: Clip, count: int, rng: np.random.Generator | None) -> NDArray[np.uint8]:
        pixels = self.store.read(clip, self.choose(count, rng))
        if pixels is None:
            raise VideoError(clip.path, "corrupt", "could not be decoded when the cache was made")
        return pixels

    def choose(self, count: int, rng: np.random.Generator | None) -> NDArray[np.int64]:
        return pick(self.store.candidates, count, rng)


@dataclass
class Loader:
    """Batches of one split.

    Args:
        examples: the rows.
        pixels: where frames come from.
        frames: T.
        size: pixels of a side.
        batch_size: B.
        seed: the run's.
        train: draw moments, crops and order at random; else middles, whole frames, file order, all rows.
        augment: random crops, in training.
        labels: cached token labels by clip id, (candidates, h, w), or None.
        bad_share: unreadable share of training samples that stops the run.
        order: how test frames are ordered; ``shuffled`` is the control that cannot read time.
        fixed: middles in training too, for a task that computes each clip once.
        rank, ranks: this process and how many share the work. In training each takes its slice of every batch, so
            ``batch_size`` is that of all together; in evaluation each takes every ``ranks``-th batch, whole.
    """

    examples: Sequence[Example]
    pixels: FilePixels | StoredPixels
    frames: int
    size: int
    batch_size: int
    seed: int = 0
    train: bool = False
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    labels: LabelSource | None = None
    bad_share: float = 0.05
    order: Literal["true", "shuffled"] = "true"
    fixed: bool = False
    rank: int = 0
    ranks: int = 1
    bad: dict[str, str] = field(default_factory=lambda: {}, init=False)
    seen: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if not self.examples:
            raise DataError("no examples to load: the split is empty")
        if self.train and len(self.examples) < self.batch_size:
            raise ConfigError(
                f"optim.batch_size = {self.batch_size} is more than the {len(self.examples)} training examples"
            )
        if self.train and self.batch_size % self.ranks:
            raise ConfigError(
                f"optim.batch_size = {self.batch_size} is the batch of all {self.ranks} processes together and is no "
                f"multiple of {self.ranks}: take {max(1, self.batch_size // self.ranks) * self.ranks}"
            )
        if self.labels is not None and self.augment.active:
            raise ConfigError(
                "task.labels = 'cached' cannot follow random crops and flips: set data.augment.scale=1, shift=0, "
                "flip=false, or take task.labels=online"
            )

    def __len__(self) -> int:
        """Batches in an epoch, of all processes together; in training the last, smaller one is left out."""
        count = len(self.examples)
        return count // self.batch_size if self.train else -(-count // self.batch_size)

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """This process's part of the batches of an epoch, from batch ``first`` on."""
        count = len(self.examples)
        order = seeds.permutation(self.seed, epoch, count) if self.train else np.arange(count)
        own = self.batch_size // self.ranks if self.train else self.batch_size
        offset = self.rank * own if self.train else 0
        for number in range(first, len(self)):
            if self.train or number % self.ranks == self.rank:
                start = number * self.batch_size + offset
                yield self._batch(order[start : start + own], epoch)

    def __iter__(self) -> Iterator[Batch]:
        return self.epoch(0)

    def _batch(self, rows: NDArray[np.int64], epoch: int) -> Batch:
        examples = tuple(self.examples[int(row)] for row in rows)
        own = [seeds.derive(self.seed, "sample", epoch, int(row)) for row in rows]
        readable = np.ones(len(rows), dtype=bool)
        pixels = np.zeros((len(rows), self.frames, self.size, self.size, 3), dtype=np.uint8)
        for i, (example, seed) in enumerate(zip(examples, own, strict=True)):
            try:
                pixels[i] = self.pixels.read(example.clip, self.frames, self._moments(seed))
            except VideoError as error:
                readable[i] = False
                self.bad[example.clip.id] = str(error)
            if self.order == "shuffled":
                pixels[i] = pixels[i][_derangement(self.frames, seeds.generator(seed, "shuffle"))]
        self.seen += len(rows)
        self._stop_if_bad()
        frames = torch.from_numpy(pixels).permute(0, 1, 4, 2, 3)
        if self.train and self.augment.active:
            frames = torch.stack([_augmented(f, s, self.augment) for f, s in zip(frames, own, strict=True)])
        return Batch(
            examples=examples,
            frames=frames,
            seeds=torch.tensor(own, dtype=torch.int64),
            readable=torch.from_numpy(readable),
            labels=self._labels(examples, own),
        )

    def _moments(self, seed: int) -> np.random.Generator | None:
        return seeds.generator(seed, "moments") if self.train and not self.fixed else None

    def _labels(self, examples: Sequence[Example], own: Sequence[int]) -> Tensor | None:
        """The cached labels of the very frames that ``_moments`` chose."""
        if self.labels is None or not isinstance(self.pixels, StoredPixels):
            return None
        chosen = [self.pixels.choose(self.frames, self._moments(seed)) for seed in own]
        found = [self.labels.of(example.clip, where) for example, where in zip(examples, chosen, strict=True)]
        return torch.from_numpy(np.stack(found).astype(np.int64))

    def _stop_if_bad(self) -> None:
        if self.bad and self.train:
            check_bad(list(self.bad.values()), len({example.clip.id for example in self.examples}), self.bad_share)


def check_bad(problems: Sequence[str], clips: int, share: float) -> None:
    """Stop where too much cannot be read.

    Args:
        problems: one line for each unreadable video.
        clips: how many videos there are.
        share: of them that may be unreadable.

    Raises:
        TooManyBadSamplesError: more are.
    """
    if len(problems) > share * clips:
        raise TooManyBadSamplesError(
            f"{len(problems)} of {clips} videos cannot be read, more than data.bad_share = {share:g} allows: mend or "
            f"leave them out, or raise it; the first: {problems[0]}"
        )


class LabelSource(Protocol):
    """Token labels made once."""

    def of(self, clip: Clip, chosen: NDArray[np.int64]) -> NDArray[np.integer]:
        """(T, h, w) labels of candidates ``chosen``."""
        ...


def _derangement(count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """A random order that is not the true one (where there is another)."""
    order = rng.permutation(count)
    while count > 1 and (order == np.arange(count)).all():
        order = rng.permutation(count)
    return order


def _augmented(frames: Tensor, seed: int, config: AugmentConfig) -> Tensor:
    """One clip (T, 3, H, W) uint8, cropped, moved and mirrored; all frames alike."""
    rng = seeds.generator(seed, "augment")
    height, width = frames.shape[-2:]
    if config.scale < 1:
        from torchvision.transforms.v2 import functional as transforms

        share, ratio = np.sqrt(rng.uniform(config.scale, 1)), rng.uniform(0.87, 1.15)
        tall, wide = (max(1, min(n, round(n * s))) for n, s in ((height, share * ratio), (width, share / ratio)))
        top, left = int(rng.integers(0, height - tall + 1)), int(rng.integers(0, width - wide + 1))
        frames = transforms.resized_crop(frames, top, left, tall, wide, [height, width], antialias=True)
    if config.shift:
        down, right = (int(n) for n in rng.integers(-config.shift, config.shift + 1, size=2))
        rows = (torch.arange(height) - down).clamp(0, height - 1)
        columns = (torch.arange(width) - right).clamp(0, width - 1)
        frames = frames[..., rows, :][..., columns]
    if config.flip and rng.random() < 0.5:
        frames = frames.flip(-1)
    return frames
