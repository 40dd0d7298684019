"""``evilm data pack``: decode each clip once, resize its frames and write them into WebDataset shards.

Clips are packed in the order of the annotations, ``per_shard`` to a shard. A shard and its part of the index are
written completely or not at all, so an interrupted pack continues with the next shard and ends with the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import shutil
import tarfile
import uuid
from collections import deque
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import av
import numpy as np

from evilm.data import packed_frames
from evilm.data.frame_cache import decode_all, file_stamp, folder_lock
from evilm.data.packed_frames import PackConfig, clip_hash, index_type
from evilm.data.pixels import FilePixels, Job
from evilm.data.table import Table
from evilm.data.workers import TIMEOUT
from evilm.errors import OutputError, VideoError
from evilm.files import write_atomic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from evilm.types import Example

    # Writes shards elsewhere: from all numbers, what makes a ``Part`` of one, decoders and seconds of a clip to the
    # number of clips of each shard that is complete.
    Runner = Callable[[Sequence[int], Callable[[int], "Part"], int, float], Iterable[int]]

_PLAN = "plan.json"


class Part(NamedTuple):
    """A shard that is to be written: where, how, its number, and its clips with their captions."""

    folder: Path
    split: str
    config: PackConfig
    number: int
    clips: Sequence[Example]

    @property
    def path(self) -> Path:
        return self.folder / f"{self.split}-{self.number:06d}.tar"


@dataclass(frozen=True, slots=True)
class PackResult:
    """The result of ``pack``.

    Attributes:
        folder: of the split.
        clips: number of clips.
        unreadable: number of clips without frames.
        written: shards written by this call; 0 if all were there.
        shards: number of shards.
    """

    folder: Path
    clips: int
    unreadable: int
    written: int
    shards: int


def pack(
    rows: Sequence[Example], out: Path, split: str, config: PackConfig, *, workers: int = 0, timeout: float = TIMEOUT,
    progress: Callable[[int, int], None] | None = None, runner: Runner | None = None,
) -> PackResult:  # fmt: skip
    """Pack the clips of some rows into ``out/split``, continuing an interrupted pack.

    Args:
        rows: of an annotation file; the captions of rows with the same clip are joined.
        out: folder of packs.
        split: name of the folder and of its shards.
        config: frame size, number and format.
        workers: decoding processes; 0 decodes in this process.
        timeout: maximum seconds for one clip, if ``workers`` decode.
        progress: called with the number of clips done and of all clips.
        runner: writes the shards elsewhere (see ``cluster``), where ``out`` has the same path; None: here.

    Raises:
        OutputError: the folder holds another pack or other files, or the disk is full.
    """
    folder = out / split
    try:
        folder.mkdir(parents=True, exist_ok=True)
        other = [path.name for path in folder.iterdir() if path.name != ".lock"]
        if other and not (folder / _PLAN).is_file():
            raise OutputError(f"{folder}: holds other files ({min(other)}); name another folder")
        with folder_lock(folder):
            return _Packer(rows, folder, split, config).run(workers, timeout, progress, runner)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written: {error.strerror or error}; free space and run again") from None


class _Packer:
    """State of one ``pack``."""

    def __init__(self, rows: Sequence[Example], folder: Path, split: str, config: PackConfig) -> None:
        self.rows, self.folder, self.split, self.config = rows, folder, split, config
        self.groups = _RowsByClip(rows)
        self.shards = -(-len(self.groups) // config.per_shard)

    def run(
        self, workers: int, timeout: float, progress: Callable[[int, int], None] | None, runner: Runner | None
    ) -> PackResult:
        self._check_plan()
        missing = [number for number in range(self.shards) if not self._index_part(number).is_file()]
        if missing or not (self.folder / packed_frames.SETTINGS).is_file():
            finished = len(self.groups) - sum(len(self._span(number)) for number in missing)

            def told(clips: int) -> None:
                nonlocal finished
                finished += clips
                if progress is not None:
                    progress(finished, len(self.groups))

            if runner is not None:
                for clips in runner(missing, self._part, workers, timeout):
                    told(clips)
            else:
                write_parts(map(self._part, missing), self.config, workers, timeout, lambda: told(1))
            self._finish()
        unreadable = len(packed_frames.read_problems(self.folder / packed_frames.PROBLEMS))
        return PackResult(self.folder, len(self.groups), unreadable, len(missing), self.shards)

    def _check_plan(self) -> None:
        """Check that the shards in the folder are of the same clips and settings."""
        digest = hashlib.sha256()
        for i in range(len(self.groups)):
            clip = self.rows[self.groups[i][0]].clip
            digest.update(f"\n{clip.id} {file_stamp(clip.path)}".encode("utf-8", "surrogatepass"))
        plan = {"split": self.split, "clips": digest.hexdigest(), "config": self.config.model_dump(mode="json")}
        path = self.folder / _PLAN
        if path.is_file() and json.loads(path.read_text(encoding="utf-8")) != plan:
            raise OutputError(
                f"{self.folder}: holds frames of other clips, or packed with other settings: name another folder, or "
                "delete it"
            )
        write_atomic(path, json.dumps(plan, indent=1, sort_keys=True))

    def _span(self, number: int) -> range:
        return range(number * self.config.per_shard, min((number + 1) * self.config.per_shard, len(self.groups)))

    def _index_part(self, number: int) -> Path:
        return self.folder / f"{self.split}-{number:06d}.index.npy"

    def _clip(self, i: int) -> Example:
        """Clip ``i`` with the captions of all its rows."""
        rows = self.groups[i]
        first = self.rows[rows[0]]
        if len(rows) == 1:
            return first
        captions = dict.fromkeys(caption for row in rows for caption in self.rows[row].captions)
        return replace(first, captions=tuple(captions))

    def _part(self, number: int) -> Part:
        return Part(self.folder, self.split, self.config, number, [self._clip(i) for i in self._span(number)])

    def _finish(self) -> None:
        """Join the parts of the index, write the rows, and last the settings, which mark the pack as complete."""
        index = np.concatenate([np.load(self._index_part(number)) for number in range(self.shards)])
        _write_array(self.folder / packed_frames.INDEX, index)
        rows = self.folder / packed_frames.ROWS
        shutil.rmtree(rows, ignore_errors=True)
        rows.mkdir()
        Table.write(rows, (self._clip(i) for i in range(len(self.groups))))
        order = np.zeros(len(self.groups), dtype=[("hash", "<u8"), ("row", "<i4")])
        for i in range(len(self.groups)):
            order[i] = (clip_hash(self.rows[self.groups[i][0]].clip.id), i)
        order.sort(order="hash")
        _write_array(self.folder / packed_frames.ORDER, order)
        problems = b"".join(self._index_part(n).with_suffix(".problems").read_bytes() for n in range(self.shards))
        write_atomic(self.folder / packed_frames.PROBLEMS, problems)
        about = {"split": self.split, "clips": len(self.groups), "config": self.config.model_dump(mode="json")}
        for left in self.folder.glob("*.tmp"):  # of killed processes
            left.unlink(missing_ok=True)
        write_atomic(self.folder / packed_frames.SETTINGS, json.dumps(about, indent=1, sort_keys=True))


def write_parts(
    parts: Iterable[Part], config: PackConfig, workers: int, timeout: float, progress: Callable[[], None] | None = None
) -> None:
    """Decode the clips of shards and write them; ``progress`` is called after each clip. Raises OSError."""
    waiting: deque[Part] = deque()  # their clips are being decoded

    def jobs() -> Iterator[Job]:
        for part in parts:
            waiting.append(part)
            yield from (Job(example.clip) for example in part.clips)

    decoder = partial(FilePixels(config.size, config.resize_mode).read, count=config.cached_frames)
    results = decode_all(jobs(), decoder, workers, timeout)
    for first in results:
        _write_part(waiting.popleft(), itertools.chain([first], results), progress)


def _write_part(
    part: Part, results: Iterator[NDArray[np.uint8] | VideoError], progress: Callable[[], None] | None
) -> None:
    """Write a shard, then its part of the index, which marks both as complete."""
    base = part.number * part.config.per_shard
    readable: list[int] = []
    problems: list[dict[str, str]] = []

    def samples() -> Iterator[tuple[str, dict[str, bytes]]]:
        for i, example in enumerate(part.clips):
            result = next(results)
            if isinstance(result, VideoError):
                problems.append({"clip": example.clip.id, "status": result.status, "reason": result.reason})
            else:
                readable.append(i)
                yield f"{base + i:09d}", {"json": _sample_json(example), **_encode(result, part.config)}
            if progress is not None:
                progress()

    places = write_shard(part.path, samples())
    index = np.zeros(len(part.clips), dtype=index_type(part.config))
    index["shard"] = -1
    for i, members in zip(readable, places, strict=True):
        frames = [place for kind, place in sorted(members.items()) if kind != "json"]
        index[i] = (part.number, [place.offset for place in frames], [place.size for place in frames])
    lines = "".join(json.dumps(problem, ensure_ascii=False) + "\n" for problem in problems)
    path = part.path.with_suffix(".index.npy")
    write_atomic(path.with_suffix(".problems"), lines.encode("utf-8", "surrogatepass"))
    _write_array(path, index)


class _RowsByClip:
    """The rows of each different clip, clips in their first order of appearance; three numbers a row."""

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


def _sample_json(example: Example) -> bytes:
    """The json of a sample, which the readers ``frames`` and ``shards`` understand."""
    values: dict[str, Any] = {"clip": example.clip.id, "video": example.video, "captions": list(example.captions)}
    if example.label is not None:
        values |= {"category": example.label, "label": example.label}  # the names of the two readers
    if example.kind is not None:
        values |= {"kind": example.kind}
    return json.dumps(values, ensure_ascii=True, sort_keys=True).encode()


def _encode(frames: NDArray[np.uint8], config: PackConfig) -> dict[str, bytes]:
    """The frames of a clip as members of a sample."""
    if config.frames == "raw":
        buffer = io.BytesIO()
        np.save(buffer, frames)
        return {"frames.npy": buffer.getvalue()}
    return {f"{i:02d}.jpg": jpeg(frame) for i, frame in enumerate(frames)}


def jpeg(pixels: NDArray[np.uint8]) -> bytes:
    """A frame (H, W, 3) as a JPEG of high quality."""
    context = av.CodecContext.create("mjpeg", "w")
    context.height, context.width = pixels.shape[:2]
    context.pix_fmt, context.time_base, context.thread_count = "yuvj420p", Fraction(1, 25), 1
    context.qmin, context.qmax = 1, 2
    picture = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuvj420p")
    picture.pts = 0
    packets = cast("list[bytes]", [*context.encode(picture), *context.encode(None)])
    return b"".join(bytes(packet) for packet in packets)


def _write_array(path: Path, array: NDArray[Any]) -> None:
    buffer = io.BytesIO()
    np.save(buffer, array)
    write_atomic(path, buffer.getvalue())


class Member(NamedTuple):
    """The position of a member's content in a tar file, in bytes."""

    offset: int
    size: int


def write_shard(path: Path, samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> list[dict[str, Member]]:
    """Write a WebDataset shard; equal samples give equal bytes, and the file appears complete or not at all.

    Args:
        path: of the tar file.
        samples: key and members of each; a member is named ``<key>.<kind>``.

    Returns:
        the position of each member of each sample.

    Raises:
        OSError: the disk is full or the folder cannot be written.
        ValueError: a key is empty or has a dot in its last part.
    """
    # A name of its own: on a cluster, a worker that was given up may still be writing the same shard.
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    places: list[dict[str, Member]] = []
    with temporary.open("wb") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for key, members in samples:
                if not key or "." in key.rpartition("/")[2]:
                    raise ValueError(f"{key!r} is not a valid key of a sample")
                place: dict[str, Member] = {}
                for kind, data in members.items():
                    entry = tarfile.TarInfo(f"{key}.{kind}")  # without time and owner
                    entry.size = len(data)
                    archive.addfile(entry, io.BytesIO(data))
                    blocks = -(-len(data) // tarfile.BLOCKSIZE)
                    place[kind] = Member(archive.offset - blocks * tarfile.BLOCKSIZE, len(data))
                places.append(place)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    return places
