"""Disk cache of a frozen network's outputs: token labels of the video tokenizer, or features of a video backbone.

A network that is not trained gives the same output for a frame in every epoch, for every caption and in every task, so
its output is computed once for each cached frame and each of its crops (``augment.cached_crops``, mirrored or not). The
cache records the network's fingerprint and the augmentation settings, and refuses to be used with others.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch

from evilm.data import transforms
from evilm.data.frame_cache import folder_lock
from evilm.errors import ConfigError, DataError, OutputError
from evilm.files import write_atomic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from evilm.data.pixels import Store
    from evilm.data.transforms import AugmentConfig, Plan
    from evilm.types import Clip, Grid

BLANK = np.iinfo(np.uint16).max  # not computed yet: no label has this value, and as float16 it is NaN
BATCH = 64  # clips that are computed together


class FeatureCache:
    """Outputs for the frames of a store, (clips, crops, cached_frames, ...) of two bytes each, memory-mapped.

    Args:
        frames: the cached frames that the network sees.
        name: of the file, with the network's fingerprint.
        shape: of the output for one frame.
        dtype: uint16 for labels, float16 for features.
        settings: JSON-able values that decide the content, in addition to the frames and their crops.
        option: the recipe's setting that asked for this cache, for error messages.
        augment: crops and flips of training; None for none.
        seed: of the run; the crops are drawn from it.

    Raises:
        ConfigError: the number of different crops is unlimited.
        DataError: the file was computed by another network, or for other frames or crops.
        OutputError: the file cannot be written.
    """

    def __init__(
        self,
        frames: Store,
        name: str,
        shape: tuple[int, ...],
        dtype: type[np.uint16 | np.float16],
        settings: dict[str, Any],
        option: str,
        augment: AugmentConfig | None = None,
        seed: int = 0,
    ) -> None:
        self.frames, self.dtype, self.seed = frames, dtype, seed
        self.augment = augment or transforms.AugmentConfig()
        if self.augment.crops is None:
            raise ConfigError(
                f"{option} needs a limited number of crops: set data.augment.cached_crops to the number of crops of "
                f"each clip (or crop_scale=1 and shift=0 for none), or do without {option}"
            )
        self.crops = self.augment.crops
        settings = {**settings, "clips": len(frames)}
        if self.augment.active:
            changes = self.augment.model_dump(mode="json", exclude={"hflip_sided"})
            settings |= {"augment": changes, "seed": seed if self.augment.moves else 0}
            name += "-" + hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
        self.path = frames.folder / f"{name}.{'u16' if dtype is np.uint16 else 'f16'}"
        views = self.crops * (2 if self.augment.hflip else 1)
        self.raw = _open(self.path, (len(frames), views, frames.cached_frames, *shape), settings)

    @classmethod
    def labels(
        cls, frames: Store, fingerprint: str, grid: Grid, augment: AugmentConfig | None = None, seed: int = 0
    ) -> Self:
        """Token labels (h, w) uint16 of each frame, by the tokenizer with this fingerprint."""
        shape = (grid.height, grid.width)
        settings = {"tokenizer": fingerprint, "grid": [grid.height, grid.width]}
        option = "task.labels = 'cached'"
        return cls(frames, f"labels-{fingerprint}", shape, np.uint16, settings, option, augment, seed)

    @classmethod
    def features(
        cls,
        frames: Store,
        fingerprint: str,
        grid: Grid,
        channels: int,
        augment: AugmentConfig | None = None,
        seed: int = 0,
    ) -> Self:
        """Features (h, w, C) float16 of each frame, (1, 1, C) for pooled ones.

        The fingerprint covers backbone, normalisation and precision.
        """
        shape = (grid.height, grid.width, channels)
        settings = {"backbone": fingerprint, "grid": [grid.height, grid.width], "channels": channels}
        kind = "pooled" if grid.patches == 1 else "features"
        return cls(frames, f"{kind}-{fingerprint}", shape, np.float16, settings, "data.features", augment, seed)

    def fill(
        self,
        network: Callable[[torch.Tensor], torch.Tensor],
        batch: int = BATCH,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Compute what is missing.

        Clips are always computed in the same batches, so that an interrupted cache ends with the same bytes.

        Args:
            network: (B, T, 3, H, W) uint8 to (B, T, ...).
            batch: clips of a batch.
            progress: called with the number of clips done and of all clips.
        """
        with folder_lock(self.frames.folder):
            blocks = self.missing(batch)
            for done, block in enumerate(blocks, 1):
                self.compute(block, network, batch)
                if progress is not None:
                    progress(len(self.raw) - (len(blocks) - done) * batch, len(self.raw))
            self.flush()

    def missing(self, batch: int = BATCH) -> list[int]:
        """Numbers of the blocks of ``batch`` clips that are not complete."""
        # The last crop and frame of a clip are written last.
        blank = (self.raw[:, -1, -1].reshape(len(self.raw), -1) == BLANK).any(axis=1)
        return sorted({row // batch for row in np.flatnonzero(blank).tolist()})

    def compute(self, block: int, network: Callable[[torch.Tensor], torch.Tensor], batch: int = BATCH) -> None:
        """Compute one block; see ``fill``."""
        rows = np.arange(block * batch, min(len(self.raw), (block + 1) * batch), dtype=np.int64)
        for view in range(self.raw.shape[1]):
            self._compute(rows, view, network)

    def flush(self) -> None:
        """Write what was computed to the disk."""
        self.raw.flush()  # pyright: ignore[reportAttributeAccessIssue], a memmap

    def read(
        self, clip: Clip, chosen: NDArray[np.int64], plan: Plan = transforms.IDENTITY
    ) -> NDArray[np.uint16 | np.float16]:
        """Outputs (T, ...) for the frames ``chosen`` of a clip, cropped and mirrored as in ``plan``."""
        view = plan.crop + (self.crops if plan.flip else 0)
        return self.raw[self.frames.row(clip), view, chosen].view(self.dtype)

    def _compute(self, rows: NDArray[np.int64], view: int, network: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Fill one view of some rows; unreadable clips get zeros, which are never read."""
        frames = list(self._frames(rows, view))
        readable = [i for i, each in enumerate(frames) if each is not None]
        outputs = np.zeros((len(rows), *self.raw.shape[2:]), dtype=self.dtype)
        if readable:
            shown = [each for each in frames if each is not None]
            count = max(len(each) for each in shown)  # 1 if all are photographs
            pixels = np.stack([np.broadcast_to(each, (count, *each.shape[1:])) for each in shown])
            outputs[readable] = network(torch.from_numpy(pixels).permute(0, 1, 4, 2, 3)).cpu().numpy()
        self.raw[rows, view] = outputs.view(np.uint16)

    def _frames(self, rows: NDArray[np.int64], view: int) -> Iterator[NDArray[np.uint8] | None]:
        """The frames of each row, cropped and mirrored as training does in this view; a photograph's only once."""
        for row in rows.tolist():
            frames = self.frames.frames_of(row)
            if frames is not None and (frames == frames[:1]).all():
                frames = frames[:1]
            if frames is not None and self.augment.active:
                crop, flip = view % self.crops, view >= self.crops
                plan = transforms.crop_plan(self.augment, self.frames.clip_id(row), self.frames.size, self.seed, crop)
                frames = transforms.apply(frames, replace(plan, flip=flip))
            yield frames


def _open(path: Path, shape: tuple[int, ...], settings: dict[str, Any]) -> NDArray[np.uint16]:
    """The memory-mapped file, created if needed; raises DataError and OutputError as ``FeatureCache`` does."""
    record = path.with_suffix(".json")
    try:
        with folder_lock(path.parent):  # two runs may start at the same time
            if path.exists() and record.exists():
                found = json.loads(record.read_text(encoding="utf-8"))
                for key, value in settings.items():
                    if found.get(key) != value:
                        raise DataError(
                            f"{path}: was computed for another {key} ({found.get(key)}, and {value} is needed): delete "
                            "it to compute it again, or use the run that it was made with"
                        )
            if not path.exists() or path.stat().st_size != 2 * int(np.prod(shape)):
                temporary = path.with_name(path.name + ".tmp")
                row = np.full(shape[1:], BLANK, dtype=np.uint16).tobytes()
                with temporary.open("wb") as file:  # a row at a time: the file may be larger than memory
                    for _ in range(shape[0]):
                        file.write(row)
                os.replace(temporary, path)
            if not record.exists():
                write_atomic(record, json.dumps(settings, sort_keys=True))
        return np.memmap(path, dtype=np.uint16, mode="r+", shape=shape)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from None
    except ValueError:
        raise DataError(f"{record}: is damaged; delete it and {path.name} to compute them again") from None
