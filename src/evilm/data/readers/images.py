"""Captioned pictures as clips of one frame: COCO captions and Flickr8k."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from evilm.data.readers.places import beside, find, find_optional, video_root
from evilm.data.readers.tables import json_rows, list_rows, read_json, read_rows
from evilm.data.readers.text import lines, listed
from evilm.errors import AnnotationError, SplitError
from evilm.types import Clip, Example

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from evilm.data.readers.row import Row

_KARPATHY = {"train": ("train", "restval"), "val": ("val",), "test": ("test",)}
_DEV = {"val": "dev"}  # Flickr8k's own word


def coco_captions(annotations: Path, videos: Path | None, split: str) -> Iterator[Example]:
    """One example a picture with all its captions, in the order of the pictures.

    The file is ``captions_{split}2017.json`` (or 2014; the test split has no published captions), or Karpathy's
    ``dataset_coco.json``, whose ``restval`` goes into ``train``. Pictures are ``{split}2017/<file>``, or lie in the
    folder named.
    """
    source = find(annotations, (f"captions_{split}20??.json", "dataset_coco.json", f"coco_karpathy_{split}*.json"))
    data: Any = read_json(source)
    if isinstance(data, list):
        yield from _listed(source, cast("list[Any]", data), videos)
        return
    if isinstance(data, dict) and "annotations" not in data and "images" in data:
        yield from _karpathy(source, data, videos, split)
        return
    root = video_root(annotations, videos, (source.stem.removeprefix("captions_"), "images"))
    told: dict[str, list[str]] = {}
    for row in json_rows(source, data, "annotations"):
        told.setdefault(row.text("image_id"), []).append(row.text("caption"))
    known: set[str] = set()
    for row in json_rows(source, data, "images"):
        key, name = row.text("id"), row.text("file_name")
        if key in known:
            raise row.error(f"'images' names {key} twice")
        known.add(key)
        yield Example(key=key, video=name, clip=_picture(root, name), captions=tuple(told.get(key, ())))
    if strays := [key for key in told if key not in known]:
        raise AnnotationError(source, f"has captions of picture {strays[0]}, which 'images' does not name")


def flickr8k(annotations: Path, videos: Path | None, split: str) -> Iterator[Example]:
    """One example a picture with its five captions, for the pictures of ``Flickr_8k.{train,dev,test}Images.txt``.

    Captions are ``Flickr8k.token.txt`` ("picture#0<tab>caption"), a table of ``image, caption`` (``captions.txt``), or
    Karpathy's ``dataset_flickr8k.json``. A file of captions by itself, with no list beside it, is one split.
    """
    source = find(annotations, ("Flickr8k.token.txt", "dataset_flickr8k.json", "captions.txt", "captions.csv"))
    if source.suffix == ".json":
        yield from _karpathy(source, read_json(source), videos, split)
        return
    root = video_root(annotations, videos, ("Flicker8k_Dataset", "Flickr8k_Dataset", "Images", "images"))
    told = _tokens(source)
    listing = find_optional(annotations, (f"Flickr_8k.{_DEV.get(split, split)}Images.txt",))
    if annotations.is_dir() and listing is None and beside(source, ("Flickr_8k.*Images.txt",)):
        raise SplitError(annotations, f"has no Flickr_8k.{_DEV.get(split, split)}Images.txt")
    for name in told if listing in (None, source) else listed(listing):
        if name not in told:
            raise AnnotationError(listing or source, f"{source.name} has no caption for {name!r} of split {split!r}")
        yield Example(key=name, video=name, clip=_picture(root, name), captions=tuple(told[name]))


def _tokens(source: Path) -> dict[str, list[str]]:
    """Captions by picture, of ``picture#0<tab>caption`` lines or of a table with a header."""
    first = next(lines(source), "")
    found: dict[str, list[str]] = {}
    if "\t" not in first:
        for row in read_rows(source):
            found.setdefault(row.text("image"), []).append(row.text("caption"))
        return found
    for number, line in enumerate(lines(source), start=1):
        head, tab, text = line.strip().partition("\t")
        name, mark, _ = head.rpartition("#")
        if not tab or not mark or not text.strip():
            raise AnnotationError(source, f"{line.strip()!r:.80} is not picture#0, a tab and a caption", number)
        found.setdefault(name, []).append(text.strip())
    if not found:
        raise AnnotationError(source, "holds no captions")
    return found


def _karpathy(source: Path, data: Any, videos: Path | None, split: str) -> Iterator[Example]:
    """The pictures of one split of a json that lists ``images`` with ``split`` and ``sentences[].raw``."""
    rows = json_rows(source, data, "images")
    wanted = _KARPATHY.get(split, (split,))
    known = sorted({row.text("split") for row in rows})
    if not {*wanted} & {*known}:
        raise SplitError(source, f"has no pictures of split {split!r}; its splits: {', '.join(known) or 'none'}")
    root = video_root(source, videos, ("images", "Images", "Flicker8k_Dataset"))
    for row in rows:
        if row.text("split") not in wanted:
            continue
        folder, name = row.first("filepath"), row.text("filename")
        nested = f"{folder}/{name}" if folder and (root / folder).is_dir() else name
        texts = tuple(each.text("raw") for each in json_rows(source, row.values, "sentences"))
        key = row.first("imgid", "cocoid") or name
        yield Example(key=key, video=name, clip=_picture(root, nested), captions=texts)


def _listed(source: Path, data: Sequence[Any], videos: Path | None) -> Iterator[Example]:
    """A list of ``image`` and ``caption`` (a text or a list), one row a picture or one a caption."""
    root = video_root(source, videos, ("images",))
    rows: dict[str, Row] = {}
    told: dict[str, list[str]] = {}
    for row in list_rows(source, list(data)):
        rows.setdefault(row.text("image"), row)
        told.setdefault(row.text("image"), []).extend(row.texts("caption"))
    for name, captions in told.items():
        clip = _picture(root, name if (root / name).exists() else Path(name).name)
        yield Example(key=str(rows[name].line), video=name, clip=clip, captions=tuple(captions))


def _picture(root: Path, name: str) -> Clip:
    given = root / name
    return Clip(given.parent, frames=(given.name,))
