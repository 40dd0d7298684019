"""Locations of a data set's files: videos by name, annotation files by split."""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING

from evilm.errors import AnnotationError, SplitError
from evilm.files import PICTURE_SUFFIXES, VIDEO_SUFFIXES
from evilm.types import Clip

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

_LISTED = 8  # entries of a folder that an error lists


class VideoFolder:
    """The videos of a data set, found by the names in its annotations.

    Each folder is listed once, so that a million names do not cost a million file system calls.

    Args:
        root: the folder of the videos.
        suffix: of missing files; tried first.
    """

    def __init__(self, root: Path, suffix: str = ".mp4") -> None:
        self.root = root
        self._root = str(root)  # paths are joined as strings: pathlib would take most of a reader's time
        lower = (suffix, *(each for each in VIDEO_SUFFIXES if each != suffix))
        self._suffixes = (*lower, *(each.upper() for each in lower))  # cameras write .MOV and .MP4
        self._listings: dict[str, frozenset[str]] = {}

    def path(self, *names: str) -> Path:
        """The file of the first of ``names`` (with or without suffix) that exists, else the path of the first."""
        return Path(self._find(names)[0])

    def clip(self, *names: str, start: float = 0.0, end: float | None = None) -> Clip:
        """The first of ``names`` that exists, or its part from ``start`` to ``end`` seconds.

        A picture is a clip of one frame; a folder of pictures, if no video has its name, is a clip of many.
        """
        path = posixpath.join(self._root, names[0])
        folder, file = posixpath.split(path)
        if file.lower().endswith(PICTURE_SUFFIXES):
            return Clip(Path(folder), frames=(file,))
        video, exists = self._find(names)
        if not exists and file in self._listing(folder) and Path(path).is_dir():
            return Clip(Path(path), frames=tuple(pictures(self._listing(path))))
        return Clip(Path(video), start, end)

    def _find(self, names: Sequence[str]) -> tuple[str, bool]:
        """The path of the first of ``names`` that exists, else of the first; and whether it exists."""
        missing = ""
        for name in names:
            folder, file = posixpath.split(posixpath.join(self._root, name))
            stem, suffix = posixpath.splitext(file)
            stem = stem if suffix.lower() in VIDEO_SUFFIXES or suffix == "." else file
            listing = self._listing(folder)
            candidates = [file] if stem != file and suffix != "." else []
            candidates += [stem + each for each in self._suffixes]
            for candidate in candidates:
                if candidate in listing:
                    return f"{folder}/{candidate}", True
            missing = missing or f"{folder}/{candidates[0]}"
        return missing, False

    def _listing(self, folder: str) -> frozenset[str]:
        if folder not in self._listings:
            try:
                self._listings[folder] = frozenset(os.listdir(folder))  # noqa: PTH208, faster than pathlib
            except (OSError, ValueError):
                self._listings[folder] = frozenset()
        return self._listings[folder]


def video_root(annotations: Path, videos: Path | None, usual: Sequence[str] = ("videos",)) -> Path:
    """The folder of videos: ``videos``, else a usual name in the annotations' folder or its parent, else that folder.

    Raises:
        AnnotationError: ``videos`` does not exist.
    """
    if videos is not None:
        if not videos.is_dir():
            raise AnnotationError(videos, "no such folder of videos")
        return videos
    folder = annotations if annotations.is_dir() else annotations.parent
    places = [place / name for place in (folder, folder.parent) for name in usual]
    return next((place for place in places if place.is_dir()), folder)


def find_file(annotations: Path, names: Sequence[str]) -> Path:
    """The annotation file: ``annotations`` itself, or the first of ``names`` (glob patterns) in that folder.

    Raises:
        AnnotationError: the path does not exist, or is neither a file nor a folder.
        SplitError: the folder has none of the names; lists its content.
    """
    path = find_optional(annotations, names)
    if path is not None:
        return path
    if not annotations.exists():
        raise AnnotationError(annotations, "no such annotation file or folder")
    entries = sorted(entry.name for entry in annotations.iterdir())
    more = f", and {len(entries) - _LISTED} more" if len(entries) > _LISTED else ""
    content = ", ".join(entries[:_LISTED]) + more or "nothing"
    raise SplitError(annotations, f"holds none of {', '.join(names)}; it holds: {content}")


def find_optional(annotations: Path, names: Sequence[str]) -> Path | None:
    """As ``find_file``, but None if there is none.

    Raises:
        AnnotationError: ``annotations`` is neither a file nor a folder, or cannot be listed.
    """
    try:
        if annotations.is_file():
            return annotations
        if annotations.exists() and not annotations.is_dir():
            raise AnnotationError(annotations, "is neither a regular file nor a folder")
        return next((path for name in names for path in sorted(annotations.glob(name)) if path.is_file()), None)
    except (OSError, ValueError) as error:
        raise AnnotationError(annotations, f"cannot be read: {getattr(error, 'strerror', None) or error}") from None


def find_beside(annotations: Path, names: Sequence[str]) -> Path | None:
    """The first of ``names`` (glob patterns) in the annotations' folder, or None."""
    return find_optional(annotations if annotations.is_dir() else annotations.parent, names)


def plain_name(name: str) -> str:
    """A video's name without suffix; a few published names end in a bare dot."""
    stem, suffix = posixpath.splitext(name)
    return stem if suffix.lower() in (*VIDEO_SUFFIXES, ".") else name


def video_files(folder: Path) -> Iterator[Path]:
    """Every video file below ``folder``, sorted by name."""
    yield from sorted(path for path in folder.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file())


def pictures(names: Iterable[str]) -> list[str]:
    """The still pictures among ``names``, in the order of the numbers in their names: ``f2`` before ``f10``."""

    def number_key(name: str) -> list[tuple[int, str]]:
        return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]

    stills = [name for name in names if name.lower().endswith(PICTURE_SUFFIXES) and not name.startswith(".")]
    return sorted(stills, key=number_key)
