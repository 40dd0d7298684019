"""What an index is made of: a folder, a list of files, or an address such as ``s3://bucket/clips``; all or one shard.

A list is a text file with one path or address a line; empty lines and lines that begin with ``#`` are left out. It may
also be a table (csv, tsv, json, jsonl, parquet) with a column of paths. Relative paths start at the folder of the list.
"""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

from evilm.data.readers.places import VideoFolder
from evilm.data.readers.rows import PATH_COLUMNS
from evilm.data.readers.tables import FORMATS, read_rows
from evilm.errors import AnnotationError, ConfigError, VideoIndexError
from evilm.search import remote, scan
from evilm.search.database import under

if TYPE_CHECKING:
    from evilm.search.database import Database, FileRecord

TABLES = tuple(f".{kind}" for kind in FORMATS)
LIST_SUFFIXES = (".txt", ".lst", *TABLES)


class Shard(NamedTuple):
    """One of ``total`` parts of the files; a file's part follows from a hash of its path, whatever else there is.

    Attributes:
        number: from 0.
        total: number of shards.
    """

    number: int
    total: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """``"2/8"`` to the third of eight shards.

        Raises:
            ConfigError: it is not such a text.
        """
        number, _, count = text.partition("/")
        if not (number.isascii() and number.isdigit() and count.isascii() and count.isdigit()):
            raise ConfigError(f"shard {text!r}: write I/N, such as 0/4")
        if int(number) >= int(count):
            raise ConfigError(f"shard {text!r}: shards of {count} are 0/{count} to {int(count) - 1}/{count}")
        return cls(int(number), int(count))

    def has(self, path: bytes, root: bytes) -> bool:
        """Whether a file belongs to this shard; the folder ``root`` may have another name on another machine."""
        relative = path.removeprefix(root).lstrip(b"/")
        digest = hashlib.blake2b(relative, digest_size=8).digest()
        return int.from_bytes(digest, "little") % self.total == self.number


@dataclass(frozen=True)
class Source:
    """Videos that an index is to describe.

    Attributes:
        name: as the user gave it.
        root: absolute folder, address, or folder of the list.
        kind: of the source.
        shard: None for all videos.
    """

    name: str
    root: bytes
    kind: str
    shard: Shard | None = None

    @classmethod
    def of(cls, name: str | Path, shard: Shard | None = None) -> Self:
        """The source that a folder, a list or an address names.

        Raises:
            VideoIndexError: there is no such folder or list.
        """
        text = str(name)
        if isinstance(name, str) and remote.is_remote(name):
            return cls(text, text.rstrip("/").encode(), "address", shard)
        path = Path(text).expanduser()
        if path.is_dir():
            return cls(str(path), os.fsencode(os.path.realpath(path)), "folder", shard)
        if path.is_file() and path.suffix in LIST_SUFFIXES:
            return cls(str(path), os.fsencode(os.path.realpath(path.parent)), "list", shard)
        raise VideoIndexError(
            f"{path}: no such folder of videos; a list of videos is a .txt file or a table with a column of paths"
        )

    def scan(self, skip: Path, *, pictures: bool = False) -> scan.Walk:
        """List the videos.

        Args:
            skip: a folder that is not entered (the index itself).
            pictures: list still pictures too; a list of files is taken as it is.
        """
        if self.kind == "folder":
            walked = scan.walk(Path(self.name), skip, pictures=pictures)
        elif self.kind == "address":
            walked = _objects(self.name, pictures=pictures)
        else:
            walked = _listed(Path(self.name))
        if self.shard is not None:
            walked.total = len(walked.files) + len(walked.refused)
            walked.files = [each for each in walked.files if self.shard.has(each.path, self.root)]
            walked.refused = [each for each in walked.refused if self.shard.has(each[0], self.root)]
        return walked

    def records(self, database: Database, walked: scan.Walk) -> tuple[list[FileRecord], list[FileRecord]]:
        """Records of files that the source describes, and the others.

        A record of a folder or address that the scan did not find is of a deleted file. A list describes only the
        files that it names, so nothing is deleted because of it.
        """
        if self.kind == "list":
            named = {each.path for each in walked.files} | {path for path, _ in walked.refused}
            records = database.files()
            inside = [record for record in records if record.path in named]
            return inside, [record for record in records if record.path not in named]
        condition, values = under(self.root)
        return database.files(condition, values), database.files(f"NOT ({condition})", values)


def _objects(url: str, *, pictures: bool) -> scan.Walk:
    """The videos under an address."""
    result = scan.Walk()
    for path, *state in remote.list_prefix(url):
        name = path.rsplit(b"/", 1)[-1]
        if not name.startswith(b".") and scan.is_wanted(name, result, pictures=pictures):
            result.files.append(scan.FoundFile(path, *state))
    return result


def _listed(path: Path) -> scan.Walk:
    """The videos that a list names, each once.

    Raises:
        AnnotationError: it is not text in UTF-8, or the table has no column of paths.
    """
    names: list[str] = []
    if path.suffix in TABLES:
        library = VideoFolder(path.parent)
        for row in read_rows(path, f"a column of paths ({', '.join(PATH_COLUMNS[:4])}, ...)"):
            name = row.text(row.column(PATH_COLUMNS, "the video"))
            names.append(name if remote.is_remote(name) else str(library.clip(name).path))
    else:
        names = _lines(path)
    result, addresses = scan.Walk(), dict.fromkeys(name for name in names if remote.is_remote(name))
    folder = os.path.realpath(path.parent)
    for name in dict.fromkeys(os.path.normpath(os.path.join(folder, n)) for n in names if n not in addresses):  # noqa: PTH118
        raw = os.fsencode(name)
        try:
            state = os.stat(raw)  # noqa: PTH116 - a path of bytes, as the index keeps it
        except (OSError, ValueError) as error:
            result.refused.append((raw, f"cannot be examined: {getattr(error, 'strerror', None) or error}"))
            continue
        if stat.S_ISREG(state.st_mode):
            result.files.append(scan.FoundFile(raw, state.st_size, state.st_mtime_ns, state.st_ino))
        else:
            result.refused.append((raw, "is not a regular file"))
    for name, facts in zip(addresses, remote.stat_all(addresses), strict=True):
        if isinstance(facts, str):
            result.refused.append((name.encode(), facts))
        else:
            result.files.append(scan.FoundFile(name.encode(), *facts))
    result.files.sort()
    return result


def _lines(path: Path) -> list[str]:
    """The lines of a text that are neither empty nor comments."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise AnnotationError(path, f"is not text in UTF-8: {error.reason}") from None
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
