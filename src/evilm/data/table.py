"""Examples by the million: columns in memory-mapped files, so that memory does not grow with their number.

Each column of texts is its bytes end to end and where each text ends; a row becomes an ``Example`` when it is asked
for. Pages that were read are given back now and then, so that a process that has seen all rows holds no more of them
than one that has seen few; the kernel keeps them for whoever asks next, and all processes share them. Processes that
decode are sent single jobs and hold no rows at all.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import mmap
import os
import tempfile
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Self, overload

import numpy as np

from evilm.errors import DataError, OutputError
from evilm.types import Clip, Example

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

KEEP = 50_000  # rows below which a plain list is smaller and faster
_BUFFER = 1 << 20  # bytes of a column that wait to be written
_RELEASE = 100_000  # rows read between two returns of their pages
_NO_LABEL = np.iinfo(np.int64).min
_TEXTS = ("key", "video", "path", "frames", "captions", "question", "answer", "choices", "kind")
_ABOUT = "rows.json"


def collect(examples: Iterable[Example], folder: Path | None = None) -> Sequence[Example]:
    """Examples as a list while they are few, else as a ``Table`` whose files go with the process.

    Args:
        examples: read once, one at a time.
        folder: on the disk that takes the files; None is the place for temporary ones.

    Raises:
        OutputError: the disk is full.
    """
    source = iter(examples)
    first = list(itertools.islice(source, KEEP))
    if len(first) < KEEP:
        return first
    try:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".rows-", dir=folder) as temporary:
            return Table.write(Path(temporary), itertools.chain(first, source))  # mapped, the files may go
    except OSError as error:
        where = folder or tempfile.gettempdir()
        raise OutputError(f"{where}: cannot keep the rows of the annotations: {error.strerror}; free space") from None


def distinct_clips(examples: Sequence[Example]) -> int:
    """How many clips the rows have."""
    return examples.clips if isinstance(examples, Table) else len({example.clip.id for example in examples})


class Table(Sequence[Example]):
    """The rows in a folder, as a sequence of ``Example``s.

    Args:
        folder: that ``write`` filled.

    Raises:
        DataError: it holds no rows, or not all of them.
    """

    def __init__(self, folder: Path) -> None:
        try:
            about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
            self._count, self.clips = int(about["rows"]), int(about["clips"])
            self._texts = {name: _Texts(folder, name, self._count) if name in about["texts"] else None
                           for name in _TEXTS}  # fmt: skip
            self._numbers = _Mapped(folder / "numbers", 24 * self._count)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{folder}: holds no whole table of rows ({error}); write it anew") from None
        fields = np.frombuffer(self._numbers.memory, dtype=[("start", "f8"), ("end", "f8"), ("label", "i8")])
        self._fields: NDArray[np.void] = fields[: self._count]
        self._read = 0

    @classmethod
    def write(cls, folder: Path, examples: Iterable[Example]) -> Self:
        """Write rows into an empty folder, one at a time, and map them.

        Raises:
            OSError: the disk is full or the folder cannot be written.
        """
        writers = {name: _Writer(folder, name) for name in _TEXTS}
        hashes, count = array("Q"), 0
        with (folder / "numbers").open("wb", _BUFFER) as numbers:
            for example in examples:
                clip = example.clip
                for name, texts in (
                    ("key", (example.key,)), ("video", (example.video,)), ("path", (os.fspath(clip.path),)),
                    ("frames", clip.frames), ("captions", example.captions), ("choices", example.choices),
                    ("question", _optional(example.question)), ("answer", _optional(example.answer)),
                    ("kind", _optional(example.kind)),
                ):  # fmt: skip
                    writers[name].add(texts)
                end = math.nan if clip.end is None else clip.end
                numbers.write(array("d", (clip.start, end)).tobytes())
                numbers.write(array("q", (_NO_LABEL if example.label is None else example.label,)).tobytes())
                digest = hashlib.blake2b(clip.id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
                hashes.append(int.from_bytes(digest, "little"))
                count += 1
        named = [name for name, writer in writers.items() if writer.close()]
        clips = len(np.unique(np.frombuffer(hashes, dtype=np.uint64))) if count else 0
        (folder / _ABOUT).write_text(json.dumps({"rows": count, "clips": clips, "texts": named}), encoding="utf-8")
        return cls(folder)

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self._row(row) for row in range(*index.indices(self._count))]
        row = index + self._count if index < 0 else index
        if not 0 <= row < self._count:
            raise IndexError(f"row {index} of {self._count}")
        return self._row(row)

    def __iter__(self) -> Iterator[Example]:
        return (self._row(row) for row in range(self._count))

    def _row(self, row: int) -> Example:
        self._read += 1
        if self._read % _RELEASE == 0:
            self._release()
        texts: dict[str, tuple[str, ...]] = {
            name: () if column is None else column[row] for name, column in self._texts.items()
        }
        start, end, label = self._fields[row].tolist()
        return Example(
            key=texts["key"][0],
            video=texts["video"][0],
            clip=Clip(Path(texts["path"][0]), start, None if math.isnan(end) else end, texts["frames"]),
            captions=texts["captions"],
            question=next(iter(texts["question"]), None),
            answer=next(iter(texts["answer"]), None),
            choices=texts["choices"],
            label=None if label == _NO_LABEL else label,
            kind=next(iter(texts["kind"]), None),
        )

    def _release(self) -> None:
        """Give pages that were read back to the kernel, which still has them."""
        self._numbers.release()
        for column in self._texts.values():
            if column is not None:
                column.release()


class _Writer:
    """One column of texts, any number a row: bytes, the end of each text, and the end of each row where it differs."""

    def __init__(self, folder: Path, name: str) -> None:
        self._files: list[BinaryIO] = [
            (folder / f"{name}.{kind}").open("wb", _BUFFER) for kind in ("utf8", "ends", "rows")
        ]
        self._bytes = self._items = 0

    def add(self, texts: tuple[str, ...]) -> None:
        data, ends, rows = self._files
        for text in texts:
            self._bytes += data.write(text.encode("utf-8", "surrogatepass"))
            ends.write(self._bytes.to_bytes(8, "little"))
        self._items += len(texts)
        rows.write(self._items.to_bytes(8, "little"))

    def close(self) -> bool:
        """Whether there is anything in the column."""
        for file in self._files:
            file.close()
        return self._items > 0


class _Texts:
    """A column that ``_Writer`` wrote."""

    def __init__(self, folder: Path, name: str, count: int) -> None:
        self._rows = _Mapped(folder / f"{name}.rows", 8 * count)
        self._row_ends: NDArray[np.int64] = np.frombuffer(self._rows.memory, dtype="<i8")
        items = int(self._row_ends[-1])
        self._ends = _Mapped(folder / f"{name}.ends", 8 * items)
        self._item_ends: NDArray[np.int64] = np.frombuffer(self._ends.memory, dtype="<i8")
        self._data = _Mapped(folder / f"{name}.utf8", int(self._item_ends[-1]))

    def __getitem__(self, row: int) -> tuple[str, ...]:
        first = int(self._row_ends[row - 1]) if row else 0
        ends = self._item_ends[max(0, first - 1) : int(self._row_ends[row])].tolist()
        bounds = ends if first else [0, *ends]
        data = self._data.memory
        return tuple(data[a:b].decode("utf-8", "surrogatepass") for a, b in itertools.pairwise(bounds))

    def release(self) -> None:
        for part in (self._rows, self._ends, self._data):
            part.release()


class _Mapped:
    """A file in memory, read only."""

    def __init__(self, path: Path, size: int) -> None:
        if path.stat().st_size != size:
            raise ValueError(f"{path.name} has {path.stat().st_size} bytes, {size} are needed")
        with path.open("rb") as file:  # an empty file cannot be mapped
            self.memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else mmap.mmap(-1, 8)

    def release(self) -> None:
        if hasattr(mmap, "MADV_DONTNEED"):
            self.memory.madvise(mmap.MADV_DONTNEED)


def _optional(text: str | None) -> tuple[str, ...]:
    return () if text is None else (text,)
