"""The ``[data]`` table of a recipe: which rows to learn from, and how their frames are read."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from evilm.config import Config
from evilm.data.transforms import AugmentConfig
from evilm.data.workers import TIMEOUT


class SourceConfig(Config):
    """One annotation file and its videos."""

    reader: str = Field(description="format of the annotations, one of data.readers.READERS")
    annotations: Path = Field(description="annotation file, or the folder that contains it")
    videos: Path | None = Field(default=None, description="folder of the videos; none looks beside the annotations")
    split: str = "train"
    limit: int | None = Field(default=None, gt=0, description="maximum number of rows, spread evenly over the file")

    @property
    def is_test(self) -> bool:
        """Whether the split is called test, such as ``test`` or ``test.2``."""
        return self.split.lower().startswith("test")


class DataConfig(Config):
    """Training, validation and test rows, and how their frames are read."""

    train: SourceConfig
    extra_train: tuple[SourceConfig, ...] = Field(default=(), description="further training rows, added to train")
    validation: SourceConfig | None = None
    test: SourceConfig | None = None
    cache: Path | None = Field(default=None, description="folder of decoded frames; none decodes in every epoch")
    packed: Path | None = Field(default=None, description="output folder of `evilm data pack`, instead of a cache")
    cached_frames: int = Field(default=8, gt=0, description="frames of each clip in the cache")
    resize_mode: Literal["crop", "squash"] = Field(
        default="crop", description="how frames become square: crop the centre, or squash"
    )
    shuffle: Literal["auto", "rows", "shards"] = Field(
        default="auto",
        description="rows: all together; shards: a few tar files at a time; auto: shards if there are many tar files",
    )
    features: bool = Field(
        default=False,
        description="also cache the features of a frozen backbone (optim.backbone_lr_scale=0): maps, or their means "
        "where only embeddings that skip fusion are trained",
    )
    augment: AugmentConfig = AugmentConfig()
    workers: int = Field(default=2, ge=0, description="decoding processes; 0 decodes in the training process")
    prefetch: int = Field(default=2, ge=0, description="batches loaded while the model computes")
    timeout: float = Field(default=TIMEOUT, gt=0, description="maximum seconds to decode one sample")
    max_bad_ratio: float = Field(
        default=0.05, ge=0, le=1, description="fraction of unreadable training clips that stops the run"
    )
