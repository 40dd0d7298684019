"""Rows of annotations in a file, for data sets with millions of rows: memory use does not grow with their number.

One JSON list a line, beside an array of line offsets; a row is read and parsed when it is needed. Arrow files and
memory-mapped columns were measured too: they need more code, take longer for one row, and mapped pages count as memory.
Decoding processes receive single jobs and hold no rows.
"""

from __future__ import annotations

import hashlib
import itertools
import json
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

MIN_ROWS = 50_000  # fewer rows are kept in a list, which is smaller and faster
_CHUNK = 4096  # rows parsed at a time when all are read
_ROWS, _OFFSETS, _COUNTS = "rows.jsonl", "offsets.npy", "rows.json"


def collect(examples: Iterable[Example], folder: Path | None = None) -> Sequence[Example]:
    """Examples as a list if they are few, else as a ``Table`` in a temporary file of this process.

    Args:
        examples: iterated once.
        folder: for the temporary file; None takes the system's.

    Raises:
        OutputError: the disk is full.
    """
    source = iter(examples)
    first = list(itertools.islice(source, MIN_ROWS))
    if len(first) < MIN_ROWS:
        return first
    try:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".rows-", dir=folder) as temporary:
            return Table.write(Path(temporary), itertools.chain(first, source))  # open files outlive their names
    except OSError as error:
        where = folder or tempfile.gettempdir()
        raise OutputError(f"{where}: cannot store the rows of the annotations: {error.strerror}; free space") from None


def count_clips(examples: Sequence[Example]) -> int:
    """The number of different clips."""
    return examples.clips if isinstance(examples, Table) else len({example.clip.id for example in examples})


class Table(Sequence[Example]):
    """The rows in a folder, as a sequence of ``Example``s.

    Args:
        folder: written by ``write``.

    Attributes:
        clips: number of different clips.

    Raises:
        DataError: the folder holds no rows, or not all of them.
    """

    def __init__(self, folder: Path) -> None:
        try:
            counts = json.loads((folder / _COUNTS).read_text(encoding="utf-8"))
            self.clips = int(counts["clips"])
            self._offsets: NDArray[np.int64] = np.load(folder / _OFFSETS, mmap_mode="r")
            self._file = (folder / _ROWS).open("rb", buffering=0)
            size = os.fstat(self._file.fileno()).st_size
            if len(self._offsets) != int(counts["rows"]) + 1 or size != int(self._offsets[-1]):
                raise ValueError(f"{size} bytes and {len(self._offsets) - 1} offsets for {counts['rows']} rows")
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{folder}: is not a complete table of rows ({error}); write it again") from None

    @classmethod
    def write(cls, folder: Path, examples: Iterable[Example]) -> Self:
        """Write rows into an empty folder, one at a time, and open them.

        Raises:
            OSError: the disk is full or the folder cannot be written.
        """
        offsets, hashes = array("q", [0]), array("Q")
        with (folder / _ROWS).open("wb") as file:
            for example in examples:
                offsets.append(offsets[-1] + file.write(_to_line(example)))
                clip = example.clip.id.encode("utf-8", "surrogatepass")
                hashes.frombytes(hashlib.blake2b(clip, digest_size=8).digest())
        np.save(folder / _OFFSETS, np.frombuffer(offsets, dtype=np.int64))
        clips = np.frombuffer(hashes, dtype=np.uint64)
        clips.sort()
        distinct = int(np.count_nonzero(clips[1:] != clips[:-1])) + bool(len(clips))
        (folder / _COUNTS).write_text(json.dumps({"rows": len(clips), "clips": distinct}), encoding="utf-8")
        return cls(folder)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self)))]
        row = index + len(self) if index < 0 else index
        if not 0 <= row < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return _from_line(self._read(row, row + 1))

    def __iter__(self) -> Iterator[Example]:
        for start in range(0, len(self), _CHUNK):
            yield from map(_from_line, self._read(start, min(start + _CHUNK, len(self))).splitlines())

    def _read(self, start: int, stop: int) -> bytes:
        begin, end = int(self._offsets[start]), int(self._offsets[stop])
        return os.pread(self._file.fileno(), end - begin, begin)


def _to_line(row: Example) -> bytes:
    clip = row.clip
    values = [
        row.key, row.video, os.fspath(clip.path), clip.start, clip.end, clip.frames, row.captions, row.question,
        row.answer, row.choices, row.label, row.kind, row.temporal,
    ]  # fmt: skip
    return json.dumps(values, separators=(",", ":")).encode("ascii") + b"\n"


def _from_line(line: bytes) -> Example:
    key, video, path, start, end, frames, captions, question, answer, choices, label, kind, temporal = json.loads(line)
    clip = Clip(Path(path), start, end, tuple(frames))
    return Example(key, video, clip, tuple(captions), question, answer, tuple(choices), label, kind, temporal)
