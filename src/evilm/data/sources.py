"""What a run learns from and how that is read: the ``[data]`` table of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from evilm.config import Config
from evilm.data import order
from evilm.data.order import Shuffle
from evilm.data.packed import PackedFrames
from evilm.data.transforms import AugmentConfig
from evilm.data.workers import TIMEOUT
from evilm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from evilm.data.pixels import Store
    from evilm.types import Example


class SourceConfig(Config):
    """One annotation file and its videos."""

    reader: str = Field(description="one of data.readers.READERS")
    annotations: Path
    videos: Path | None = None
    split: str = "train"
    limit: int | None = Field(default=None, gt=0, description="take this many rows, spread evenly over the file")


class DataConfig(Config):
    """What to learn from and how it is read."""

    train: SourceConfig
    extra_train: tuple[SourceConfig, ...] = Field(
        default=(), description="further sources that are learned from, like train"
    )
    validation: SourceConfig | None = None
    test: SourceConfig | None = None
    cache: Path | None = Field(default=None, description="folder for frames decoded once; none decodes in every epoch")
    packed: Path | None = Field(default=None, description="folder that `evilm data pack` wrote, in place of a cache")
    cached_frames: int = Field(default=8, gt=0, description="frames kept of each clip in the cache")
    resize_mode: Literal["crop", "squash"] = "crop"
    shuffle: Shuffle = Field(
        default="auto", description="rows: all mixed; shards: tars read a few at a time; auto: shards if there are many"
    )
    features: bool = Field(
        default=False,
        description="also keep what a frozen backbone (optim.backbone_lr_scale=0) sees in the cached frames",
    )
    augment: AugmentConfig = AugmentConfig()
    workers: int = Field(default=2, ge=0, description="processes that decode; 0 decodes in the run's own")
    prefetch: int = Field(default=2, ge=0, description="batches made ready while the model works")
    timeout: float = Field(default=TIMEOUT, gt=0, description="seconds a worker may take for one sample")
    max_bad_ratio: float = Field(
        default=0.05, ge=0, le=1, description="unreadable share of training samples that stops the run"
    )


def shards(data: DataConfig, rows: Sequence[Example], store: Store | None) -> NDArray[np.int32] | None:
    """The number of each training row's shard, where the order of an epoch is to go through shards; else None.

    Raises:
        ConfigError: ``data.shuffle = "shards"``, and there are none.
    """
    in_tars = store is None and bool(rows[0].clip.frames) and rows[0].clip.path.suffix == ".tar"
    if data.shuffle == "rows" or (data.shuffle == "auto" and not in_tars):
        return None
    if isinstance(store, PackedFrames):
        return order.shard_numbers(store.shard_of(row.clip) for row in rows)
    if not in_tars:
        raise ConfigError("data.shuffle = 'shards' needs tar files (of the readers shards and frames) or data.packed")
    numbers = order.shard_numbers(row.clip.path for row in rows)
    return None if data.shuffle == "auto" and numbers.max() < order.MIXED else numbers
