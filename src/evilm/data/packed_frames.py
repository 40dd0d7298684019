"""Frames packed into shards by ``evilm data pack``: a frame cache that can be copied to any machine.

    OUT/train/
        pack.json                settings; written last
        train-000000.tar ...     <number>.json, and <number>.00.jpg ... or <number>.frames.npy (exact pixels)
        index.npy                shard, offsets and sizes of each clip's frames
        order.npy                clips sorted by the hash of their id
        rows/                    clips and captions, as a ``Table``
        problems.jsonl           status and reason of each clip that could not be read

The tar files are WebDataset shards. ``evilm.data.pack`` writes them.
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
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from evilm.types import Clip

SETTINGS, INDEX, ORDER, ROWS, PROBLEMS = "pack.json", "index.npy", "order.npy", "rows", "problems.jsonl"
_MAX_PIXELS = 1 << 24
_OPEN_SHARDS = 32


class PackConfig(Config):
    """How frames are packed; stored in ``pack.json``.

    Attributes:
        size: frame height and width in pixels.
        cached_frames: evenly spaced frames of each clip.
        resize_mode: ``crop`` or ``squash``, see ``pictures.to_rgb``.
        frames: ``jpeg`` is small and nearly exact; ``raw`` is exact and sixteen times as large.
        per_shard: clips of a shard.
    """

    size: int
    cached_frames: int = 8
    resize_mode: Fit = "crop"
    frames: Literal["jpeg", "raw"] = "jpeg"
    per_shard: int = 512


def index_type(config: PackConfig) -> np.dtype[Any]:
    """The type of an index row; shard -1 marks a clip that could not be read."""
    count = config.cached_frames if config.frames == "jpeg" else 1
    return np.dtype([("shard", "<i4"), ("offset", "<i8", (count,)), ("size", "<i4", (count,))])


def clip_hash(clip_id: str) -> int:
    """A 64-bit hash of a clip's id."""
    return int.from_bytes(hashlib.blake2b(clip_id.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


class PackedFrames:
    """The frames of one split, read from its shards; a ``Store``.

    Args:
        folder: written by ``pack``.

    Raises:
        DataError: the folder holds no finished pack.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            about = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
            self.config = PackConfig.model_validate(about["config"])
            self.split = str(about["split"])
            self._index: NDArray[np.void] = np.load(folder / INDEX, mmap_mode="r")
            self._order: NDArray[np.void] = np.load(folder / ORDER, mmap_mode="r")
        except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DataError(f"{folder}: is not a finished pack of frames ({reason}); run `evilm data pack`") from None
        self.rows = Table(folder / ROWS)
        self.problems = read_problems(folder / PROBLEMS)
        self.size, self.cached_frames = self.config.size, self.config.cached_frames
        self._open = functools.lru_cache(_OPEN_SHARDS)(_Shard)

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
        row = self.find(clip)
        if row is None:
            raise DataError(f"{clip.id}: is not among the clips packed in {self.folder}; pack the split again")
        return row

    def clip_id(self, row: int) -> str:
        return self.rows[row].clip.id

    def read(self, clip: Clip, chosen: NDArray[np.int64] | None = None) -> NDArray[np.uint8]:
        """The frames ``chosen`` (None: all) of a clip, (T, size, size, 3).

        Raises:
            VideoError: it could not be decoded when it was packed, or its shard is damaged (``corrupt``).
        """
        row = self.row(clip)
        if self._index["shard"][row] < 0:
            status, reason = self.problems.get(clip.id, ("corrupt", "could not be decoded when it was packed"))
            raise VideoError(clip.path, status, reason)
        return self._frames(row, range(self.cached_frames) if chosen is None else chosen.tolist())

    @property
    def encoded(self) -> bool:
        return self.config.frames == "jpeg"

    def frames_of(self, row: int) -> NDArray[np.uint8] | None:
        return None if self._index["shard"][row] < 0 else self._frames(row, range(self.cached_frames))

    def shard_of(self, clip: Clip) -> int:
        """The number of a clip's shard; -1 if the clip could not be read."""
        return int(self._index["shard"][self.row(clip)])

    def shard(self, number: int) -> Path:
        return self.folder / f"{self.split}-{number:06d}.tar"

    def _frames(self, row: int, chosen: Sequence[int]) -> NDArray[np.uint8]:
        entry = self._index[row]
        file = self._open(self.shard(int(entry["shard"])))
        frames: dict[int, NDArray[np.uint8]] = {}
        if self.config.frames == "raw":
            length = self.size * self.size * 3
            start = int(entry["offset"][0]) + int(entry["size"][0]) - self.cached_frames * length  # after the header
            for i in sorted(set(chosen)):
                data = file.read(start + i * length, length)
                frames[i] = np.frombuffer(data, np.uint8).reshape(self.size, self.size, 3)
        else:
            scale = VideoReformatter()
            for i in sorted(set(chosen)):
                data = file.read(int(entry["offset"][i]), int(entry["size"][i]))
                picture = decode(file.path, f"{row}.{i}", data, _MAX_PIXELS)
                square = scale.reformat(picture, self.size, self.size, "rgb24", threads=1)
                frames[i] = square.to_ndarray().astype(np.uint8, copy=False)
        return np.stack([frames[i] for i in chosen])


class _Shard:
    """An open tar file."""

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
            raise VideoError(self.path, "corrupt", "the shard is shorter than its index says: pack it again")
        return data


def packed_for(folder: Path, clip: Clip, size: int, resize_mode: Fit) -> PackedFrames:
    """The pack in ``folder`` (the folder itself, or one of its splits) that contains a clip.

    Raises:
        DataError: there is none.
        ConfigError: its frames have another size or resize mode.
    """
    candidates = [folder] if (folder / SETTINGS).is_file() else sorted(p.parent for p in folder.glob(f"*/{SETTINGS}"))
    if not candidates:
        raise DataError(f"{folder}: is not a finished pack of frames; `evilm data pack` writes one")
    for candidate in candidates:
        pack = PackedFrames(candidate)
        if pack.find(clip) is None:
            continue
        if (pack.size, pack.config.resize_mode) != (size, resize_mode):
            raise ConfigError(
                f"{candidate}: has frames of {pack.size}x{pack.size}, {pack.config.resize_mode}; this run needs "
                f"{size}x{size}, {resize_mode}: pack with --size {size} --resize-mode {resize_mode}"
            )
        return pack
    names = ", ".join(candidate.name for candidate in candidates)
    raise DataError(f"{folder}: has no frames of {clip.id} (in {names}); pack its split")


def read_problems(path: Path) -> dict[str, tuple[VideoStatus, str]]:
    """Status and reason of the clips that could not be read, by clip id."""
    if not path.is_file():
        return {}
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    return {row["clip"]: (row["status"], row["reason"]) for row in rows}
