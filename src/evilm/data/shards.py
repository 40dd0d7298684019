"""WebDataset shards: tar files in which the members of a sample follow each other and share a name up to its first dot.

Written whole or not at all, the same bytes for the same samples; read in order from any place, which is a shard and an
offset in it, or by random access through ``container.tar_members``.
"""

from __future__ import annotations

import os
import tarfile
from io import BytesIO
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from evilm.errors import AnnotationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

BLOCK = tarfile.BLOCKSIZE  # headers and contents begin at multiples of it


class Place(NamedTuple):
    """Where reading goes on: a shard by its number in the list, and the offset of a sample's first header in it."""

    shard: int = 0
    offset: int = 0


class Sample(NamedTuple):
    """One sample of a shard.

    Attributes:
        key: the common name of its members.
        members: their bytes by what follows the first dot: ``jpg``, ``00.jpg``, ``json``.
        after: where the next sample is.
    """

    key: str
    members: dict[str, bytes]
    after: Place


def split_name(name: str) -> tuple[str, str]:
    """A member's name as the key of its sample and the rest: ``a/b.00.jpg`` to ``a/b`` and ``00.jpg``."""
    folder, slash, base = name.rpartition("/")
    stem, _, kind = base.partition(".")
    return folder + slash + stem, kind.lower()


def samples(shards: Sequence[Path], place: Place = Place()) -> Iterator[Sample]:  # noqa: B008, it is a constant
    """The samples of shards in order, from a place on.

    Raises:
        AnnotationError: a shard is missing, damaged, or no uncompressed tar.
    """
    for number in range(place.shard, len(shards)):
        path = shards[number]
        start = place.offset if number == place.shard else 0
        try:
            with path.open("rb") as file:
                for key, members, end in _groups(file, start):
                    last = end is None
                    yield Sample(key, members, Place(number + 1) if last else Place(number, end or 0))
        except OSError as error:
            raise AnnotationError(path, f"cannot be read: {error.strerror}") from None
        except (tarfile.TarError, ValueError, EOFError) as error:
            raise AnnotationError(path, f"cannot be read as an uncompressed tar: {error}") from None


def _groups(file: BinaryIO, start: int) -> Iterator[tuple[str, dict[str, bytes], int | None]]:
    """Key, members and the end of each sample in one shard; None for the end of the last."""
    file.seek(start)
    key, members = "", dict[str, bytes]()
    with tarfile.open(fileobj=file, mode="r:") as archive:
        for entry in archive:
            if not entry.isreg():
                continue
            own, kind = split_name(entry.name)
            if members and own != key:
                yield key, members, entry.offset
                members = {}
            content = archive.extractfile(entry)
            assert content is not None
            key, members[kind] = own, content.read()
            if len(members[kind]) < entry.size:
                raise EOFError(f"it ends within {entry.name!r}")
    if members:
        yield key, members, None


class Written(NamedTuple):
    """Where a member of a shard lies.

    Attributes:
        offset: of its first byte in the file.
        size: bytes.
    """

    offset: int
    size: int


def write(path: Path, contents: Iterable[tuple[str, Mapping[str, bytes]]]) -> list[dict[str, Written]]:
    """Write a shard, whole or not at all.

    Args:
        path: of the tar file.
        contents: keys and members of its samples.

    Returns:
        where each member of each sample lies.

    Raises:
        OSError: the disk is full or the folder cannot be written.
        ValueError: a key holds a dot in its last part, or is empty.
    """
    temporary = path.with_name(path.name + ".tmp")
    places: list[dict[str, Written]] = []
    with temporary.open("wb") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for key, members in contents:
                if not key or "." in key.rpartition("/")[2]:
                    raise ValueError(f"a sample cannot be called {key!r}")
                places.append({kind: _add(archive, f"{key}.{kind}", data) for kind, data in members.items()})
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    return places


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> Written:
    entry = tarfile.TarInfo(name)  # of no time and nobody: the same samples give the same bytes
    entry.size = len(data)
    archive.addfile(entry, BytesIO(data))
    ceiling = -(-len(data) // BLOCK) * BLOCK
    return Written(archive.offset - ceiling, len(data))
