"""Which files of a folder are new, changed, moved or gone: by names, sizes and times, reading content only in doubt."""

from __future__ import annotations

import hashlib
import os
import stat
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from evilm.search.records import Known

# Names that are looked at; what is inside is found out by decoding.
SUFFIXES = tuple(
    b".mp4 .m4v .mov .mkv .webm .avi .mpg .mpeg .mpe .m2v .ts .m2ts .mts .vob .flv .f4v .wmv .asf .ogv .ogg .ogm .gif "
    b".3gp .3g2 .mj2 .qt .divx .dv .rm .rmvb .mxf .y4m".split()
)
_PART = 65536  # bytes read at the beginning, in the middle and at the end of a file to tell it from another
AGAIN = frozenset({"timeout", "crashed", "not_a_file"})  # may have been the machine's fault: tried by every scan


class Found(NamedTuple):
    """A file as ``stat`` sees it; ``changed`` in nanoseconds."""

    path: bytes
    bytes: int
    changed: int
    inode: int


@dataclass
class Walk:
    """What lies under a folder.

    Attributes:
        files: regular files (or links to one) with a video's name.
        refused: (path, reason) of things with a video's name that are no regular file.
        closed: (folder, reason) of folders that could not be listed; what is known of their files is kept.
        others: how many files have other names.
    """

    files: list[Found] = field(default_factory=lambda: [])
    refused: list[tuple[bytes, str]] = field(default_factory=lambda: [])
    closed: list[tuple[bytes, str]] = field(default_factory=lambda: [])
    others: int = 0


@dataclass
class Changes:
    """A walk against the catalogue.

    Attributes:
        new, changed: files to decode.
        moved: what is known, and where it is now.
        touched: the same content at the same place with another time or inode.
        gone: known files that are there no more.
        same: how many are as they were.
    """

    new: list[Found] = field(default_factory=lambda: [])
    changed: list[Found] = field(default_factory=lambda: [])
    moved: list[tuple[Known, Found]] = field(default_factory=lambda: [])
    touched: list[tuple[Known, Found]] = field(default_factory=lambda: [])
    gone: list[Known] = field(default_factory=lambda: [])
    same: int = 0


def walk(folder: Path, skip: Path | None = None, progress: Callable[[int], None] | None = None) -> Walk:
    """Everything under ``folder`` with a video's name, in order of paths.

    Hidden files and folders are left out. Links to folders are followed after the real ones, and no folder is entered
    twice, so a loop of links ends.

    Args:
        folder: where to begin.
        skip: a folder that is not entered (the index itself).
        progress: called now and then with how many files were seen.
    """
    result = Walk()
    avoided = None if skip is None else _identity(os.fsencode(skip.resolve()))
    entered: set[tuple[int, int]] = set()
    folders, links = [os.fsencode(folder.resolve())], list[bytes]()
    seen = 0
    while folders or links:
        here = folders.pop() if folders else links.pop(0)
        identity = _identity(here)
        if identity is None or identity in entered or identity == avoided:
            continue
        entered.add(identity)
        below = list[bytes]()
        for entry in _listed(here, result):
            seen += 1
            if entry.name.startswith(b"."):
                continue
            if entry.is_dir(follow_symlinks=False):
                below.append(entry.path)
            elif entry.is_symlink() and entry.is_dir():
                links.append(entry.path)
            else:
                _take(entry, result)
        folders += reversed(below)
        if progress is not None:
            progress(seen)
    result.files.sort()
    return result


def _identity(folder: bytes) -> tuple[int, int] | None:
    try:
        state = os.stat(folder)  # noqa: PTH116 - a path of bytes, as the system has it
    except OSError:
        return None  # gone between listing and entering
    return state.st_dev, state.st_ino


def _listed(folder: bytes, result: Walk) -> list[os.DirEntry[bytes]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except FileNotFoundError:
        return []
    except OSError as error:
        result.closed.append((folder, f"cannot be listed: {error.strerror}"))
        return []


def _take(entry: os.DirEntry[bytes], result: Walk) -> None:
    """Put one thing that is no folder where it belongs."""
    if not entry.name.lower().endswith(SUFFIXES):
        result.others += 1
        return
    try:
        state = entry.stat()
    except FileNotFoundError:
        if entry.is_symlink():
            result.refused.append((entry.path, "is a link to nothing"))
        return  # else it vanished since it was listed
    except OSError as error:
        result.refused.append((entry.path, f"cannot be looked at: {error.strerror}"))
        return
    if stat.S_ISREG(state.st_mode):
        result.files.append(Found(entry.path, state.st_size, state.st_mtime_ns, state.st_ino))
    else:
        result.refused.append((entry.path, "is not a regular file"))


def compare(known: Iterable[Known], walked: Walk, elsewhere: Iterable[Known] = ()) -> Changes:
    """What has to be done so that the catalogue says what the folder holds.

    A file is the same while path, size, time and inode are. With another inode or time, parts of its content decide
    whether it has to be decoded again: another time with equal parts is *changed*, because parts are not all. A new
    path with size, time and parts of a file that is gone is that file, moved.

    Args:
        known: what the catalogue holds of the folder.
        walked: what the folder holds.
        elsewhere: what the catalogue holds of other folders, from where a file may have come.
    """
    result = Changes()
    before = {each.path: each for each in known}
    gone = {each.id: each for each in _gone(before, walked)}
    lost: defaultdict[tuple[int, int], list[Known]] = defaultdict(list)
    for each in gone.values():
        lost[each.bytes, each.changed].append(each)
    arrived = {(each.bytes, each.changed) for each in walked.files if each.path not in before}
    for each in elsewhere:
        if (each.bytes, each.changed) in arrived and not os.path.lexists(each.path):
            lost[each.bytes, each.changed].append(each)
    for found in walked.files:
        old = before.get(found.path)
        if old is not None:
            _sort(found, old, result)
        elif (moved := _same_content(found, lost.get((found.bytes, found.changed), ()))) is not None:
            lost[found.bytes, found.changed].remove(moved)
            gone.pop(moved.id, None)
            result.moved.append((moved, found))
        else:
            result.new.append(found)
    result.gone = list(gone.values())
    return result


def _gone(before: Mapping[bytes, Known], walked: Walk) -> list[Known]:
    """What is known and was not met, but for what lies in folders that could not be listed."""
    now = {each.path for each in walked.files}
    closed = tuple(folder.rstrip(b"/") + b"/" for folder, _ in walked.closed)
    return [each for path, each in before.items() if path not in now and not path.startswith(closed)]


def _sort(found: Found, old: Known, result: Changes) -> None:
    """A file at a known place: the same, touched or changed."""
    if (old.bytes, old.changed) != (found.bytes, found.changed) or old.status in AGAIN:
        result.changed.append(found)
    elif old.inode == found.inode:
        result.same += 1
    elif _same_content(found, [old]):
        result.touched.append((old, found))
    else:
        result.changed.append(found)


def _same_content(found: Found, candidates: Iterable[Known]) -> Known | None:
    candidates = list(candidates)
    if not candidates:
        return None
    try:
        own = content_print(found.path)
    except OSError:
        return None
    return next((each for each in candidates if each.print == own), None)


def content_print(path: bytes) -> bytes:
    """16 bytes that tell a file's content from another's: a hash of its size and three of its parts.

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
