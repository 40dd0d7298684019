"""WebDataset shards: tar files in which the members of a sample share a name up to its first dot."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

from evilm.data.readers.places import EXTENSIONS, find, pictures
from evilm.data.readers.row import CAPTION_COLUMNS, Row
from evilm.data.video.container import tar_members
from evilm.data.video.pictures import read_members
from evilm.errors import AnnotationError, VideoError
from evilm.types import Clip, Example

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_TEXTS = ("txt", "json", "cls")


def shards(annotations: Path, videos: Path | None, split: str) -> Iterator[Example]:
    """One example a sample: ``<key>.mp4`` or pictures ``<key>.00.jpg``, with ``<key>.txt``, ``.json`` or ``.cls``.

    ``annotations`` is one uncompressed tar, or a folder with ``{split}.tar``, ``{split}-*.tar`` or ``{split}/*.tar``; a
    folder whose tars are named after no split is all of one. A ``.txt`` has a caption a line; a ``.json`` holds
    ``caption`` or ``captions``, and where there are, ``label``, ``kind``, ``question``, ``answer`` and ``options``; a
    ``.cls`` is the number of the class. Of a shard its list of members is held, and the texts of one sample at a time;
    pixels are read from their place in it.

    Raises:
        AnnotationError: a shard is missing, damaged or compressed, or a sample has no video and no pictures.
    """
    del videos
    for path in _tars(annotations, split):
        try:
            members = tar_members(path)
            samples: dict[str, list[str]] = {}
            for member in members:
                samples.setdefault(_key(member), []).append(member)
            if not samples:
                raise AnnotationError(path, "holds no samples")
            for number, (key, names) in enumerate(samples.items(), start=1):
                yield _example(path, number, key, names)
        except VideoError as error:
            raise AnnotationError(path, error.reason) from None


def _tars(annotations: Path, split: str) -> list[Path]:
    """The shards of a split, in the order of their names."""
    if not annotations.is_dir():
        return [find(annotations, ())]
    patterns = (f"{split}.tar", f"{split}-*.tar", f"{split}_*.tar", f"{split}/*.tar")
    found = sorted({path for pattern in patterns for path in annotations.glob(pattern)})
    named = any(annotations.glob(f"{name}{rest}") for name in ("train", "val", "test") for rest in ("*.tar", "/*.tar"))
    if found or named:
        return found or [find(annotations, patterns)]
    return sorted(annotations.glob("*.tar")) or [find(annotations, patterns)]


def _key(member: str) -> str:
    """A member's name up to the first dot after its folder."""
    folder, slash, base = member.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _example(path: Path, number: int, key: str, names: list[str]) -> Example:
    kinds = {name[len(key) + 1 :].lower(): name for name in names}
    films = [name for name in names if name.lower().endswith(EXTENSIONS)]
    frames = tuple(films[:1] or pictures(names))
    if not frames:
        raise AnnotationError(path, f"sample {key!r} has no video and no pictures; it has {', '.join(kinds)}", number)
    wanted = [kind for kind in _TEXTS if kind in kinds]
    told = dict(zip(wanted, read_members(path, [kinds[kind] for kind in wanted]), strict=True))
    row = Row(path, number, _facts(path, number, key, told))
    field = next((name for name in ("captions", *CAPTION_COLUMNS) if row.has(name)), None)
    options = row.texts("options") if row.has("options") else ()
    return Example(
        key=key,
        video=key,
        clip=Clip(path, frames=frames),
        captions=row.texts(field) if field and not options else (),
        question=row.first("question"),
        answer=row.first("answer") if not options else None,
        choices=options,
        label=row.integer("answer" if options else "label") if options or row.has("label") else None,
        kind=row.first("kind"),
    )


def _facts(path: Path, number: int, key: str, told: dict[str, bytes]) -> dict[str, Any]:
    """What the texts of a sample say, as fields."""
    try:
        facts: Any = json.loads(told["json"]) if "json" in told else {}
        if not isinstance(facts, dict):
            raise AnnotationError(path, f"{key}.json is not a json table", number)
        if "txt" in told:
            lines = told["txt"].decode("utf-8-sig").splitlines()
            facts["captions"] = [line.strip() for line in lines if line.strip()]
        if "cls" in told:
            facts["label"] = told["cls"].decode("ascii").strip()
    except (ValueError, RecursionError) as error:
        raise AnnotationError(path, f"the texts of sample {key!r} cannot be read: {error}", number) from None
    return cast("dict[str, Any]", facts)
