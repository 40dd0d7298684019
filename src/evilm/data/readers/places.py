"""Where the files of a data set are: its videos by name, its annotation files by split."""

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

EXTENSIONS = VIDEO_SUFFIXES
PICTURES = PICTURE_SUFFIXES


class Videos:
    """The videos of a data set: names in annotations to files.

    Each folder is listed once, so that a million names cost no million looks at the disk.

    Args:
        root: the folder of the videos.
        extension: what a missing file would have been called; tried first.
    """

    def __init__(self, root: Path, extension: str = EXTENSIONS[0]) -> None:
        self.root = root
        self._home = str(root)  # paths are put together as texts: pathlib would take most of the time of a reader
        small = (extension, *(e for e in EXTENSIONS if e != extension))
        self._extensions = (*small, *(e.upper() for e in small))  # cameras write .MOV and .MP4
        self._listings: dict[str, frozenset[str]] = {}

    def path(self, *names: str) -> Path:
        """The file of the first of ``names`` (with or without extension) that exists; else the path it would have."""
        return Path(self._path(names)[0])

    def clip(self, *names: str, start: float = 0.0, end: float | None = None) -> Clip:
        """The whole video of the first of ``names`` that there is, or its part from ``start`` to ``end`` seconds.

        A picture is a clip of one frame; a folder of pictures, where no video has that name, a clip of many.
        """
        given = posixpath.join(self._home, names[0])
        folder, file = posixpath.split(given)
        if file.lower().endswith(PICTURES):
            return Clip(Path(folder), frames=(file,))
        path, found = self._path(names)
        if not found and file in self._listing(folder) and Path(given).is_dir():
            return Clip(Path(given), frames=tuple(pictures(self._listing(given))))
        return Clip(Path(path), start, end)

    def _path(self, names: Sequence[str]) -> tuple[str, bool]:
        """Where the first of ``names`` that there is lies, or the first of all would lie; and whether it is there."""
        first = ""
        for name in names:
            folder, file = posixpath.split(posixpath.join(self._home, name))
            stem, extension = posixpath.splitext(file)
            stem = stem if extension.lower() in EXTENSIONS or extension == "." else file
            here = self._listing(folder)
            candidates = [file] if stem != file and extension != "." else []
            candidates += [stem + each for each in self._extensions]
            for candidate in candidates:
                if candidate in here:
                    return f"{folder}/{candidate}", True
            first = first or f"{folder}/{candidates[0]}"
        return first, False

    def _listing(self, folder: str) -> frozenset[str]:
        if folder not in self._listings:
            try:
                self._listings[folder] = frozenset(os.listdir(folder))  # noqa: PTH208, as above
            except (OSError, ValueError):
                self._listings[folder] = frozenset()
        return self._listings[folder]


def video_root(annotations: Path, videos: Path | None, usual: Sequence[str] = ("videos",)) -> Path:
    """The folder of videos: the one given, else a usual one in the annotations' folder or beside it, else that folder.

    Raises:
        AnnotationError: the folder given does not exist.
    """
    if videos is not None:
        if not videos.is_dir():
            raise AnnotationError(videos, "no such folder of videos")
        return videos
    home = annotations if annotations.is_dir() else annotations.parent
    places = [place / name for place in (home, home.parent) for name in usual]
    return next((place for place in places if place.is_dir()), home)


def find(annotations: Path, names: Sequence[str]) -> Path:
    """The annotation file: ``annotations`` itself, or in that folder the first of ``names`` (patterns) there is.

    Raises:
        AnnotationError: there is no such place, or it is neither a file nor a folder.
        SplitError: the folder has none, naming those looked for and those found.
    """
    found = find_optional(annotations, names)
    if found is not None:
        return found
    if not annotations.exists():
        raise AnnotationError(annotations, "no such annotation file or folder")
    listed = sorted(entry.name for entry in annotations.iterdir())
    there = ", ".join(listed[:8]) + (f", and {len(listed) - 8} more" if len(listed) > 8 else "")
    raise SplitError(annotations, f"holds none of {', '.join(names)}; it holds: {there or 'nothing'}")


def find_optional(annotations: Path, names: Sequence[str]) -> Path | None:
    """As ``find``, but None where there is none.

    Raises:
        AnnotationError: ``annotations`` is neither a file nor a folder, or may not be looked into.
    """
    try:
        if annotations.is_file():
            return annotations
        if annotations.exists() and not annotations.is_dir():
            raise AnnotationError(annotations, "is neither a regular file nor a folder")
        return next((path for name in names for path in sorted(annotations.glob(name)) if path.is_file()), None)
    except (OSError, ValueError) as error:
        raise AnnotationError(annotations, f"cannot be read: {getattr(error, 'strerror', None) or error}") from None


def beside(annotations: Path, names: Sequence[str]) -> Path | None:
    """The first of ``names`` (patterns) in the annotations' folder: what goes with the annotation file, if it is there.

    Where ``annotations`` is a file, its folder is looked into.
    """
    return find_optional(annotations if annotations.is_dir() else annotations.parent, names)


def plain_name(name: str) -> str:
    """A video's name without its extension, or without the point that a few published names end in."""
    stem, extension = posixpath.splitext(name)
    return stem if extension.lower() in (*EXTENSIONS, ".") else name


def video_files(folder: Path) -> Iterator[Path]:
    """Every video file below ``folder``, in order of name."""
    yield from sorted(path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file())


def pictures(names: Iterable[str]) -> list[str]:
    """The names of still pictures among ``names``, in the order of the numbers in them."""
    found = [name for name in names if name.lower().endswith(PICTURES) and not name.startswith(".")]
    return sorted(found, key=_by_numbers)


def _by_numbers(name: str) -> list[tuple[int, str]]:
    """A key that puts ``f2`` before ``f10``."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
