"""Frames packed into shards: read like a cache, on any machine, and by anything that reads WebDataset.

    OUT/train/
        pack.json                what was packed and how; written last
        train-000000.tar ...     <number>.json, and <number>.00.jpg ... or <number>.frames.npy (exact)
        index.npy                where each clip's frames lie: shard, offsets, sizes
        order.npy                clips sorted by the hash of their id
        rows/                    the clips and their captions, as a ``Table``
        problems.jsonl           clips that could not be read, with status and reason

``evilm.data.pack`` writes it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from av.video.reformatter import VideoReformatter
from pydantic import ValidationError

from evilm.config import Config
from evilm.data.table import Table
from evilm.data.video import Fit
from evilm.data.video.pictures import decode
from evilm.errors import ConfigError, DataError, VideoError, VideoStatus

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from evilm.types import Clip

ABOUT, INDEX, ORDER, ROWS, PROBLEMS = "pack.json", "index.npy", "order.npy", "rows", "problems.jsonl"
_MAX_PIXELS = 1 << 24
_OPEN = 32  # shards kept open


class PackConfig(Config):
    """How frames are packed; ``pack.json`` holds it with what was found.

    Attributes:
        size: pixels of a side.
        candidates: evenly spaced frames kept of each clip.
        fit: ``crop`` or ``squash``, see ``pictures.to_rgb``.
        frames: ``jpeg`` is small and next to the truth, ``raw`` exact and sixteen times as large.
        per_shard: clips in a shard.
    """

    size: int
    cached_frames: int = 8
    resize_mode: Fit = "crop"
    frames: Literal["jpeg", "raw"] = "jpeg"
    per_shard: int = 512


def index_type(config: PackConfig) -> np.dtype[Any]:
    """One row of the index; a shard of -1 says that the clip could not be read."""
    count = config.cached_frames if config.frames == "jpeg" else 1
    return np.dtype([("shard", "<i4"), ("offset", "<i8", (count,)), ("size", "<i4", (count,))])


def clip_hash(key: str) -> int:
    """64 bits of a clip's id."""
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


class PackedFrames:
    """The frames of one split, out of its shards; a ``Store``.

    Args:
        folder: that ``pack`` wrote.

    Raises:
        DataError: it holds no pack, or not a whole one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
            self.config = PackConfig.model_validate(about["config"])
            self.split = str(about["split"])
            self._index: NDArray[np.void] = np.load(folder / INDEX, mmap_mode="r")
            self._order: NDArray[np.void] = np.load(folder / ORDER, mmap_mode="r")
        except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
            raise DataError(
                f"{folder}: holds no finished pack of frames ({_line(error)}); run `evilm data pack`"
            ) from None
        self.rows = Table(folder / ROWS)
        self.problems = read_problems(folder / PROBLEMS)
        self.size, self.candidates = self.config.size, self.config.cached_frames
        self._open = functools.lru_cache(_OPEN)(_Shard)

    def __reduce__(self) -> tuple[type[PackedFrames], tuple[Path]]:
        return PackedFrames, (self.folder,)

    def __len__(self) -> int:
        return len(self.rows)

    def find(self, clip: Clip) -> int | None:
        """The row of a clip, or None."""
        key = clip.id
        hashed = np.uint64(clip_hash(key))
        place = int(np.searchsorted(self._order["hash"], hashed))
        while place < len(self._order) and self._order["hash"][place] == hashed:
            row = int(self._order["row"][place])
            if self.clip_id(row) == key:
                return row
            place += 1
        return None

    def row(self, clip: Clip) -> int:
        found = self.find(clip)
        if found is None:
            raise DataError(f"{clip.id}: is not among the clips packed in {self.folder}; pack the split anew")
        return found

    def clip_id(self, row: int) -> str:
        return self.rows[row].clip.id

    def read(self, clip: Clip, chosen: NDArray[np.int64] | None = None) -> NDArray[np.uint8]:
        """The candidates ``chosen`` (None: all) of a clip, (T, size, size, 3).

        Raises:
            VideoError: it could not be decoded, as it was said then; or its shard is damaged (``corrupt``).
        """
        row = self.row(clip)
        if self._index["shard"][row] < 0:
            status, reason = self.problems.get(clip.id, ("corrupt", "could not be decoded when it was packed"))
            raise VideoError(clip.path, status, reason)
        return self._frames(row, range(self.candidates) if chosen is None else chosen.tolist())

    @property
    def encoded(self) -> bool:
        return self.config.frames == "jpeg"

    def frames_of(self, row: int) -> NDArray[np.uint8] | None:
        return None if self._index["shard"][row] < 0 else self._frames(row, range(self.candidates))

    def shard_of(self, clip: Clip) -> int:
        """The number of the shard that a clip lies in; -1 where it could not be read."""
        return int(self._index["shard"][self.row(clip)])

    def shard(self, number: int) -> Path:
        return self.folder / f"{self.split}-{number:06d}.tar"

    def _frames(self, row: int, chosen: Any) -> NDArray[np.uint8]:
        entry = self._index[row]
        file = self._open(self.shard(int(entry["shard"])))
        different = sorted(set(chosen))
        if self.config.frames == "raw":
            each = self.size * self.size * 3
            start = int(entry["offset"][0]) + int(entry["size"][0]) - self.candidates * each  # behind numpy's header
            found = {i: np.frombuffer(file.read(start + i * each, each), np.uint8) for i in different}
            shape = (self.size, self.size, 3)
            return np.stack([found[i].reshape(shape) for i in chosen])
        scale = VideoReformatter()
        pictures: dict[int, NDArray[np.uint8]] = {}
        for i in different:
            data = file.read(int(entry["offset"][i]), int(entry["size"][i]))
            picture = decode(file.path, f"{row}.{i}", data, _MAX_PIXELS)
            square = scale.reformat(picture, self.size, self.size, "rgb24", threads=1)
            pictures[i] = square.to_ndarray().astype(np.uint8, copy=False)
        return np.stack([pictures[i] for i in chosen])


class _Shard:
    """An open shard."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = path.open("rb", buffering=0)
        except OSError as error:
            raise VideoError(path, "not_a_file", f"cannot be read: {error.strerror}") from None

    def read(self, offset: int, size: int) -> bytes:
        try:
            data = os.pread(self._file.fileno(), size, offset)
        except OSError as error:
            raise VideoError(self.path, "corrupt", f"cannot be read: {error.strerror}") from None
        if len(data) < size:
            raise VideoError(self.path, "corrupt", "ends too soon: pack it anew")
        return data


def packed_for(folder: Path, clip: Clip, size: int, fit: Fit) -> PackedFrames:
    """The pack in ``folder`` (itself, or one of its splits) that has a clip.

    Raises:
        DataError: none has it, or there is none.
        ConfigError: it has frames of another size or fit.
    """
    places = [folder] if (folder / ABOUT).is_file() else sorted(path.parent for path in folder.glob(f"*/{ABOUT}"))
    if not places:
        raise DataError(f"{folder}: holds no finished pack of frames; `evilm data pack` writes one")
    for place in places:
        found = PackedFrames(place)
        if found.find(clip) is None:
            continue
        if (found.size, found.config.resize_mode) != (size, fit):
            raise ConfigError(
                f"{place}: has frames of {found.size}x{found.size}, {found.config.resize_mode}; this run needs "
                f"{size}x{size}, {fit}: pack with --size {size} --fit {fit}"
            )
        return found
    raise DataError(
        f"{folder}: has no frames of {clip.id} (in {', '.join(place.name for place in places)}); pack its split"
    )


def read_problems(path: Path) -> dict[str, tuple[VideoStatus, str]]:
    """Clip id to status and reason."""
    if not path.is_file():
        return {}
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    return {row["clip"]: (row["status"], row["reason"]) for row in rows}


def _line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
