"""Token labels made once: what the video tokenizer says of every region of every kept frame.

Two bytes a region, found by video, frame time (which of the kept frames), crop (which of the views that
``augment.views`` allows, mirrored or not) and tokenizer. A store carries the fingerprint of its tokenizer and all that
decides its crops, and is refused where any of them differs: labels of another tokenizer are never taken for these.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from evilm.data import transforms
from evilm.data.frame_store import alone
from evilm.errors import ConfigError, DataError, OutputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from evilm.data.pixels import Store
    from evilm.data.transforms import AugmentConfig, Plan
    from evilm.types import Clip, Grid

UNLABELLED = np.iinfo(np.uint16).max


class LabelStore:
    """Labels of a store of frames, (clips, views, candidates, h, w) uint16, on disk.

    Args:
        frames: the frames they are labels of.
        fingerprint: of the tokenizer.
        grid: regions of one frame.
        augment: the crops and flips of training; without any there is one view.
        seed: of the run, from which views are drawn.

    Raises:
        ConfigError: crops without a limit.
        DataError: the file is of another tokenizer, other frames or other crops.
        OutputError: it cannot be written.
    """

    def __init__(
        self, frames: Store, fingerprint: str, grid: Grid, augment: AugmentConfig | None = None, seed: int = 0
    ) -> None:
        self.frames, self.augment, self.seed = frames, augment or transforms.AugmentConfig(), seed
        crops = self.augment.crops
        if crops is None:
            raise ConfigError(
                "task.labels = 'cached' cannot follow random crops without end: set data.augment.views to how many "
                "each clip may have (scale=1 and shift=0 for none), or take task.labels=online"
            )
        self.crops = crops
        self.views = self.crops * (2 if self.augment.flip else 1)
        about: dict[str, Any] = {"tokenizer": fingerprint, "grid": [grid.height, grid.width], "clips": len(frames)}
        if self.augment.active:
            shape = self.augment.model_dump(mode="json", exclude={"flip_sided"})
            about |= {"augment": shape, "seed": seed if self.augment.moves else 0}
        name = f"labels-{fingerprint}"
        if self.augment.active:
            name += "-" + hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:8]
        self.path = frames.folder / f"{name}.u16"
        dimensions = (len(frames), self.views, frames.candidates, grid.height, grid.width)
        self.labels: NDArray[np.uint16] = _opened(self.path, dimensions, about)

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
        with alone(self.frames.folder):
            todo = self._unlabelled()
            for start in range(0, len(todo), batch):
                rows = todo[start : start + batch]
                for number in range(self.views):
                    self._label(rows, number, label)
                if progress is not None:
                    progress(len(self.labels) - len(todo) + start + len(rows), len(self.labels))
            self.labels.flush()  # pyright: ignore[reportAttributeAccessIssue], a memmap

    def of(self, clip: Clip, chosen: NDArray[np.int64], plan: Plan = transforms.IDENTITY) -> NDArray[np.uint16]:
        """(T, h, w) labels of the candidates ``chosen`` of a clip, in the view that ``plan`` is."""
        number = plan.view + (self.crops if plan.flip else 0)
        return self.labels[self.frames.row(clip), number, chosen]

    def _unlabelled(self) -> NDArray[np.int64]:
        """Rows of which something has no label; the last view and frame are written last, so they tell."""
        return np.flatnonzero((self.labels[:, -1] == UNLABELLED).any(axis=(1, 2, 3)))

    def _label(self, rows: NDArray[np.int64], number: int, label: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """One view of some rows; a clip that could not be read has zeros, which nobody asks for."""
        pictures = list(self._viewed(rows, number))
        readable = [i for i, frames in enumerate(pictures) if frames is not None]
        found = np.zeros((len(rows), *self.labels.shape[2:]), dtype=np.uint16)
        if readable:
            frames = torch.from_numpy(np.stack([picture for picture in pictures if picture is not None]))
            found[readable] = label(frames.permute(0, 1, 4, 2, 3)).cpu().numpy().astype(np.uint16)
        self.labels[rows, number] = found

    def _viewed(self, rows: NDArray[np.int64], number: int) -> Iterator[NDArray[np.uint8] | None]:
        """Each row's frames as training shows them in a view."""
        for row in rows.tolist():
            frames = self.frames.frames_of(row)
            if frames is not None and self.augment.active:
                crop, flip = number % self.crops, number >= self.crops
                plan = transforms.view(self.augment, self.frames.clip_id(row), self.frames.size, self.seed, crop)
                frames = transforms.apply(frames, replace(plan, flip=flip))
            yield frames


def _opened(path: Path, shape: tuple[int, ...], about: dict[str, Any]) -> NDArray[np.uint16]:
    """The memory-mapped labels, new or as they are.

    Raises:
        DataError: the file there says that it is of something else.
        OutputError: it cannot be written.
    """
    note = path.with_suffix(".json")
    try:
        if path.exists() and note.exists():
            _check(path, json.loads(note.read_text(encoding="utf-8")), about)
        if not path.exists() or path.stat().st_size != 2 * int(np.prod(shape)):
            _blank(path, shape)
        if not note.exists():
            temporary = note.with_name(note.name + ".tmp")
            temporary.write_text(json.dumps(about, sort_keys=True), encoding="utf-8")
            os.replace(temporary, note)
        return np.memmap(path, dtype=np.uint16, mode="r+", shape=shape)
    except OSError as error:
        raise OutputError(f"{path}: cannot keep labels: {error.strerror}") from None
    except ValueError:
        raise DataError(f"{note}: is damaged; delete it and {path.name} to label anew") from None


def _check(path: Path, found: dict[str, Any], about: dict[str, Any]) -> None:
    for name, wanted in about.items():
        if found.get(name) != wanted:
            raise DataError(
                f"{path}: holds labels of another {name} ({found.get(name)}, and {wanted} is needed): delete it to "
                "label anew, or take the run that it was made with"
            )


def _blank(path: Path, shape: tuple[int, ...]) -> None:
    """A file of ``UNLABELLED``, written in pieces: it may be larger than memory."""
    temporary = path.with_name(path.name + ".tmp")
    row = np.full(shape[1:], UNLABELLED, dtype=np.uint16).tobytes()
    with temporary.open("wb") as file:
        for _ in range(shape[0]):
            file.write(row)
    os.replace(temporary, path)
