"""Videos of the index by their ids, as the page shows them: a bounded memory of what was read of one generation."""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evilm.errors import EvilmError
from evilm.files import is_picture

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from evilm.search.query import Filter, Video
    from evilm.server.library import Library

KEPT = 8192  # videos that are kept
LISTINGS, MAX_FOLDERS = 8, 2000  # sorted lists of videos that are kept; folders that are offered as filters


class MissingError(EvilmError):
    """A segment or video that the index does not have."""

    def __init__(self, what: str) -> None:
        super().__init__(f"there is no such {what} in the index; it may have been removed")


@dataclass(frozen=True)
class Overview:
    """What is computed from all files of one generation: the folder that holds them all, their folders and hours."""

    generation: int
    root: Path
    folders: list[str]
    hours: float
    at: float
    cost: float


@dataclass(frozen=True)
class Shown:
    """A video, and the fields of it that each of its segments shows."""

    video: Video
    fields: dict[str, Any]


@dataclass(frozen=True)
class Listing:
    """Ids of videos in some order, and the numbers of segments up to and including each of them: (n,)."""

    ids: NDArray[np.int64]
    ends: NDArray[np.int64]


class Videos:
    """What is kept of the videos of an index.

    Args:
        library: with the index.
    """

    def __init__(self, library: Library) -> None:
        self._library = library
        self._lock = threading.Lock()
        self._overviews = threading.Lock()
        self._overview: Overview | None = None
        self._state: tuple[int, Path] | None = None  # generation and root of the two below
        self._shown: OrderedDict[int, Shown] = OrderedDict()
        self._listings: OrderedDict[tuple[Filter, str], Listing] = OrderedDict()

    def overview(self) -> Overview:
        """The overview of this generation, or an older one while computing it anew would take too much time."""
        index = self._library.need()
        with self._overviews:  # computed once, whoever asks meanwhile
            before, generation, began = self._overview, index.generation, time.monotonic()
            if before is not None and (before.generation == generation or began - before.at < 20 * before.cost):
                return before
            videos = index.videos()
            parents = {video.path.parent for video in videos}
            root = index.scanned_folder
            if parents and (root is None or not all(parent.is_relative_to(root) for parent in parents)):
                root = Path(os.path.commonpath([*parents, *([root] if root else [])]))
            root = root or Path()
            folders = sorted(relative(parent, root) for parent in parents)[:MAX_FOLDERS]
            hours = sum(video.duration for video in videos if video.num_segments) / 3600
            now = time.monotonic()
            self._overview = Overview(generation, root, folders, hours, now, now - began)
            return self._overview

    def __getitem__(self, number: int) -> Shown:
        found = self.get([number])
        if number not in found:
            raise MissingError("video")
        return found[number]

    def get(self, numbers: Iterable[int]) -> dict[int, Shown]:
        """Videos by their ids, without those that are not in the index; what is not kept is read together."""
        root, numbers = self.overview().root, {*numbers}
        with self._lock:
            self._refresh(root)
            found = {number: self._shown[number] for number in numbers if number in self._shown}
            missing = sorted(numbers - found.keys())
            for video in self._library.need().videos_by_id(missing) if missing else ():
                found[video.id] = self._shown[video.id] = Shown(video, _fields(video, root))
            for number in found:
                self._shown.move_to_end(number)
            while len(self._shown) > KEPT:
                self._shown.popitem(last=False)
            return found

    def listing(self, where: Filter, sort: str) -> Listing:
        """All videos with segments that meet a condition, by date (newest first) or by name."""
        index, root = self._library.need(), self.overview().root
        with self._lock:
            self._refresh(root)
            state, listing = self._state, self._listings.get((where, sort))
        if listing is not None:
            return listing
        videos = [video for video in index.videos(where) if video.num_segments]
        videos.sort(key=lambda video: order(video, sort))
        ids = np.array([video.id for video in videos], np.int64)
        listing = Listing(ids, np.cumsum(np.array([video.num_segments for video in videos], np.int64)))
        with self._lock:
            if state == self._state:  # else it may be older than the lists beside it
                self._listings[where, sort] = listing
            while len(self._listings) > LISTINGS:
                self._listings.popitem(last=False)
        return listing

    def _refresh(self, root: Path) -> None:
        """Forget what was read of an older generation; the caller holds the lock."""
        state = (self._library.need().generation, root)
        if state != self._state:
            self._state = state
            self._shown.clear()
            self._listings.clear()


def order(video: Video, sort: str) -> tuple[Any, ...]:
    """The key of a video in a list by ``name`` or ``date``."""
    return (video.path.name.lower(), video.id) if sort == "name" else (-video.modified.timestamp(), video.id)


def printable(name: str) -> str:
    """A file name that JSON can carry: bytes that are not UTF-8 become replacement characters."""
    return os.fsencode(name).decode(errors="replace")


def relative(folder: Path, root: Path) -> str:
    """A folder below the root as the interface shows it."""
    text = folder.relative_to(root).as_posix() if folder.is_relative_to(root) else folder.name
    return "" if text == "." else printable(text)


def _fields(video: Video, root: Path) -> dict[str, Any]:
    return {
        "video": str(video.id), "name": printable(video.path.name), "folder": relative(video.path.parent, root),
        "date": video.modified.isoformat(), "duration": video.duration, "picture": is_picture(video.path),
    }  # fmt: skip
