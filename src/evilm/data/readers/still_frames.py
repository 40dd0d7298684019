"""Videos that are still frames: tar files of them, or a folder a video."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from typing import TYPE_CHECKING, Any, cast

from evilm.data.readers.places import find, pictures
from evilm.data.readers.row import Row
from evilm.data.readers.tables import read_json
from evilm.data.readers.text import listed
from evilm.data.video.container import tar_members
from evilm.data.video.pictures import read_members
from evilm.errors import AnnotationError, VideoError
from evilm.types import Clip, Example

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_FRAME = re.compile(r"(.+)\.(\d+)\.(?:jpe?g|png|webp|bmp)", re.IGNORECASE)


def frames(annotations: Path, videos: Path | None, split: str) -> Iterator[Example]:
    """Still frames in tar files or in folders, one example a video.

    Tar files: ``{split}.tar`` or ``{split}-*.tar`` with ``<video>.<number>.jpg`` and ``<video>.json``. Folders:
    ``[{split}/]<video>/*.jpg``, in the order of the numbers in their names, with ``<video>.txt`` (a caption a line) or
    ``<video>.json`` beside each. The json holds ``captions`` (a list), and where there are, ``category`` (a number: the
    label), ``kind``, and ``sentence_1ka``: the one sentence of the 1k-A test, which becomes the first caption.
    """
    if annotations.is_dir() and not any(annotations.glob("*.tar")):
        yield from _folders(annotations, videos, split)
        return
    if annotations.is_dir():
        find(annotations, (f"{split}.tar", f"{split}-*.tar"))  # complains where there are none
        tars = sorted({*annotations.glob(f"{split}.tar"), *annotations.glob(f"{split}-*.tar")})
    else:
        tars = [annotations]
    for path in tars:
        yield from _of_tar(path)


def _folders(annotations: Path, videos: Path | None, split: str) -> Iterator[Example]:
    texts = annotations / split if (annotations / split).is_dir() else annotations
    root = texts if videos is None else videos / split if (videos / split).is_dir() else videos
    try:
        found = sorted(entry for entry in root.iterdir() if entry.is_dir())
    except OSError as error:
        raise AnnotationError(root, f"cannot be read: {error.strerror}") from None
    empty = True
    for folder in found:
        names = pictures(entry.name for entry in folder.iterdir())
        if names:
            empty = False
            yield _example(folder.name, Clip(folder, frames=tuple(names)), _beside(texts / folder.name))
    if empty:
        raise AnnotationError(
            root, f"holds no {split}.tar and no folders of pictures (jpg, png, webp, bmp), one a video"
        )


def _beside(stem: Path) -> Row:
    """What stands beside a folder of frames."""
    if (path := stem.with_name(stem.name + ".txt")).is_file():
        return Row(path, 1, {"captions": listed(path)})
    path = stem.with_name(stem.name + ".json")
    data: Any = read_json(path) if path.is_file() else {}
    if not isinstance(data, dict):
        raise AnnotationError(path, "is not a json table")
    return Row(path, 1, cast("dict[str, Any]", data))


def _of_tar(path: Path) -> Iterator[Example]:
    try:
        members = tar_members(path)
        found: dict[str, list[tuple[int, str]]] = defaultdict(list)
        for member in members:
            if match := _FRAME.fullmatch(member):
                found[match[1]].append((int(match[2]), member))
        names = sorted(found, key=lambda name: members[found[name][0][1]][0])  # as they lie in the file
        told = [f"{name}.json" for name in names if f"{name}.json" in members]
        facts = dict(zip(told, read_members(path, told), strict=True))
    except VideoError as error:
        raise AnnotationError(path, error.reason) from None
    if not names:
        raise AnnotationError(path, "holds no frames named <video>.<number>.jpg")
    for line, name in enumerate(names, start=1):
        row = Row(path, line, _facts(path, name, facts.get(f"{name}.json")))
        yield _example(name, Clip(path, frames=tuple(member for _, member in sorted(found[name]))), row)


def _example(name: str, clip: Clip, row: Row) -> Example:
    told = row.texts("captions") if row.has("captions") else ()
    if row.has("sentence_1ka"):
        first = row.text("sentence_1ka")
        told = (first, *(caption for caption in told if caption != first))
    label = row.integer("category") if row.has("category") else None
    return Example(key=name, video=name, clip=clip, captions=told, label=label, kind=row.first("kind"))


def _facts(path: Path, name: str, data: bytes | None) -> dict[str, Any]:
    try:
        value: Any = {} if data is None else json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise AnnotationError(path, f"{name}.json is not a json table")
    return cast("dict[str, Any]", value)
