"""Captioned pictures as clips of one frame: COCO captions and Flickr8k."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from evilm.data.readers.places import find_beside, find_file, find_optional, video_root
from evilm.data.readers.tables import json_rows, lines, list_rows, read_json, read_names, read_rows
from evilm.errors import AnnotationError, SplitError
from evilm.types import Clip, Example

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_KARPATHY = {"train": ("train", "restval")}  # his splits of ours; the others have our names
_FLICKR = {"val": "dev"}


def coco_captions(annotations: Path, videos: Path | None, split: str) -> Iterator[Example]:
    """One example a picture with all its captions, in the order of the pictures.

    The file is ``captions_{split}2017.json`` (or 2014; the test split has no published captions), or Karpathy's
    ``dataset_coco.json``, whose ``restval`` is part of ``train``. Pictures are ``{split}2017/<file>``, or in
    ``videos``.
    """
    source = find_file(annotations, (f"captions_{split}20??.json", "dataset_coco.json", f"coco_karpathy_{split}*.json"))
    data: Any = read_json(source)
    if isinstance(data, list):
        yield from _caption_list(source, cast("list[Any]", data), videos)
        return
    if isinstance(data, dict) and "annotations" not in data and "images" in data:
        yield from _karpathy(source, data, videos, split)
        return
    root = video_root(annotations, videos, (source.stem.removeprefix("captions_"), "images"))
    captions: dict[str, list[str]] = {}
    for row in json_rows(source, data, "annotations"):
        captions.setdefault(row.text("image_id"), []).append(row.text("caption"))
    known: set[str] = set()
    for row in json_rows(source, data, "images"):
        key, name = row.text("id"), row.text("file_name")
        if key in known:
            raise row.error(f"'images' names {key} twice")
        known.add(key)
        yield Example(key=key, video=name, clip=_picture(root, name), captions=tuple(captions.get(key, ())))
    if unknown := [key for key in captions if key not in known]:
        raise AnnotationError(source, f"has captions of picture {unknown[0]}, which is not in 'images'")


def flickr8k(annotations: Path, videos: Path | None, split: str) -> Iterator[Example]:
    """One example a picture with its five captions, for the pictures of ``Flickr_8k.{train,dev,test}Images.txt``.

    Captions are ``Flickr8k.token.txt`` ("picture#0<tab>caption"), a table of ``image, caption`` (``captions.txt``), or
    Karpathy's ``dataset_flickr8k.json``. A file of captions without a list beside it is one split. For tar files of
    Flickr8k see the reader ``frames``.
    """
    source = find_file(annotations, ("Flickr8k.token.txt", "dataset_flickr8k.json", "captions.txt", "captions.csv"))
    if source.suffix == ".json":
        yield from _karpathy(source, read_json(source), videos, split)
        return
    root = video_root(annotations, videos, ("Flicker8k_Dataset", "Flickr8k_Dataset", "Images", "images"))
    captions = _token_captions(source)
    name = f"Flickr_8k.{_FLICKR.get(split, split)}Images.txt"
    listing = find_optional(annotations, (name,))
    if annotations.is_dir() and listing is None and find_beside(source, ("Flickr_8k.*Images.txt",)):
        raise SplitError(annotations, f"has no {name}")
    for picture in captions if listing in (None, source) else read_names(listing):
        if picture not in captions:
            raise AnnotationError(listing or source, f"{source.name} has no caption for {picture!r} of split {split!r}")
        yield Example(key=picture, video=picture, clip=_picture(root, picture), captions=tuple(captions[picture]))


def _token_captions(source: Path) -> dict[str, list[str]]:
    """Captions by picture, from ``picture#0<tab>caption`` lines or a table with a header."""
    captions: dict[str, list[str]] = {}
    if "\t" not in next(lines(source), ""):
        for row in read_rows(source, "columns image, caption"):
            captions.setdefault(row.text("image"), []).append(row.text("caption"))
        return captions
    for number, line in enumerate(lines(source), start=1):
        head, tab, text = line.strip().partition("\t")
        name, mark, _ = head.rpartition("#")
        if not tab or not mark or not text.strip():
            raise AnnotationError(source, f"{line.strip()!r:.80} is not picture#0, a tab and a caption", number)
        captions.setdefault(name, []).append(text.strip())
    return captions


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
        captions = tuple(each.text("raw") for each in json_rows(source, row.values, "sentences"))
        key = row.first("imgid", "cocoid") or name
        yield Example(key=key, video=name, clip=_picture(root, nested), captions=captions)


def _caption_list(source: Path, data: Sequence[Any], videos: Path | None) -> Iterator[Example]:
    """A list of ``image`` and ``caption`` (a text or a list), one entry a picture or one a caption."""
    root = video_root(source, videos, ("images",))
    first_line: dict[str, int] = {}
    captions: dict[str, list[str]] = {}
    for row in list_rows(source, data):
        first_line.setdefault(row.text("image"), row.line)
        captions.setdefault(row.text("image"), []).extend(row.texts("caption"))
    for name, texts in captions.items():
        clip = _picture(root, name if (root / name).exists() else Path(name).name)
        yield Example(key=str(first_line[name]), video=name, clip=clip, captions=tuple(texts))


def _picture(root: Path, name: str) -> Clip:
    path = root / name
    return Clip(path.parent, frames=(path.name,))
