"""Data sets of no name: a table of paths and captions, a folder a class, tar files of still frames."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from typing import TYPE_CHECKING, Any, cast

from evilm.data import stills
from evilm.data.readers.places import Videos, find, video_files, video_root
from evilm.data.readers.tables import CAPTION_COLUMNS, PATH_COLUMNS, Row, first_column, read_rows
from evilm.errors import AnnotationError, VideoError
from evilm.types import Clip, Example

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_FRAME = re.compile(r"(.+)\.(\d+)\.(?:jpe?g|png|webp|bmp)", re.IGNORECASE)


def captions(
    annotations: Path, videos: Path | None, split: str,
    path_column: str | None = None, caption_column: str | None = None,
) -> Iterator[Example]:  # fmt: skip
    """Any csv, tsv or jsonl with a column of paths and one of captions; ``start`` and ``end`` (seconds) are read.

    Args:
        annotations: the table, or a folder with ``{split}.csv`` (tsv, jsonl) or ``captions.csv``.
        videos: the folder the paths start from; None is the table's own.
        split: rows of a ``split`` column that say otherwise are left out.
        path_column, caption_column: their names where they are not among the usual ones.
    """
    table = find(
        annotations, tuple(f"{name}.{kind}" for name in (split, "captions") for kind in ("csv", "tsv", "jsonl", "json"))
    )
    library = Videos(video_root(table, videos))
    for row in read_rows(table):
        if row.has("split") and row.text("split") != split:
            continue
        name = row.text(path_column or first_column(row, PATH_COLUMNS, "the video"))
        texts = row.texts(caption_column or first_column(row, CAPTION_COLUMNS, "the caption"))
        yield Example(key=str(row.line), video=name, clip=_part(library, name, row), captions=texts)


def _part(library: Videos, name: str, row: Row) -> Clip:
    start = row.seconds("start") if row.has("start") else 0.0
    end = row.seconds("end") if row.has("end") else None
    if end is not None and end <= start:
        raise row.error(f"'end' is {end:g}, not after 'start' {start:g}")
    return library.clip(name, start, end)


def classes(annotations: Path, videos: Path | None, split: str) -> Iterator[Example]:
    """A folder a class: ``annotations/{split}/<class>/...``, or ``annotations/<class>/...`` where all is one split."""
    root = videos or annotations
    if not root.is_dir():
        raise AnnotationError(root, "no such folder of classes")
    root = root / split if (root / split).is_dir() else root
    names = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise AnnotationError(root, "holds no folders: one a class is needed")
    for label, kind in enumerate(names):
        for path in video_files(root / kind):
            name = path.relative_to(root).as_posix()
            yield Example(key=name, video=name, clip=Clip(path), label=label, kind=kind)


def frames(annotations: Path, videos: Path | None, split: str) -> Iterator[Example]:
    """Still frames in tar files: ``{split}*.tar`` with ``<video>.<number>.jpg`` and ``<video>.json``.

    The json holds ``captions`` (a list), and where there are, ``category`` (a number: the label), ``kind``, and
    ``sentence_1ka``: the one sentence of the 1k-A test, which becomes the first caption.
    """
    del videos
    if annotations.is_dir():
        find(annotations, (f"{split}.tar", f"{split}-*.tar"))  # complains where there are none
        tars = sorted({*annotations.glob(f"{split}.tar"), *annotations.glob(f"{split}-*.tar")})
    else:
        tars = [annotations]
    for path in tars:
        yield from _frames_of(path)


def _frames_of(path: Path) -> Iterator[Example]:
    try:
        members = stills.members(path)
        pictures: dict[str, list[tuple[int, str]]] = defaultdict(list)
        for member in members:
            if match := _FRAME.fullmatch(member):
                pictures[match[1]].append((int(match[2]), member))
        names = sorted(pictures, key=lambda name: members[pictures[name][0][1]][0])  # as they lie in the file
        texts = stills.read(path, [f"{name}.json" for name in names if f"{name}.json" in members])
    except VideoError as error:
        raise AnnotationError(path, error.reason) from None
    if not names:
        raise AnnotationError(path, "holds no frames named <video>.<number>.jpg")
    facts = dict(zip([name for name in names if f"{name}.json" in members], texts, strict=True))
    for line, name in enumerate(names, start=1):
        row = Row(path, line, _facts(path, name, facts.get(name)))
        told = row.texts("captions") if row.has("captions") else ()
        if row.has("sentence_1ka"):
            first = row.text("sentence_1ka")
            told = (first, *(caption for caption in told if caption != first))
        yield Example(
            key=name,
            video=name,
            clip=Clip(path, frames=tuple(member for _, member in sorted(pictures[name]))),
            captions=told,
            label=row.integer("category") if row.has("category") else None,
            kind=row.text("kind") if row.has("kind") else None,
        )


def _facts(path: Path, name: str, data: bytes | None) -> dict[str, Any]:
    try:
        value: Any = {} if data is None else json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise AnnotationError(path, f"{name}.json is not a json table")
    return cast("dict[str, Any]", value)
