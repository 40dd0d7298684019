"""Where the files of a data set are: its videos by name, its annotation files by split."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evilm.errors import AnnotationError
from evilm.types import Clip

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

EXTENSIONS = (".mp4", ".webm", ".mkv", ".avi", ".gif", ".mov", ".m4v", ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".ogv")
_TRIED = EXTENSIONS[:5]


class Videos:
    """The videos of a data set: names in annotations to files.

    Each folder is listed once, so that a million names cost no million looks at the disk.

    Args:
        root: the folder of the videos.
        extension: what a missing file would have been called; tried first.
    """

    def __init__(self, root: Path, extension: str = _TRIED[0]) -> None:
        self.root = root
        self._extensions = (extension, *(e for e in _TRIED if e != extension))
        self._listings: dict[Path, frozenset[str]] = {}

    def path(self, *names: str) -> Path:
        """The file of the first of ``names`` (with or without extension) that exists; else the path it would have."""
        tried = [self._path(name) for name in names]
        return next((path for path in tried if path.name in self._listing(path.parent)), tried[0])

    def _path(self, name: str) -> Path:
        given = self.root / name
        here = self._listing(given.parent)
        if given.suffix.lower() in EXTENSIONS:
            candidates = [given.name, *(given.stem + extension for extension in self._extensions)]
        else:
            candidates = [given.name + extension for extension in self._extensions]
        return given.with_name(next((found for found in candidates if found in here), candidates[0]))

    def clip(self, name: str, start: float = 0.0, end: float | None = None) -> Clip:
        """The whole video ``name``, or its part from ``start`` to ``end`` seconds."""
        return Clip(self.path(name), start, end)

    def _listing(self, folder: Path) -> frozenset[str]:
        if folder not in self._listings:
            try:
                self._listings[folder] = frozenset(entry.name for entry in folder.iterdir())
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
        AnnotationError: there is none, naming those looked for and those found.
    """
    found = find_optional(annotations, names)
    if found is not None:
        return found
    if not annotations.exists():
        raise AnnotationError(annotations, "no such annotation file or folder")
    listed = sorted(entry.name for entry in annotations.iterdir())
    there = ", ".join(listed[:8]) + (f", and {len(listed) - 8} more" if len(listed) > 8 else "")
    raise AnnotationError(annotations, f"holds none of {', '.join(names)}; it holds: {there or 'nothing'}")


def find_optional(annotations: Path, names: Sequence[str]) -> Path | None:
    """As ``find``, but None where there is none."""
    if annotations.is_file():
        return annotations
    return next((path for name in names for path in sorted(annotations.glob(name)) if path.is_file()), None)


def video_files(folder: Path) -> Iterator[Path]:
    """Every video file below ``folder``, in order of name."""
    yield from sorted(path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file())
