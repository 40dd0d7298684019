"""Captioned videos: tables of paths and captions, text files beside videos, class folders, WebVid and DiDeMo."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from evilm.data.readers.places import (
    VideoFolder,
    find_file,
    find_optional,
    plain_name,
    video_files,
    video_root,
)
from evilm.data.readers.rows import CAPTION_COLUMNS, PATH_COLUMNS, Row
from evilm.data.readers.tables import FORMATS, gzip_lines, json_rows, lines, list_rows, read_json, read_names, read_rows
from evilm.errors import AnnotationError, SplitError
from evilm.types import Clip, Example

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

SPLIT_NAMES = {"validation": "val", "validate": "val", "valid": "val", "dev": "val", "training": "train"}
VIDEO_FIELDS = ("video_id", "video", "clip_name", "image_id", "id", "path")
TEXT_FIELDS = ("caption", "captions", "sentence", "sentences", "description", "text", "desc", "enCap")
DIDEMO_SECONDS = 31.0  # DiDeMo's annotators saw six segments of five seconds


def captions(
    annotations: Path, videos: Path | None, split: str,
    path_column: str | None = None, caption_column: str | None = None,
) -> Iterator[Example]:  # fmt: skip
    """A csv, tsv, jsonl, json or parquet table with a column of paths and a column of captions.

    Optional columns are ``start`` and ``end`` (seconds), ``split``, and ``kind`` or ``verb`` (the group of a row in
    reports). A path may also name a picture or a folder of frames.

    Args:
        annotations: the table, or a folder with ``{split}.csv`` (tsv, jsonl, json, parquet) or ``captions.csv``.
        videos: the folder that paths are relative to; None takes the table's folder.
        split: rows with another value in the column ``split`` are skipped.
        path_column, caption_column: names of the columns, if not among the usual ones.
    """
    table = find_file(annotations, tuple(f"{name}.{kind}" for name in (split, "captions") for kind in FORMATS))
    library = VideoFolder(video_root(table, videos))
    needed = (
        f"a column of paths ({', '.join(PATH_COLUMNS[:4])}, ...) and one of captions ({', '.join(CAPTION_COLUMNS)})"
    )
    for row in read_rows(table, needed):
        if row.has("split") and plain_split(row.text("split")) != plain_split(split):
            continue
        name = row.text(path_column or row.column(PATH_COLUMNS, "the video"))
        texts = row.texts(caption_column or row.column(CAPTION_COLUMNS, "the caption"))
        start = row.seconds("start") if row.has("start") else 0.0
        end = row.seconds("end") if row.has("end") else None
        if end is not None and end <= start:
            raise row.error(f"'end' is {end:g}, not after 'start' {start:g}")
        clip = library.clip(name, start=start, end=end)
        yield Example(key=str(row.line), video=name, clip=clip, captions=texts, kind=row.first("kind", "verb"))


def sentences(annotations: Path, videos: Path | None, split: str) -> Iterator[Example]:  # noqa: ARG001, a reader
    """Text files with a sentence a line (``.txt``, ``.txt.gz``), without videos: each distinct sentence is a row.

    Args:
        annotations: a file, or a folder, of which all such files are read.
        videos, split: not used.
    """
    files = sorted(annotations.glob("*.txt*")) if annotations.is_dir() else [annotations]
    seen: set[str] = set()
    for file in files:
        found = gzip_lines(file) if file.suffix == ".gz" else lines(file)
        for number, line in enumerate(found, 1):
            text = line.strip()
            if text and text not in seen:
                seen.add(text)
                key = f"{file.name}:{number}"
                yield Example(key=key, video=key, clip=Clip(file, start=float(number)), captions=(text,))


def plain_split(name: str) -> str:
    """``val`` for ``validation``, ``validate``, ``dev``; other names are unchanged."""
    return SPLIT_NAMES.get(name.lower(), name)


def webvid(annotations: Path, videos: Path | None, split: str) -> Iterator[Example]:
    """WebVid: ``results_2M_{split}.csv`` with ``videoid, page_dir, name``; videos are ``[page_dir/]videoid.mp4``."""
    table = find_file(annotations, (f"results*_{split}.csv", f"webvid_{split}.csv", f"{split}.csv"))
    library = VideoFolder(video_root(annotations, videos))
    for row in read_rows(table, "columns videoid, page_dir, name"):
        name = row.text("videoid")
        folder = row.text("page_dir") if row.has("page_dir") else ""
        path = library.path(f"{folder}/{name}", name) if folder else library.path(name)
        yield Example(key=name, video=name, clip=Clip(path), captions=(row.text("name"),))


def didemo(annotations: Path, videos: Path | None, split: str) -> Iterator[Example]:
    """DiDeMo: one example a video, its first 31 seconds and all its sentences as one paragraph, in file order.

    The file is ``{split}_data.json`` (``description, times, video``), another json or jsonl of videos and captions, or
    ``DiDeMo_{split}.tsv``. ``{split}_list.txt`` beside it, if there is one, selects and orders the videos. Videos that
    were saved with another suffix are found too.
    """
    patterns = (f"{split}_data.json", f"DiDeMo_{split}.tsv", f"didemo_*{split}*.json*", f"*{split}*.json*",
                f"*{split}*.tsv")  # fmt: skip
    source = find_file(annotations, patterns)
    library = VideoFolder(video_root(annotations, videos, ("videos", "video")))
    files: dict[str, str] = {}

    def video_name(name: str) -> str:
        plain = plain_name(name)
        files.setdefault(plain, name)
        return plain

    sentences = captions_by_video(source, video_name)
    listing = find_optional(annotations, (f"{split}_list.txt",)) if annotations.is_dir() else None
    for name in sentences if listing is None else [plain_name(each) for each in read_names(listing)]:
        if name not in sentences:
            raise AnnotationError(listing or source, f"{source.name} has no sentence for {name!r} of split {split!r}")
        clip = library.clip(files[name], end=DIDEMO_SECONDS)
        yield Example(key=name, video=name, clip=clip, captions=(" ".join(sentences[name]),))


def captions_by_video(path: Path, video_name: Callable[[str], str]) -> dict[str, list[str]]:
    """All captions of a file, in its order, by video.

    A json file is ``{"sentences": [{video_id, caption}]}``, ``{"annotations": [{image_id, caption}]}``,
    ``{video: [sentence]}``, or a list of objects with one of ``VIDEO_FIELDS`` and one of ``TEXT_FIELDS`` (a text or a
    list). Csv, tsv, jsonl and parquet have the same two columns. ``.txt`` has ``video sentence`` lines, # a comment.

    Args:
        path: the file.
        video_name: turns the file's id of a video into its name (``7`` to ``video7``).

    Raises:
        AnnotationError: the file is missing or has none of these forms.
    """
    found: dict[str, list[str]] = {}
    for row in _caption_rows(path):
        video = next((field for field in VIDEO_FIELDS if row.has(field)), None)
        text = next((field for field in TEXT_FIELDS if row.has(field)), None)
        if video is None or text is None:
            what, needed = ("video", VIDEO_FIELDS) if video is None else ("caption", TEXT_FIELDS)
            fields = ", ".join(row.values) or "none"
            raise row.error(f"has no {what}; fields found: {fields}; needed one of: {', '.join(needed)}")
        found.setdefault(video_name(row.text(video)), []).extend(row.texts(text))
    return found


def _caption_rows(path: Path) -> Iterable[Row]:
    """The rows of a file of captions, each with a video and one or more captions."""
    if path.suffix.lower() == ".txt":
        return _caption_lines(path)
    if path.suffix.lower() != ".json":
        return read_rows(path, "a column of videos and one of captions")
    data = read_json(path)
    if isinstance(data, list):
        return list_rows(path, cast("list[Any]", data))
    table = cast("dict[str, Any]", data) if isinstance(data, dict) else {}
    for key in ("sentences", "annotations"):
        if key in table:
            return json_rows(path, table, key)
    if not table or not all(isinstance(texts, list) for texts in table.values()) or "videos" in table:
        keys = ", ".join(list(table)[:8]) or "none"
        raise AnnotationError(
            path, f"has no list 'sentences' or 'annotations', and is no object of lists; keys found: {keys}"
        )
    return list_rows(path, [{"video": video, "captions": texts} for video, texts in table.items()])


def _caption_lines(path: Path) -> Iterator[Row]:
    for number, line in enumerate(lines(path), start=1):
        if line.strip() and not line.startswith("#"):
            video, _, text = line.strip().partition(" ")
            row = Row(path, number, {"video": video, "caption": text.strip()})
            if not row.has("caption"):
                raise row.error(f"{line.strip()!r:.60} is not a video followed by a sentence")
            yield row


# Folders


def sidecars(annotations: Path, videos: Path | None, split: str) -> Iterator[Example]:
    """A folder of videos with captions beside each: ``a.mp4`` and ``a.txt`` (one a line) or ``a.json``.

    The json is a text, a list of texts, or an object with ``caption`` or ``captions``. ``annotations/{split}`` is read
    if it exists, else all of ``annotations``, with subfolders. ``videos`` may hold the videos in the same structure.

    Raises:
        AnnotationError: also if a video has no captions; names it.
    """
    texts = split_folder(annotations, split)
    root = split_folder(videos, split) if videos is not None else texts
    for path in video_files(root):
        name = path.relative_to(root).as_posix()
        text = next((f for suffix in (".txt", ".json") if (f := (texts / name).with_suffix(suffix)).is_file()), None)
        if text is None:
            stem = (texts / name).stem
            raise AnnotationError(texts / name, f"has no {stem}.txt or {stem}.json with captions beside it")
        yield Example(key=name, video=name, clip=Clip(path), captions=_sidecar_captions(text))


def _sidecar_captions(path: Path) -> tuple[str, ...]:
    values: list[Any]
    if path.suffix == ".txt":
        values = list(read_names(path))
    else:
        data: Any = read_json(path)
        if isinstance(data, dict):
            row = Row(path, 1, cast("dict[str, Any]", data))
            return row.texts(row.column(CAPTION_COLUMNS, "the caption"))
        values = cast("list[Any]", data) if isinstance(data, list) else [data]
    if not values:
        raise AnnotationError(path, "holds no caption")
    return Row(path, 1, {"captions": values}).texts("captions")


def videos_alone(annotations: Path, videos: Path | None, split: str) -> Iterator[Example]:
    """Videos without text, such as for distillation: ``annotations/{split}`` if it exists, else ``annotations``."""
    root = split_folder(videos or annotations, split)
    for path in video_files(root):
        name = path.relative_to(root).as_posix()
        yield Example(key=name, video=name, clip=Clip(path))


def classes(annotations: Path, videos: Path | None, split: str) -> Iterator[Example]:
    """A folder for each class: ``annotations/{split}/<class>/...``, or ``annotations/<class>/...`` without splits.

    Classes are numbered alphabetically over all splits, so that a class missing from one split changes no number.
    """
    top = videos or annotations
    root = split_folder(top, split)
    names = _folders(root)
    if not names:
        raise AnnotationError(root, "holds no folders: one for each class is needed")
    if root != top:
        splits = [entry for entry in _folders(top) if entry in (split, "train", "val", "test")]
        names = sorted({name for entry in splits for name in _folders(top / entry)})
    for label, kind in enumerate(names):
        for path in video_files(root / kind):
            name = path.relative_to(root).as_posix()
            yield Example(key=name, video=name, clip=Clip(path), label=label, kind=kind)


def _folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def split_folder(folder: Path, split: str) -> Path:
    """The folder of a split, or the whole folder if it has no splits.

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
