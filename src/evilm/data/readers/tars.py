"""Tar files: still frames with captions or questions (also in folders), and WebDataset shards."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from typing import TYPE_CHECKING, Any, cast

from evilm.data.readers.captions import SPLIT_NAMES
from evilm.data.readers.places import find_file, pictures
from evilm.data.readers.rows import CAPTION_COLUMNS, Row, question, right_option
from evilm.data.readers.tables import list_rows, read_json, read_names
from evilm.data.video.container import tar_members
from evilm.data.video.pictures import read_members
from evilm.errors import AnnotationError, VideoError
from evilm.files import VIDEO_SUFFIXES
from evilm.types import Clip, Example

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_FRAME = re.compile(r"(.+)\.(\d+)\.(?:jpe?g|png|webp|bmp)", re.IGNORECASE)
_TEXTS = ("txt", "json", "cls")


# Still frames


def frames(annotations: Path, videos: Path | None, split: str) -> Iterator[Example]:
    """Still frames in tar files or in folders, one example a video; a photograph is a video of one frame.

    Tar files: ``{split}.tar`` or ``{split}-*.tar`` (``dev`` for ``val`` too) with ``<video>.<number>.jpg`` and
    ``<video>.json``. Folders: ``[{split}/]<video>/*.jpg``, in the order of the numbers in their names, with
    ``<video>.txt`` (a caption a line) or ``<video>.json`` beside each. The json has ``captions`` (a list) and
    optionally ``category`` (a number: the label), ``kind``, and ``sentence_1ka``: the sentence of MSR-VTT's 1k-A test,
    which becomes the first caption.
    """
    for name, clip, row in _still_frames(annotations, videos, split):
        captions = row.texts("captions") if row.has("captions") else ()
        if row.has("sentence_1ka"):
            first = row.text("sentence_1ka")
            captions = (first, *(caption for caption in captions if caption != first))
        if not captions and row.has("qa"):
            raise row.error(f"{name} has questions and no captions: use the reader frames_qa")
        label = row.integer("category") if row.has("category") else None
        yield Example(key=name, video=name, clip=clip, captions=captions, label=label, kind=row.first("kind"))


def frames_qa(annotations: Path, videos: Path | None, split: str) -> Iterator[Example]:
    """Open-ended questions on still frames, one example a question; files as for ``frames``.

    The json of a video has ``qa``: a list of objects with ``question`` and ``answer``.
    """
    for name, clip, row in _still_frames(annotations, videos, split):
        if not isinstance(row.values.get("qa"), list):
            raise row.error(f"{name} has no list 'qa'; fields found: {', '.join(row.values)[:100] or 'none'}")
        for number, each in enumerate(list_rows(row.path, row.values["qa"])):
            values = {"key": f"{name}-{number}", **each.values}
            yield question(Row(row.path, row.line, values), name, clip)


def _still_frames(annotations: Path, videos: Path | None, split: str) -> Iterator[tuple[str, Clip, Row]]:
    """Name, frames and json of each video."""
    if annotations.is_dir() and not any(annotations.glob("*.tar")):
        yield from _frame_folders(annotations, videos, split)
        return
    tars = [annotations]
    if annotations.is_dir():
        splits = [split, *(name for name, plain in SPLIT_NAMES.items() if plain == split)]
        tars = sorted({path for name in splits for end in (".tar", "-*.tar") for path in annotations.glob(name + end)})
        tars = tars or [find_file(annotations, (f"{split}.tar", f"{split}-*.tar"))]  # raises an error
    for path in tars:
        try:
            members = tar_members(path)
            found: dict[str, list[tuple[int, str]]] = defaultdict(list)
            for member in members:
                if match := _FRAME.fullmatch(member):
                    found[match[1]].append((int(match[2]), member))
            names = sorted(found, key=lambda name: members[found[name][0][1]][0])  # in the order of the tar
            jsons = [f"{name}.json" for name in names if f"{name}.json" in members]
            texts = dict(zip(jsons, read_members(path, jsons), strict=True))
        except VideoError as error:
            raise AnnotationError(path, error.reason) from None
        if not names:
            raise AnnotationError(path, "holds no frames named <video>.<number>.jpg")
        for line, name in enumerate(names, start=1):
            row = Row(path, line, _json_object(path, f"{name}.json", texts.get(f"{name}.json", b"{}"), line))
            yield name, Clip(path, frames=tuple(member for _, member in sorted(found[name]))), row


def _frame_folders(annotations: Path, videos: Path | None, split: str) -> Iterator[tuple[str, Clip, Row]]:
    texts = annotations / split if (annotations / split).is_dir() else annotations
    root = texts if videos is None else videos / split if (videos / split).is_dir() else videos
    try:
        folders = sorted(entry for entry in root.iterdir() if entry.is_dir())
    except OSError as error:
        raise AnnotationError(root, f"cannot be read: {error.strerror}") from None
    empty = True
    for folder in folders:
        names = pictures(entry.name for entry in folder.iterdir())
        if not names:
            continue
        empty = False
        row = Row(texts / folder.name, 1, {})
        if (path := texts / f"{folder.name}.txt").is_file():
            row = Row(path, 1, {"captions": read_names(path)})
        elif (path := texts / f"{folder.name}.json").is_file():
            data: Any = read_json(path)
            if not isinstance(data, dict):
                raise AnnotationError(path, "is not a json object")
            row = Row(path, 1, cast("dict[str, Any]", data))
        yield folder.name, Clip(folder, frames=tuple(names)), row
    if empty:
        raise AnnotationError(
            root, f"holds no {split}.tar and no folders of pictures (jpg, png, webp, bmp), one for each video"
        )


def _json_object(path: Path, name: str, data: bytes, line: int | None) -> dict[str, Any]:
    try:
        value: Any = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise AnnotationError(path, f"{name} is not a json object", line)
    return cast("dict[str, Any]", value)


# WebDataset


def shards(annotations: Path, videos: Path | None, split: str) -> Iterator[Example]:
    """One example a sample: ``<key>.mp4`` or pictures ``<key>.00.jpg``, with ``<key>.txt``, ``.json`` or ``.cls``.

    ``annotations`` is one uncompressed tar, or a folder with ``{split}.tar``, ``{split}-*.tar`` or ``{split}/*.tar``; a
    folder whose tars are named by no split is one split. A ``.txt`` has a caption a line; a ``.json`` has ``caption``
    or ``captions`` and optionally ``label``, ``kind``, ``question``, ``answer`` and ``options``; a ``.cls`` is the
    number of the class. The list of a shard's members and the texts of one sample are in memory; pixels are read in
    place.

    Raises:
        AnnotationError: a shard is missing, damaged or compressed, or a sample has no video and no pictures.
    """
    del videos
    for path in _shard_files(annotations, split):
        try:
            samples: dict[str, list[str]] = {}
            for member in tar_members(path):
                folder, slash, base = member.rpartition("/")
                samples.setdefault(folder + slash + base.partition(".")[0], []).append(member)
            if not samples:
                raise AnnotationError(path, "holds no samples")
            for number, (key, names) in enumerate(samples.items(), start=1):
                yield _sample(path, number, key, names)
        except VideoError as error:
            raise AnnotationError(path, error.reason) from None


def _shard_files(annotations: Path, split: str) -> list[Path]:
    """The shards of a split, sorted by name."""
    if not annotations.is_dir():
        return [find_file(annotations, ())]
    patterns = (f"{split}.tar", f"{split}-*.tar", f"{split}_*.tar", f"{split}/*.tar")
    files = sorted({path for pattern in patterns for path in annotations.glob(pattern)})
    if not files and not any(
        annotations.glob(f"{s}{end}") for s in ("train", "val", "test") for end in ("*.tar", "/*.tar")
    ):
        files = sorted(annotations.glob("*.tar"))
    return files or [find_file(annotations, patterns)]


def _sample(path: Path, number: int, key: str, names: list[str]) -> Example:
    kinds = {name[len(key) + 1 :].lower(): name for name in names}
    videos = [name for name in names if name.lower().endswith(VIDEO_SUFFIXES)]
    members = tuple(videos[:1] or pictures(names))
    if not members:
        raise AnnotationError(path, f"sample {key!r} has no video and no pictures; it has {', '.join(kinds)}", number)
    wanted = [kind for kind in _TEXTS if kind in kinds]
    texts = dict(zip(wanted, read_members(path, [kinds[kind] for kind in wanted]), strict=True))
    values = _json_object(path, f"{key}.json", texts.get("json", b"{}"), number)
    try:
        if "txt" in texts:
            values["captions"] = [
                line.strip() for line in texts["txt"].decode("utf-8-sig").splitlines() if line.strip()
            ]
        if "cls" in texts:
            values["label"] = texts["cls"].decode("ascii").strip()
    except ValueError as error:
        raise AnnotationError(path, f"the texts of sample {key!r} cannot be read: {error}", number) from None
    row = Row(path, number, values)
    field = next((name for name in ("captions", *CAPTION_COLUMNS) if row.has(name)), None)
    options = row.texts("options") if row.has("options") else ()
    label = row.integer("label") if row.has("label") and not options else None
    return Example(
        key=key,
        video=key,
        clip=Clip(path, frames=members),
        captions=row.texts(field) if field and not options else (),
        question=row.first("question"),
        answer=row.first("answer") if not options else None,
        choices=options,
        label=right_option(row, options) if options else label,
        kind=row.first("kind"),
    )
