"""Data sets of no name: a table of paths and captions, videos with a text beside each, a folder a class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from evilm.data.readers.places import Videos, find, video_files, video_root
from evilm.data.readers.row import CAPTION_COLUMNS, PATH_COLUMNS, Row, first_column
from evilm.data.readers.tables import KINDS, read_json, read_rows
from evilm.data.readers.text import listed
from evilm.errors import AnnotationError, SplitError
from evilm.types import Clip, Example

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_SPLITS = {"validation": "val", "validate": "val", "dev": "val"}


def captions(
    annotations: Path, videos: Path | None, split: str,
    path_column: str | None = None, caption_column: str | None = None,
) -> Iterator[Example]:  # fmt: skip
    """Any csv, tsv, jsonl, json or parquet with a column of paths and one of captions.

    ``start`` and ``end`` (seconds) are read where there are such columns. A path may also name a picture, or a folder
    of frames.

    Args:
        annotations: the table, or a folder with ``{split}.csv`` (tsv, jsonl, json, parquet) or ``captions.csv``.
        videos: the folder the paths start from; None is the table's own.
        split: rows of a ``split`` column that say otherwise are left out.
        path_column, caption_column: their names where they are not among the usual ones.
    """
    table = find(annotations, tuple(f"{name}.{kind}" for name in (split, "captions") for kind in KINDS))
    library = Videos(video_root(table, videos))
    for row in read_rows(table):
        if row.has("split") and _SPLITS.get(told := row.text("split"), told) != _SPLITS.get(split, split):
            continue
        name = row.text(path_column or first_column(row, PATH_COLUMNS, "the video"))
        texts = row.texts(caption_column or first_column(row, CAPTION_COLUMNS, "the caption"))
        yield Example(key=str(row.line), video=name, clip=_part(library, name, row), captions=texts)


def _part(library: Videos, name: str, row: Row) -> Clip:
    start = row.seconds("start") if row.has("start") else 0.0
    end = row.seconds("end") if row.has("end") else None
    if end is not None and end <= start:
        raise row.error(f"'end' is {end:g}, not after 'start' {start:g}")
    return library.clip(name, start=start, end=end)


def sidecars(annotations: Path, videos: Path | None, split: str) -> Iterator[Example]:
    """A folder of videos, each with its captions beside it: ``a.mp4`` and ``a.txt`` (one a line) or ``a.json``.

    The json is a text, a list of texts, or a table with ``caption`` or ``captions``. ``annotations/{split}`` is taken
    where it is there, else all of ``annotations``, with the folders below. ``videos`` may hold the videos apart from
    their texts, in the same places.

    Raises:
        AnnotationError: also where a video has no text; names it.
    """
    texts = _split_folder(annotations, split)
    root = _split_folder(videos, split) if videos is not None else texts
    for path in video_files(root):
        name = path.relative_to(root).as_posix()
        beside = texts / name
        told = next((file for end in (".txt", ".json") if (file := beside.with_suffix(end)).is_file()), None)
        if told is None:
            raise AnnotationError(beside, f"has no {beside.stem}.txt or {beside.stem}.json with captions beside it")
        yield Example(key=name, video=name, clip=Clip(path), captions=_told(told))


def videos_alone(annotations: Path, videos: Path | None, split: str) -> Iterator[Example]:
    """Videos without any text, with all folders below: ``annotations/{split}`` where it is there, else ``annotations``.

    For what learns from videos alone, such as distillation.
    """
    root = _split_folder(videos or annotations, split)
    for path in video_files(root):
        name = path.relative_to(root).as_posix()
        yield Example(key=name, video=name, clip=Clip(path))


def _told(path: Path) -> tuple[str, ...]:
    """The captions of a sidecar."""
    if path.suffix == ".txt":
        found: list[Any] = list(listed(path))
    else:
        data: Any = read_json(path)
        if isinstance(data, dict):
            row = Row(path, 1, cast("dict[str, Any]", data))
            return row.texts(first_column(row, CAPTION_COLUMNS, "the caption"))
        found = cast("list[Any]", data) if isinstance(data, list) else [data]
    if not found:
        raise AnnotationError(path, "holds no caption")
    return Row(path, 1, {"captions": found}).texts("captions")


def classes(annotations: Path, videos: Path | None, split: str) -> Iterator[Example]:
    """A folder a class: ``annotations/{split}/<class>/...``, or ``annotations/<class>/...`` where all is one split.

    Classes are numbered by the alphabet over all the splits there are, so that a class that one split lacks moves none.
    """
    home = videos or annotations
    root = _split_folder(home, split)
    names = _folders(root)
    if root != home:
        splits = [entry for entry in _folders(home) if entry in (split, "train", "val", "test")]
        names = sorted({name for entry in splits for name in _folders(home / entry)})
    if not _folders(root):
        raise AnnotationError(root, "holds no folders: one a class is needed")
    for label, kind in enumerate(names):
        for path in video_files(root / kind):
            name = path.relative_to(root).as_posix()
            yield Example(key=name, video=name, clip=Clip(path), label=label, kind=kind)


def _folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _split_folder(folder: Path, split: str) -> Path:
    """The folder of a split, or the whole where there are no splits.

    Raises:
        AnnotationError: no such folder.
        SplitError: there are folders of other splits, and none of this one.
    """
    if not folder.is_dir():
        raise AnnotationError(folder, "no such folder of videos")
    if (folder / split).is_dir():
        return folder / split
    others = [name for name in ("train", "val", "test") if (folder / name).is_dir()]
    if others:
        raise SplitError(folder, f"has no folder {split!r}; its splits: {', '.join(others)}")
    return folder
