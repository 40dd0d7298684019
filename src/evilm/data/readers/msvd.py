"""MSVD: about 41 captions a YouTube clip for retrieval, and the questions of MSVD-QA."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from evilm.data.readers.places import Videos, beside, find, find_optional, plain_name, video_root
from evilm.data.readers.questions import question
from evilm.data.readers.sentences import by_video
from evilm.data.readers.tables import read_rows
from evilm.data.readers.text import lines, listed
from evilm.errors import AnnotationError, SplitError
from evilm.types import Example

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FOLDERS = ("YouTubeClips", "videos")
CAPTION_FILES = ("AllVideoDescriptions.txt", "captions_msvd*.json", "*captions*.json", "msvd*.json")
MAPPINGS = ("youtube_mapping.txt", "*youtube_mapping.txt")


def msvd_retrieval(annotations: Path, videos: Path | None, split: str) -> Iterator[Example]:
    """One example a clip with all its captions, for the clips of ``{split}_list.txt``, in its order.

    Captions are ``AllVideoDescriptions.txt`` ("clip sentence" lines) or json, by clip or as a list. A file of captions
    given by itself is one split; ``youtube_mapping.txt`` translates ``vid7`` where captions are numbered so.
    """
    library = Videos(video_root(annotations, videos, FOLDERS), ".avi")
    names = _mapping(annotations)

    def clip_name(name: str) -> str:
        return names.get(_numbered(name), plain_name(name))

    listing = (
        find_optional(annotations, (f"{split}_list.txt", f"msvd_{split}*list*.txt")) if annotations.is_dir() else None
    )
    if annotations.is_file() and annotations.name.endswith("_list.txt"):
        listing = annotations
    source = find_optional(annotations, CAPTION_FILES) if listing != annotations else beside(annotations, CAPTION_FILES)
    if source is None or (listing is None and annotations.is_dir()):
        find(annotations, (f"{split}_list.txt",) if source else CAPTION_FILES)
    assert source is not None
    captions = by_video(source, clip_name)
    wanted = list(captions) if listing is None else [clip_name(name) for name in listed(listing)]
    if not wanted:
        raise SplitError(listing or source, f"names no clips of split {split!r}")
    for name in wanted:
        if name not in captions:
            raise AnnotationError(listing or source, f"{source.name} has no caption for {name!r} of split {split!r}")
        yield Example(key=name, video=name, clip=library.clip(name), captions=tuple(captions[name]))


def msvd_qa(annotations: Path, videos: Path | None, split: str) -> Iterator[Example]:
    """Open-ended questions: ``{split}_qa.json`` (a list) or ``msvd_{split}_qa_encode.json`` (a table a line).

    ``video_id`` is a number, which ``youtube_mapping.txt`` (beside the questions) translates to the name of the clip;
    without that file the videos are looked for as ``vid7``.

    Raises:
        AnnotationError: also where the mapping lacks a number.
    """
    patterns = (
        f"{split}_qa.json",
        f"msvd_{split}_qa*.json",
        f"{split}_qa.jsonl",
        f"*qa_{split}.jsonl",
        f"{split}.jsonl",
    )
    table = find(annotations, patterns)
    library = Videos(video_root(annotations, videos, FOLDERS), ".avi")
    names = _mapping(annotations)
    for row in read_rows(table):
        told = row.text("video_id")
        number = _numbered(told)
        if names and number not in names and number != told:
            raise row.error(f"'video_id' is {told}, and youtube_mapping.txt has no {number}")
        name = names.get(number, plain_name(number))
        yield question(row, name, library.clip(name))


def _mapping(annotations: Path) -> dict[str, str]:
    """The lines "clip vid7" of youtube_mapping.txt as ``vid7`` to clip; empty where there is no such file.

    Raises:
        AnnotationError: a line is of another kind, or names a number twice.
    """
    path = beside(annotations, MAPPINGS)
    found: dict[str, str] = {}
    for number, line in enumerate(lines(path) if path else (), start=1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 2 or not re.fullmatch(r"vid\d+", fields[1]):
            raise AnnotationError(path or annotations, f"{line.strip()!r:.60} is not a clip followed by vid7", number)
        if found.setdefault(fields[1], fields[0]) != fields[0]:
            raise AnnotationError(
                path or annotations, f"{fields[1]} is named twice: {found[fields[1]]}, {fields[0]}", number
            )
    return found


def _numbered(name: str) -> str:
    """``vid7`` from 7, ``vid7`` or ``video7``; other names stay."""
    match = re.fullmatch(r"(?:vid|video)?(\d+)(?:\.\w+)?", name)
    return f"vid{match[1]}" if match else name
