"""What a network that no longer changes says of every kept frame, computed once and kept on disk.

Two bytes a number, found by video, frame time (which of the kept frames) and crop (which of the views that
``augment.views`` allows, mirrored or not). A store says what decided its content - the network's fingerprint and all
that decides the crops - and is refused where any of it differs.
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
from evilm.data.frame_cache import alone, replace_text
from evilm.errors import ConfigError, DataError, OutputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from evilm.data.pixels import Store
    from evilm.data.transforms import AugmentConfig, Plan
    from evilm.types import Clip

BLANK = np.iinfo(np.uint16).max  # no label, and as float16 no number


class Kept:
    """Answers about a store of frames, (clips, views, candidates, ...) of two bytes each, on disk.

    Args:
        frames: the frames they are about.
        name: of the file, with the fingerprint of the network.
        shape: of the answer about one frame.
        about: what decided the content, beside the frames and their crops; JSON-able.
        setting: the key of the recipe that asked for this store, for complaints.
        augment: the crops and flips of training; without any there is one view.
        seed: of the run, from which views are drawn.

    Raises:
        ConfigError: crops without a limit.
        DataError: the file is of another network, other frames or other crops.
        OutputError: it cannot be written.
    """

    dtype: type[np.uint16 | np.float16] = np.uint16

    def __init__(
        self,
        frames: Store,
        name: str,
        shape: tuple[int, ...],
        about: dict[str, Any],
        setting: str,
        augment: AugmentConfig | None = None,
        seed: int = 0,
    ) -> None:
        self.frames, self.augment, self.seed = frames, augment or transforms.AugmentConfig(), seed
        crops = self.augment.crops
        if crops is None:
            raise ConfigError(
                f"{setting} cannot follow random crops without end: set data.augment.cached_crops to how many each "
                "clip may have (scale=1 and shift=0 for none), or do without it"
            )
        self.crops = crops
        self.views = self.crops * (2 if self.augment.hflip else 1)
        about = {**about, "clips": len(frames)}
        if self.augment.active:
            changes = self.augment.model_dump(mode="json", exclude={"flip_sided"})
            about |= {"augment": changes, "seed": seed if self.augment.moves else 0}
            name += "-" + hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:8]
        self.path = frames.folder / f"{name}.{'u16' if self.dtype is np.uint16 else 'f16'}"
        self.raw = _opened(self.path, (len(frames), self.views, frames.candidates, *shape), about)

    def fill(
        self,
        answer: Callable[[torch.Tensor], torch.Tensor],
        batch: int = 64,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Compute what is not there yet.

        Clips are always computed in the same company, so that a store that was interrupted ends up the same to the bit.

        Args:
            answer: (B, T, 3, H, W) uint8 to (B, T, ...).
            batch: clips at a time.
            progress: called with clips done and clips in all.
        """
        with alone(self.frames.folder):
            todo = sorted({row // batch for row in self._blank().tolist()})
            for done, block in enumerate(todo, 1):
                rows = np.arange(block * batch, min(len(self.raw), (block + 1) * batch), dtype=np.int64)
                for number in range(self.views):
                    self._compute(rows, number, answer)
                if progress is not None:
                    progress(min(len(self.raw), len(self.raw) - (len(todo) - done) * batch), len(self.raw))
            self.raw.flush()  # pyright: ignore[reportAttributeAccessIssue], a memmap

    def of(
        self, clip: Clip, chosen: NDArray[np.int64], plan: Plan = transforms.IDENTITY
    ) -> NDArray[np.uint16 | np.float16]:
        """(T, ...) answers about the candidates ``chosen`` of a clip, in the view that ``plan`` is."""
        number = plan.view + (self.crops if plan.flip else 0)
        return self.raw[self.frames.row(clip), number, chosen].view(self.dtype)

    def _blank(self) -> NDArray[np.int64]:
        """Rows of which something lacks; the last view and frame are written last, so they tell."""
        return np.flatnonzero((self.raw[:, -1, -1].reshape(len(self.raw), -1) == BLANK).any(axis=1))

    def _compute(self, rows: NDArray[np.int64], number: int, answer: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """One view of some rows; a clip that could not be read has zeros, which nobody asks for."""
        pictures = list(self._viewed(rows, number))
        readable = [i for i, frames in enumerate(pictures) if frames is not None]
        found = np.zeros((len(rows), *self.raw.shape[2:]), dtype=self.dtype)
        if readable:
            frames = torch.from_numpy(np.stack([picture for picture in pictures if picture is not None]))
            found[readable] = answer(frames.permute(0, 1, 4, 2, 3)).cpu().numpy()
        self.raw[rows, number] = found.view(np.uint16)

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
    """The memory-mapped answers, new or as they are.

    Raises:
        DataError: the file there says that it is of something else.
        OutputError: it cannot be written.
    """
    note = path.with_suffix(".json")
    try:
        with alone(path.parent):  # two runs may begin at once
            if path.exists() and note.exists():
                _check(path, json.loads(note.read_text(encoding="utf-8")), about)
            if not path.exists() or path.stat().st_size != 2 * int(np.prod(shape)):
                _write_blank(path, shape)
            if not note.exists():
                replace_text(note, json.dumps(about, sort_keys=True))
        return np.memmap(path, dtype=np.uint16, mode="r+", shape=shape)
    except OSError as error:
        raise OutputError(f"{path}: cannot be kept: {error.strerror}") from None
    except ValueError:
        raise DataError(f"{note}: is damaged; delete it and {path.name} to compute them anew") from None


def _check(path: Path, found: dict[str, Any], about: dict[str, Any]) -> None:
    for name, wanted in about.items():
        if found.get(name) != wanted:
            raise DataError(
                f"{path}: was computed for another {name} ({found.get(name)}, and {wanted} is needed): delete it to "
                "compute it anew, or take the run that it was made with"
            )


def _write_blank(path: Path, shape: tuple[int, ...]) -> None:
    """A file of ``BLANK``, written in pieces: it may be larger than memory."""
    temporary = path.with_name(path.name + ".tmp")
    row = np.full(shape[1:], BLANK, dtype=np.uint16).tobytes()
    with temporary.open("wb") as file:
        for _ in range(shape[0]):
            file.write(row)
    os.replace(temporary, path)
