"""``evilm data pack``: decode once, resize, write shards, so that later epochs only read small pictures.

Clips are packed in the order of the annotations, ``per_shard`` to a shard. A shard appears whole or not at all, with
its part of the index, so a stopped pack goes on with the next shard and ends in the same bytes as one that was not.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, cast

import av
import numpy as np

from evilm.data import packed, shards
from evilm.data.frame_cache import age, alone, decoded
from evilm.data.packed import PackConfig, clip_hash, index_type
from evilm.data.pixels import Decoding, Job
from evilm.data.table import Table
from evilm.data.workers import TIMEOUT
from evilm.errors import OutputError, VideoError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from evilm.types import Example

_PLAN = "plan.json"


@dataclass(frozen=True, slots=True)
class Packed:
    """What ``pack`` came to.

    Attributes:
        folder: of the split.
        clips, unreadable: how many there are, and how many of them have no frames.
        written: shards written now; 0 where all was there.
        shards: in all.
    """

    folder: Path
    clips: int
    unreadable: int
    written: int
    shards: int


def pack(
    rows: Sequence[Example], out: Path, split: str, config: PackConfig, *, workers: int = 0, timeout: float = TIMEOUT,
    progress: Callable[[int, int], None] | None = None,
) -> Packed:  # fmt: skip
    """Pack the clips of some rows into ``out/split``, going on where it was stopped.

    Args:
        rows: of an annotation file; captions of rows that share a clip are joined.
        out: folder of packs.
        split: names the folder and its shards.
        config: how.
        workers: processes that decode; 0 decodes in this one.
        timeout: seconds that one clip may take, where processes decode.
        progress: called with clips done and clips in all.

    Raises:
        OutputError: the folder holds another pack or something else, or the disk is full.
    """
    folder = out / split
    try:
        _claim(folder)
        with alone(folder):
            return _Packing(rows, folder, split, config).run(workers, timeout, progress)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written: {error.strerror or error}; free space and go on") from None


class _Packing:
    """One pack in the making."""

    def __init__(self, rows: Sequence[Example], folder: Path, split: str, config: PackConfig) -> None:
        self.rows, self.folder, self.split, self.config = rows, folder, split, config
        self.groups = _Groups(rows)
        self.shards = -(-len(self.groups) // config.per_shard)

    def run(self, workers: int, timeout: float, progress: Callable[[int, int], None] | None) -> Packed:
        self._check_plan()
        done = [number for number in range(self.shards) if self._part(number).is_file()]
        missing = [number for number in range(self.shards) if number not in set(done)]
        if missing or not (self.folder / packed.ABOUT).is_file():
            clips = (self._clip(i) for number in missing for i in self._span(number))
            decoding = Decoding(self.config.cached_frames, self.config.size, self.config.resize_mode)
            results = decoded((Job(example.clip) for example in clips), decoding, workers, timeout)
            finished = sum(len(self._span(number)) for number in done)
            for number in missing:
                self._shard(number, results, lambda n, base=finished: progress and progress(base + n, len(self.groups)))
                finished += len(self._span(number))
            self._finish()
        unreadable = len(packed.read_problems(self.folder / packed.PROBLEMS))
        return Packed(self.folder, len(self.groups), unreadable, len(missing), self.shards)

    def _check_plan(self) -> None:
        """That what lies here is a part of this very pack."""
        digest = hashlib.sha256()
        for i in range(len(self.groups)):
            clip = self.rows[self.groups[i][0]].clip
            digest.update(f"\n{clip.id} {age(clip.path)}".encode("utf-8", "surrogatepass"))
        plan = {"split": self.split, "clips": digest.hexdigest(), "config": self.config.model_dump(mode="json")}
        path = self.folder / _PLAN
        if path.is_file() and json.loads(path.read_text(encoding="utf-8")) != plan:
            raise OutputError(
                f"{self.folder}: holds frames of other clips, or packed otherwise: name another folder, or delete it"
            )
        _write_json(path, plan)

    def _span(self, number: int) -> range:
        return range(number * self.config.per_shard, min((number + 1) * self.config.per_shard, len(self.groups)))

    def _part(self, number: int) -> Path:
        return self.folder / f"{self.split}-{number:06d}.index.npy"

    def _clip(self, i: int) -> Example:
        """Clip ``i`` with the captions of all rows that show it."""
        shown = self.groups[i]
        first = self.rows[shown[0]]
        if len(shown) == 1:
            return first
        captions = dict.fromkeys(caption for row in shown for caption in self.rows[row].captions)
        return replace(first, captions=tuple(captions))

    def _shard(
        self, number: int, results: Iterator[NDArray[np.uint8] | VideoError], said: Callable[[int], Any]
    ) -> None:
        """Write a shard, then its part of the index, whose presence says that both are whole."""
        span = self._span(number)
        readable: list[int] = []
        problems: list[dict[str, str]] = []

        def contents() -> Iterator[tuple[str, dict[str, bytes]]]:
            for done, i in enumerate(span, 1):
                example, found = self._clip(i), next(results)
                if isinstance(found, VideoError):
                    problems.append({"clip": example.clip.id, "status": found.status, "reason": found.reason})
                else:
                    readable.append(i)
                    yield f"{i:09d}", {"json": _facts(example), **_encoded(found, self.config)}
                said(done)

        places = shards.write(self.folder / f"{self.split}-{number:06d}.tar", contents())
        index = np.zeros(len(span), dtype=index_type(self.config))
        index["shard"] = -1
        for i, members in zip(readable, places, strict=True):
            frames = [place for kind, place in sorted(members.items()) if kind != "json"]
            row = (number, [place.offset for place in frames], [place.size for place in frames])
            index[i - span.start] = row
        lines = "".join(json.dumps(problem, ensure_ascii=False) + "\n" for problem in problems)
        part = self._part(number)
        _write_bytes(part.with_suffix(".problems"), lines.encode("utf-8", "surrogatepass"))
        _write_array(part, index)

    def _finish(self) -> None:
        """Join the parts of the index, write the rows, and last the mark that all is there."""
        index = np.concatenate([np.load(self._part(number)) for number in range(self.shards)])
        _write_array(self.folder / packed.INDEX, index)
        rows = self.folder / packed.ROWS
        shutil.rmtree(rows, ignore_errors=True)
        rows.mkdir()
        Table.write(rows, (self._clip(i) for i in range(len(self.groups))))
        order = np.zeros(len(self.groups), dtype=[("hash", "<u8"), ("row", "<i4")])
        for i in range(len(self.groups)):
            order[i] = (clip_hash(self.rows[self.groups[i][0]].clip.id), i)
        order.sort(order="hash")
        _write_array(self.folder / packed.ORDER, order)
        problems = b"".join(self._part(n).with_suffix(".problems").read_bytes() for n in range(self.shards))
        _write_bytes(self.folder / packed.PROBLEMS, problems)
        about = {"split": self.split, "clips": len(self.groups), "config": self.config.model_dump(mode="json")}
        _write_json(self.folder / packed.ABOUT, about)


class _Groups:
    """The rows of each distinct clip, clips in the order in which they first come; three numbers a row."""

    def __init__(self, rows: Sequence[Example]) -> None:
        hashes = np.fromiter((clip_hash(example.clip.id) for example in rows), dtype=np.uint64, count=len(rows))
        _, first, group = np.unique(hashes, return_index=True, return_inverse=True)
        self._rows: NDArray[np.int64] = np.argsort(group, kind="stable")
        self._ends: NDArray[np.int64] = np.cumsum(np.bincount(group))
        self._order: NDArray[np.int64] = np.argsort(first, kind="stable")

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, i: int) -> list[int]:
        group = int(self._order[i])
        start = int(self._ends[group - 1]) if group else 0
        return self._rows[start : int(self._ends[group])].tolist()


def _facts(example: Example) -> bytes:
    """What the json of a sample says; the readers ``frames`` and ``shards`` read it again."""
    clip = example.clip
    facts: dict[str, Any] = {"clip": clip.id, "video": example.video, "captions": list(example.captions)}
    if example.label is not None:
        facts |= {"category": example.label, "label": example.label}  # as two readers call it
    if example.kind is not None:
        facts |= {"kind": example.kind}
    return json.dumps(facts, ensure_ascii=True, sort_keys=True).encode()


def _encoded(frames: NDArray[np.uint8], config: PackConfig) -> dict[str, bytes]:
    """The frames of a clip as members of a sample."""
    if config.frames == "raw":
        buffer = io.BytesIO()
        np.save(buffer, frames)
        return {"frames.npy": buffer.getvalue()}
    return {f"{i:02d}.jpg": jpeg(frame) for i, frame in enumerate(frames)}


def jpeg(pixels: NDArray[np.uint8]) -> bytes:
    """One frame (H, W, 3) as a JPEG of high quality."""
    context = av.CodecContext.create("mjpeg", "w")
    context.height, context.width = pixels.shape[:2]
    context.pix_fmt, context.time_base, context.thread_count = "yuvj420p", Fraction(1, 25), 1
    context.qmin, context.qmax = 1, 2
    picture = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuvj420p")
    picture.pts = 0
    packets = cast("list[bytes]", [*context.encode(picture), *context.encode(None)])
    return b"".join(bytes(packet) for packet in packets)


def _claim(folder: Path) -> None:
    """Make the folder, or see that it is a pack's."""
    folder.mkdir(parents=True, exist_ok=True)
    strange = [path.name for path in folder.iterdir() if path.name != ".lock"]
    if strange and not (folder / _PLAN).is_file():
        raise OutputError(f"{folder}: holds something else ({min(strange)}); name another folder")


def _write_json(path: Path, value: Any) -> None:
    _write_bytes(path, json.dumps(value, indent=1, sort_keys=True).encode())


def _write_array(path: Path, array: NDArray[Any]) -> None:
    buffer = io.BytesIO()
    np.save(buffer, array)
    _write_bytes(path, buffer.getvalue())


def _write_bytes(path: Path, data: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
