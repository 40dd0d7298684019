"""Compare a folder with the database: which files are new, changed, moved or deleted.

Names, sizes, times and inodes decide; parts of the content are read only where these leave a doubt.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from evilm.files import VIDEO_SUFFIXES, is_picture
from evilm.search.remote import is_remote, local_copy

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from evilm.search.database import FileRecord

# Statuses that may be due to the machine or to the limits: such files are tried again by every update.
RETRY = frozenset({"timeout", "crashed", "not_a_file", "too_large", "too_long"})
_SUFFIXES = tuple(os.fsencode(suffix) for suffix in VIDEO_SUFFIXES)
_PART = 65536  # bytes read at the start, in the middle and at the end of a file for its hash
_LINK_ERRORS = {errno.ENOENT: "is a link to nothing", errno.ELOOP: "is a link that leads back to itself"}


class FoundFile(NamedTuple):
    """A file as ``stat`` describes it.

    Attributes:
        path: absolute.
        size: in bytes.
        mtime_ns: time of the last change, in nanoseconds.
        inode: its number.
    """

    path: bytes
    size: int
    mtime_ns: int
    inode: int


@dataclass
class Walk:
    """Content of a folder.

    Attributes:
        files: regular files (or links to one) with the suffix of a video, or of a picture where these are wanted.
        refused: (path, reason) of entries with such a suffix that are not regular files.
        unlisted: (folder, reason) of folders that could not be listed; the index keeps what it has of their files.
        others: number of other files.
        pictures: number of pictures among them.
        total: number of videos before a shard was chosen; 0 without shards.
    """

    files: list[FoundFile] = field(default_factory=lambda: [])
    refused: list[tuple[bytes, str]] = field(default_factory=lambda: [])
    unlisted: list[tuple[bytes, str]] = field(default_factory=lambda: [])
    others: int = 0
    pictures: int = 0
    total: int = 0


@dataclass
class Changes:
    """Differences between a folder and the database.

    Attributes:
        new, changed: files to decode.
        moved: a record and where its file is now.
        touched: the same content at the same path with another inode.
        deleted: records whose files no longer exist.
        same: number of unchanged files.
    """

    new: list[FoundFile] = field(default_factory=lambda: [])
    changed: list[FoundFile] = field(default_factory=lambda: [])
    moved: list[tuple[FileRecord, FoundFile]] = field(default_factory=lambda: [])
    touched: list[tuple[FileRecord, FoundFile]] = field(default_factory=lambda: [])
    deleted: list[FileRecord] = field(default_factory=lambda: [])
    same: int = 0


def walk(folder: Path, skip: Path | None = None, *, pictures: bool = False) -> Walk:
    """List everything under ``folder`` that has a video suffix, in order of paths.

    Hidden files and folders are left out. Links to folders are followed after the real folders, and each folder is
    entered once, so a loop of links ends.

    Args:
        folder: where to start.
        skip: a folder that is not entered (the index itself).
        pictures: list still pictures too.
    """
    result = Walk()
    entered = {None, None if skip is None else _identity(os.fsencode(skip))}
    folders, links = [os.path.realpath(os.fsencode(folder))], list[bytes]()
    while folders or links:
        here = folders.pop() if folders else links.pop(0)
        identity = _identity(here)
        if identity in entered:
            continue
        entered.add(identity)
        below = list[bytes]()
        for entry in _list_folder(here, result):
            if entry.name.startswith(b"."):
                continue
            try:
                is_folder = entry.is_dir()
            except OSError:  # for example a link that leads back to itself
                is_folder = False
            if not is_folder:
                _add_file(entry, result, pictures=pictures)
            elif entry.is_symlink():
                links.append(entry.path)
            else:
                below.append(entry.path)
        folders += reversed(below)
    result.files.sort()
    return result


def _identity(folder: bytes) -> tuple[int, int] | None:
    try:
        state = os.stat(folder)  # noqa: PTH116 - a path of bytes, as the system has it
    except OSError:
        return None  # deleted between listing and entering
    return state.st_dev, state.st_ino


def _list_folder(folder: bytes, result: Walk) -> list[os.DirEntry[bytes]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except FileNotFoundError:
        return []
    except OSError as error:
        result.unlisted.append((folder, f"cannot be listed: {error.strerror}"))
        return []


def is_wanted(name: bytes, result: Walk, *, pictures: bool) -> bool:
    """Whether a file name has the suffix of a video, or of a picture if wanted; else counts it in ``result``."""
    if name.lower().endswith(_SUFFIXES) or (pictures and is_picture(name)):
        return True
    result.others += 1
    result.pictures += is_picture(name)
    return False


def _add_file(entry: os.DirEntry[bytes], result: Walk, *, pictures: bool) -> None:
    """Add an entry that is not a folder to the list that it belongs to."""
    if not is_wanted(entry.name, result, pictures=pictures):
        return
    try:
        state = entry.stat()
    except OSError as error:
        if entry.is_symlink() and error.errno in _LINK_ERRORS:
            result.refused.append((entry.path, _LINK_ERRORS[error.errno]))
        elif error.errno != errno.ENOENT:  # else it was deleted after the listing
            result.refused.append((entry.path, f"cannot be examined: {error.strerror}"))
        return
    if stat.S_ISREG(state.st_mode):
        result.files.append(FoundFile(entry.path, state.st_size, state.st_mtime_ns, state.st_ino))
    else:
        result.refused.append((entry.path, "is not a regular file"))


def compare(known: Iterable[FileRecord], walked: Walk, elsewhere: Iterable[FileRecord] = ()) -> Changes:
    """Find what must be done so that the database describes the folder.

    A file is unchanged if path, size, time and inode are equal and its status is not in ``RETRY``. With another size
    or time it is changed. With another inode only, its hash decides. A new path with size, time and hash of a deleted
    file is that file, moved.

    Args:
        known: records of the folder.
        walked: content of the folder.
        elsewhere: records of other folders, from which a file may have been moved.
    """
    result = Changes()
    before = {record.path: record for record in known}
    now = {found.path for found in walked.files}
    unlisted = tuple(folder.rstrip(b"/") + b"/" for folder, _ in walked.unlisted)
    deleted = {
        record.id: record
        for path, record in before.items()
        if path not in now and not path.startswith(unlisted)
    }  # fmt: skip
    sources: defaultdict[tuple[int, int], list[FileRecord]] = defaultdict(list)
    for record in deleted.values():
        sources[record.size, record.mtime_ns].append(record)
    arrived = {(found.size, found.mtime_ns) for found in walked.files if found.path not in before}
    for record in elsewhere:
        gone = not is_remote(record.path) and not os.path.lexists(record.path)
        if gone and (record.size, record.mtime_ns) in arrived:
            sources[record.size, record.mtime_ns].append(record)
    for found in walked.files:
        old = before.get(found.path)
        candidates = sources[found.size, found.mtime_ns]
        if old is not None:
            if (old.size, old.mtime_ns) != (found.size, found.mtime_ns) or old.status in RETRY:
                result.changed.append(found)
            elif old.inode == found.inode:
                result.same += 1
            elif _same_content(found, [old]):
                result.touched.append((old, found))
            else:
                result.changed.append(found)
        elif (source := _same_content(found, candidates)) is not None:
            candidates.remove(source)
            deleted.pop(source.id, None)
            result.moved.append((source, found))
        else:
            result.new.append(found)
    result.deleted = list(deleted.values())
    return result


def _same_content(found: FoundFile, candidates: Iterable[FileRecord]) -> FileRecord | None:
    candidates = list(candidates)
    if not candidates:
        return None
    try:
        with local_copy(found.path) as copy:
            own = content_hash(os.fsencode(copy))
    except OSError:
        return None
    return next((record for record in candidates if record.content_hash == own), None)


def content_hash(path: bytes) -> bytes:
    """16-byte hash of a file's size and of three parts of its content.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:  # noqa: PTH123 - a path of bytes
        size = os.fstat(file.fileno()).st_size
        digest = hashlib.blake2b(size.to_bytes(8, "little"), digest_size=16)
        for place in sorted({0, max(0, size // 2 - _PART // 2), max(0, size - _PART)}):
            file.seek(place)
            digest.update(file.read(_PART))
    return digest.digest()
