"""What a user's clips are called: in a list, in texts beside them, or, where there is nothing else, in their names."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from evilm.data import readers
from evilm.data.readers.places import find_optional, video_files, video_root
from evilm.data.readers.tables import FORMATS
from evilm.errors import DataError
from evilm.types import Clip, Example

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_LISTS = tuple(f"{name}.{kind}" for name in ("train", "captions") for kind in FORMATS)
# Words that cameras and programs write: they say nothing of what is to be seen.
_NAMELESS = frozenset(
    "img vid mov dsc dscn dscf mvi pxl gopr gopro gx gh dji clip clips video videos movie film final copy export edit "
    "untitled new mp avi mkv webm whatsapp screen recording capture cam camera part scene shot take test sample".split()
)


@dataclass(frozen=True, slots=True)
class Own:
    """A user's clips.

    Attributes:
        examples: one a clip, with all its captions.
        root: the folder that the names of their videos start from.
        origin: where the captions are from, in words.
        nameless: videos without any, which are left out.
    """

    examples: tuple[Example, ...]
    root: Path
    origin: str
    nameless: tuple[str, ...] = ()


def own_clips(source: Path, videos: Path | None = None) -> Own:
    """The clips and captions of a list or a folder.

    Args:
        source: a list that the ``captions`` reader takes; or a folder with such a list (``captions.csv``), with a text
            beside each video, or with videos whose names say what they show.
        videos: the folder that the paths of a list start from; None is beside it.

    Raises:
        AnnotationError: a list or a text that is not what it should be, naming file and line.
        DataError: no videos, or nothing said of any.
    """
    if source.is_file() or not source.is_dir():
        return _listed(source, videos)
    table = find_optional(source, _LISTS)
    if table is not None:
        return _listed(table, videos)
    inner = source / "train" if (source / "train").is_dir() else source
    files = list(video_files(inner))
    if not files:
        raise DataError(f"{source}: holds neither a list of captions (captions.csv) nor a video: name one that does")
    if any(file.with_suffix(end).is_file() for file in files for end in (".txt", ".json")):
        rows = readers.read("sidecars", source)
        return Own(_by_clip(rows), inner, "texts beside the videos")
    return _named(files, inner)


def _listed(table: Path, videos: Path | None) -> Own:
    rows = readers.read("captions", table, videos)
    return Own(_by_clip(rows), video_root(table, videos), table.name)


def _named(files: Iterable[Path], root: Path) -> Own:
    """Videos by their file names; by their folder's, where those say nothing."""
    found: list[Example] = []
    nameless: list[str] = []
    for path in files:
        name = path.relative_to(root)
        caption = said_by(name.stem) or said_by(name.parent.name)
        if caption:
            found.append(Example(key=name.as_posix(), video=name.as_posix(), clip=Clip(path), captions=(caption,)))
        else:
            nameless.append(name.as_posix())
    if not found:
        raise DataError(
            f"{root}: no captions: there is no captions.csv, no text beside a video, and names such as {nameless[0]} "
            "say nothing: write a list with the columns path and caption"
        )
    return Own(tuple(found), root, "file names", tuple(nameless))


def said_by(name: str) -> str:
    """The words of a file's name without numbers and what cameras write: "a_dog-runs_003" says "a dog runs".

    Empty where no word of three letters is left.
    """
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    words = [word.lower() for word in re.findall(r"[^\W\d_]+", spaced)]
    words = [word for word in words if word not in _NAMELESS]
    return " ".join(words) if any(len(word) > 2 for word in words) else ""


def _by_clip(rows: Iterable[Example]) -> tuple[Example, ...]:
    """Rows of one clip as one row with all their captions, in order of first mention."""
    found: dict[str, Example] = {}
    for row in rows:
        before = found.get(row.clip.id)
        captions = row.captions if before is None else (*before.captions, *row.captions)
        found[row.clip.id] = replace(before or row, captions=tuple(dict.fromkeys(captions)))
    return tuple(found.values())
