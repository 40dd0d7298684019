"""HMDB51: ``<class>_test_split{1,2,3}.txt`` with "video flag" lines; flag 0 unused, 1 train, 2 test."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from evilm.data.readers.places import Videos, video_root
from evilm.data.readers.tables import read_text
from evilm.errors import AnnotationError
from evilm.types import Example

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_FLAGS = {"val": 0, "train": 1, "test": 2}
_FILE = re.compile(r"(.+)_test_split([1-9])\.txt")


def hmdb51(annotations: Path, videos: Path | None, split: str) -> Iterator[Example]:
    """The videos of one split, with their class as label; classes are numbered in alphabetical order.

    ``split`` is ``train`` or ``test``, of split 1; ``train.2`` or ``test.3`` name another; ``val`` takes the videos
    that a split leaves out. Videos are ``<class>/<video>`` or lie together in one folder.
    """
    name, _, number = split.partition(".")
    if name not in _FLAGS:
        raise AnnotationError(
            annotations, f"HMDB51 has no split {split!r}: train, test, val, or of another split train.2, test.3"
        )
    folder = _folder(annotations)
    found = [match for entry in sorted(folder.iterdir()) if (match := _FILE.fullmatch(entry.name))]
    classes = sorted(match[1] for match in found if match[2] == (number or "1"))
    if not classes:
        raise AnnotationError(folder, f"holds no <class>_test_split{number or 1}.txt")
    library = Videos(video_root(annotations, videos), ".avi")
    for label, kind in enumerate(classes):
        nested = (library.root / kind).is_dir()
        for video in _videos(folder / f"{kind}_test_split{number or 1}.txt", _FLAGS[name]):
            yield Example(
                key=f"{kind}/{video}",
                video=f"{kind}/{video}",
                clip=library.clip(f"{kind}/{video}" if nested else video),
                label=label,
                kind=kind,
            )


def _folder(annotations: Path) -> Path:
    inner = (annotations / "testTrainMulti_7030_splits", annotations / "splits")
    folder = next((place for place in inner if place.is_dir()), annotations)
    if not folder.is_dir():
        raise AnnotationError(annotations, "no such folder of split files")
    return folder


def _videos(path: Path, flag: int) -> Iterator[str]:
    """The videos of a split file that carry ``flag``."""
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        video, _, mark = line.strip().rpartition(" ")
        if not video or mark not in ("0", "1", "2"):
            raise AnnotationError(path, f"{line.strip()!r:.80} is not a video followed by 0, 1 or 2", number)
        if int(mark) == flag:
            yield video.strip()
