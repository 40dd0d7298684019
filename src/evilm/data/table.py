"""Examples by the million: columns in memory-mapped files, so that memory does not grow with their number.

Each column of texts is its bytes end to end and where each text ends; a row becomes an ``Example`` when it is asked
for. Pages that were read are given back before they come to ``_MAPPED`` bytes, so that a process that has seen all
rows holds no more of them than one that has seen few; the kernel keeps them for whoever asks next, and all processes
share them. Processes that decode are sent single jobs and hold no rows at all.
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
from typing import TYPE_CHECKING, Self, overload

import numpy as np

from evilm.errors import DataError, OutputError
from evilm.types import Clip, Example

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

KEEP = 50_000  # rows below which a plain list is smaller and faster
_CHUNK = 4096  # rows written or read at a time
_MAPPED = 128 << 20  # bytes of pages that may be held until they are given back
_AROUND = 1 << 16  # bytes that Linux maps around each one that is touched
_NO_LABEL = np.iinfo(np.int64).min
_TEXTS = ("key", "video", "path", "frames", "captions", "question", "answer", "choices", "kind")
_FIELDS = np.dtype([("start", "<f8"), ("end", "<f8"), ("label", "<i8"), ("temporal", "i1")])  # -1: not said
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
            self._numbers = _Mapped(folder / "numbers", _FIELDS.itemsize * self._count)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{folder}: holds no whole table of rows ({error}); write it anew") from None
        fields = np.frombuffer(self._numbers.memory, dtype=_FIELDS)
        self._fields: NDArray[np.void] = fields[: self._count]
        parts = [self._numbers, *(part for each in self._texts.values() if each is not None for part in each.parts)]
        self._touched = _AROUND * len(parts)  # by one row, wherever it is
        self._row_bytes = sum(len(part.memory) for part in parts) / max(1, self._count)
        self._held = 0.0

    @classmethod
    def write(cls, folder: Path, examples: Iterable[Example]) -> Self:
        """Write rows into an empty folder, one at a time, and map them.

        Raises:
            OSError: the disk is full or the folder cannot be written.
        """
        writers = {name: _Writer(folder, name) for name in _TEXTS}
        hashes, count, source = array("Q"), 0, iter(examples)
        with (folder / "numbers").open("wb") as numbers:
            while rows := list(itertools.islice(source, _CHUNK)):
                for name, texts in _columns(rows).items():
                    writers[name].add(texts)
                numbers.write(_numbers(rows).tobytes())
                for example in rows:
                    identity = example.clip.id.encode("utf-8", "surrogatepass")
                    hashes.frombytes(hashlib.blake2b(identity, digest_size=8).digest())
                count += len(rows)
        named = [name for name, writer in writers.items() if writer.close()]
        clips = _distinct(np.frombuffer(hashes, dtype=np.uint64))
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
            return [self[row] for row in range(*index.indices(self._count))]
        row = index + self._count if index < 0 else index
        if not 0 <= row < self._count:
            raise IndexError(f"row {index} of {self._count}")
        return self._rows(row, row + 1)[0]

    def __iter__(self) -> Iterator[Example]:
        for start in range(0, self._count, _CHUNK):
            yield from self._rows(start, min(start + _CHUNK, self._count))

    def _rows(self, start: int, stop: int) -> list[Example]:
        """Rows ``start`` to ``stop``, at most a chunk of them."""
        self._held += self._touched + self._row_bytes * (stop - start)
        if self._held >= _MAPPED:
            self._release()
        none: list[tuple[str, ...]] = [()] * (stop - start)
        texts = {name: none if each is None else each.rows(start, stop) for name, each in self._texts.items()}
        numbers = self._fields[start:stop].tolist()
        found: list[Example] = []
        for i, (begin, end, label, temporal) in enumerate(numbers):
            path = Path(texts["path"][i][0])
            found.append(
                Example(
                    key=texts["key"][i][0],
                    video=texts["video"][i][0],
                    clip=Clip(path, begin, None if math.isnan(end) else end, texts["frames"][i]),
                    captions=texts["captions"][i],
                    question=next(iter(texts["question"][i]), None),
                    answer=next(iter(texts["answer"][i]), None),
                    choices=texts["choices"][i],
                    label=None if label == _NO_LABEL else label,
                    kind=next(iter(texts["kind"][i]), None),
                    temporal=None if temporal < 0 else bool(temporal),
                )
            )
        return found

    def _release(self) -> None:
        """Give pages that were read back to the kernel, which still has them."""
        self._held = 0.0
        self._numbers.release()
        for column in self._texts.values():
            if column is not None:
                column.release()


def _distinct(hashes: NDArray[np.uint64]) -> int:
    """How many different ones there are; sorts them where they lie, as a copy of ten million takes 80 MB."""
    hashes.sort()
    changes = (np.count_nonzero(np.diff(hashes[i : i + _CHUNK + 1])) for i in range(0, len(hashes), _CHUNK))
    return int(sum(changes)) + bool(len(hashes))


def _columns(rows: Sequence[Example]) -> dict[str, list[Sequence[str]]]:
    """The texts of some rows by column; what may be missing is a text or none."""
    return {
        "key": [(row.key,) for row in rows],
        "video": [(row.video,) for row in rows],
        "path": [(os.fspath(row.clip.path),) for row in rows],
        "frames": [row.clip.frames for row in rows],
        "captions": [row.captions for row in rows],
        "choices": [row.choices for row in rows],
        "question": [() if row.question is None else (row.question,) for row in rows],
        "answer": [() if row.answer is None else (row.answer,) for row in rows],
        "kind": [() if row.kind is None else (row.kind,) for row in rows],
    }


def _numbers(rows: Sequence[Example]) -> NDArray[np.void]:
    table = np.empty(len(rows), dtype=_FIELDS)
    table["start"] = [row.clip.start for row in rows]
    table["end"] = [math.nan if row.clip.end is None else row.clip.end for row in rows]
    table["label"] = [_NO_LABEL if row.label is None else row.label for row in rows]
    table["temporal"] = [-1 if row.temporal is None else row.temporal for row in rows]
    return table


class _Writer:
    """One column of texts, any number a row: their bytes, the end of each text, and the end of each row's texts."""

    def __init__(self, folder: Path, name: str) -> None:
        self._data, self._ends, self._rows = (
            (folder / f"{name}.{kind}").open("wb") for kind in ("utf8", "ends", "rows")
        )
        self._bytes = self._items = 0

    def add(self, rows: Sequence[Sequence[str]]) -> None:
        encoded = [text.encode("utf-8", "surrogatepass") for texts in rows for text in texts]
        self._data.write(b"".join(encoded))
        ends = self._bytes + np.cumsum(np.fromiter(map(len, encoded), dtype="<i8", count=len(encoded)))
        counts = self._items + np.cumsum(np.fromiter(map(len, rows), dtype="<i8", count=len(rows)))
        self._ends.write(ends.tobytes())
        self._rows.write(counts.tobytes())
        self._items += len(encoded)
        self._bytes = int(ends[-1]) if encoded else self._bytes

    def close(self) -> bool:
        """Whether there is anything in the column."""
        for file in (self._data, self._ends, self._rows):
            file.close()
        return self._items > 0


class _Texts:
    """A column that ``_Writer`` wrote."""

    def __init__(self, folder: Path, name: str, count: int) -> None:
        self._counts = _Mapped(folder / f"{name}.rows", 8 * count)
        self._row_ends: NDArray[np.int64] = np.frombuffer(self._counts.memory, dtype="<i8")
        items = int(self._row_ends[-1])
        self._ends = _Mapped(folder / f"{name}.ends", 8 * items)
        self._item_ends: NDArray[np.int64] = np.frombuffer(self._ends.memory, dtype="<i8")
        self._data = _Mapped(folder / f"{name}.utf8", int(self._item_ends[-1]))
        self.parts = (self._counts, self._ends, self._data)

    def rows(self, start: int, stop: int) -> list[tuple[str, ...]]:
        """The texts of some rows."""
        first = int(self._row_ends[start - 1]) if start else 0
        counts = [first, *self._row_ends[start:stop].tolist()]
        begin = int(self._item_ends[first - 1]) if first else 0
        bounds = [begin, *self._item_ends[first : counts[-1]].tolist()]
        data = self._data.memory[begin : bounds[-1]]
        texts = [data[a - begin : b - begin].decode("utf-8", "surrogatepass") for a, b in itertools.pairwise(bounds)]
        return [tuple(texts[a - first : b - first]) for a, b in itertools.pairwise(counts)]

    def release(self) -> None:
        for part in self.parts:
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
