"""MSR-VTT and MSVD: captions for retrieval, open-ended questions, and MSR-VTT's multiple choice."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from evilm.data.readers.captions import captions_by_video
from evilm.data.readers.places import VideoFolder, find_beside, find_file, find_optional, plain_name, video_root
from evilm.data.readers.rows import choice, question
from evilm.data.readers.tables import json_rows, lines, read_json, read_names, read_rows
from evilm.errors import AnnotationError, SplitError
from evilm.types import Example

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from evilm.data.readers.rows import Row

MSRVTT_CAPTIONS = ("MSRVTT_data.json", "MSR_VTT.json", "videodatainfo*.json", "*videodatainfo.json")
MSRVTT_TEST = ("MSRVTT_JSFUSION_test.csv", "msrvtt_*test_1k*.csv")
MSRVTT_VIDEOS = ("videos/all", "videos", "TrainValVideo")
MSVD_CAPTIONS = ("AllVideoDescriptions.txt", "captions_msvd*.json", "*captions*.json", "msvd*.json")
MSVD_VIDEOS = ("YouTubeClips", "videos")
_VAL_NAMES = ("val", "validate", "validation")


# MSR-VTT


def msrvtt_name(name: str) -> str:
    """``video7`` from 7, ``video7`` or ``video7.mp4``, which the published files use."""
    plain = plain_name(name)
    return f"video{plain}" if plain.isdecimal() else plain


def msrvtt_retrieval(annotations: Path, videos: Path | None, split: str) -> Iterator[Example]:
    """One example a video with all its captions; in the 1k-A test one a row of ``MSRVTT_JSFUSION_test.csv``.

    ``annotations`` is the folder of the published files, or one of them. A video's category becomes its label. A list
    of videos without a file of captions beside it gives examples without captions.

    ``train``: ``MSRVTT_train.9k.csv``, else ``train_list_jsfusion.txt``, else the json's ``train``; ``train.9k`` and
    ``train.7k`` select the list. ``test``: the csv of 1k-A, else ``val_list_jsfusion.txt``, else the json's ``test``;
    ``test.full`` always takes the json's. Other splits are those of the json.
    """
    library = VideoFolder(video_root(annotations, videos, MSRVTT_VIDEOS))
    table = annotations if annotations.is_file() and annotations.suffix != ".json" else None
    if table is None and split == "test":
        table = find_optional(annotations, MSRVTT_TEST) if annotations.is_dir() else None
    if table is not None:
        yield from _msrvtt_table(table, library)
        return
    names, listing = _msrvtt_list(annotations, split)
    source = find_optional(annotations, (*MSRVTT_CAPTIONS, f"msrvtt_caption_{split.partition('.')[0]}.json"))
    if source is None:
        if not names:
            find_file(annotations, MSRVTT_CAPTIONS)  # raises an error with the missing names
        for name in names:
            yield Example(key=name, video=name, clip=library.clip(name))
        return
    captions, entries = _msrvtt_json(source)
    if not names:
        has_splits = any(row.has("split") for row in entries.values())
        one_split = source.name.startswith("msrvtt_caption_") or (annotations.is_file() and not has_splits)
        names = list(captions) if one_split else _msrvtt_split(source, entries, split)
    for name in names:
        if name not in captions:
            raise AnnotationError(listing or source, f"{source.name} has no caption for {name!r} of split {split!r}")
        label = entries[name].integer("category") if name in entries and entries[name].has("category") else None
        yield Example(key=name, video=name, clip=library.clip(name), captions=tuple(captions[name]), label=label)


def _msrvtt_table(table: Path, library: VideoFolder) -> Iterator[Example]:
    """The rows of a csv, with or without captions, or the names of a list."""
    if table.suffix == ".txt":
        for name in map(msrvtt_name, read_names(table)):
            yield Example(key=name, video=name, clip=library.clip(name))
        return
    for row in read_rows(table, "columns video_id, sentence"):
        field = next((field for field in ("video_id", "clip_name", "video") if row.has(field)), "video_id")
        name = msrvtt_name(row.text(field))
        text = next((field for field in ("sentence", "caption") if field in row.values), None)
        captions = row.texts(text) if text else ()
        key = row.first("key", "retrieval_key") or name
        yield Example(key=key, video=name, clip=library.clip(name), captions=captions)


def _msrvtt_json(source: Path) -> tuple[dict[str, list[str]], dict[str, Row]]:
    """Captions and entries of ``videos``, both by video, of a json in one of the published forms."""
    captions = captions_by_video(source, msrvtt_name)
    data: Any = read_json(source)
    if not isinstance(data, dict):
        return captions, {}
    key, name = ("images", "id") if "images" in data else ("videos", "video_id")
    entries = {msrvtt_name(row.text(name)): row for row in json_rows(source, data, key)} if key in data else {}
    return captions, entries


def _msrvtt_list(annotations: Path, split: str) -> tuple[list[str], Path | None]:
    """The videos in the list file of a split, and that file; empty and None if there is none."""
    name, _, which = split.partition(".")
    if annotations.is_file() or which == "full":
        return [], None
    lists = (f"MSRVTT_{name}.{which}.csv",) if which else (f"MSRVTT_{name}.9k.csv", f"{name}_list_jsfusion.txt")
    if split == "test":
        lists = ("val_list_jsfusion.txt",)
    path = find_file(annotations, lists) if which else find_optional(annotations, lists)
    if path is None:
        return [], None
    if path.suffix == ".csv":
        return [msrvtt_name(row.text("video_id")) for row in read_rows(path, "a column video_id")], path
    return [msrvtt_name(name) for name in read_names(path)], path


def _msrvtt_split(source: Path, entries: dict[str, Row], split: str) -> list[str]:
    """The videos of a split in the json itself."""
    base = split.partition(".")[0]
    wanted = _VAL_NAMES if base == "val" else (base,)
    names = [name for name, row in entries.items() if row.has("split") and row.text("split") in wanted]
    if not names:
        known = sorted({row.text("split") for row in entries.values() if row.has("split")})
        raise SplitError(source, f"has no videos of split {split!r}; its splits: {', '.join(known) or 'none'}")
    return names


def msrvtt_qa(annotations: Path, videos: Path | None, split: str) -> Iterator[Example]:
    """Open-ended questions: ``{split}_qa.json`` (a list) or jsonl, with ``video_id, question, answer``."""
    patterns = (f"{split}_qa.json", f"{split}_qa.jsonl", f"*qa_{split}.jsonl", f"{split}.jsonl")
    library = VideoFolder(video_root(annotations, videos, MSRVTT_VIDEOS))
    for row in read_rows(find_file(annotations, patterns), "fields video_id, question, answer"):
        name = msrvtt_name(row.text("video_id"))
        yield question(row, name, library.clip(name))


def msrvtt_mc(annotations: Path, videos: Path | None, split: str) -> Iterator[Example]:
    """Which of five sentences describes the clip: jsonl with ``qid, clip_name, options, answer``."""
    patterns = (f"mc_{split}.jsonl", f"msrvtt_retrieval_mc_{split}.jsonl", f"msrvtt_mc_{split}.jsonl",
                f"*mc_{split}.jsonl")  # fmt: skip
    library = VideoFolder(video_root(annotations, videos, MSRVTT_VIDEOS))
    for row in read_rows(find_file(annotations, patterns), "fields clip_name, options, answer"):
        name = msrvtt_name(row.text("clip_name" if row.has("clip_name") else "video_id"))
        yield choice(row, name, library.clip(name))


# MSVD


def msvd_retrieval(annotations: Path, videos: Path | None, split: str) -> Iterator[Example]:
    """One example a clip with all its captions (about 41), for the clips of ``{split}_list.txt``, in its order.

    Captions are ``AllVideoDescriptions.txt`` ("clip sentence" lines) or json, by clip or as a list. A file of captions
    by itself is one split. If captions are numbered as ``vid7``, ``youtube_mapping.txt`` gives the names of the clips.
    """
    library = VideoFolder(video_root(annotations, videos, MSVD_VIDEOS), ".avi")
    names = _msvd_mapping(annotations)

    def clip_name(name: str) -> str:
        return names.get(_msvd_number(name), plain_name(name))

    listing = None
    if annotations.is_dir():
        listing = find_optional(annotations, (f"{split}_list.txt", f"msvd_{split}*list*.txt"))
    elif annotations.name.endswith("_list.txt"):
        listing = annotations
    source = (find_beside if listing == annotations else find_optional)(annotations, MSVD_CAPTIONS)
    if source is None or (listing is None and annotations.is_dir()):
        find_file(annotations, (f"{split}_list.txt",) if source else MSVD_CAPTIONS)
    assert source is not None
    captions = captions_by_video(source, clip_name)
    wanted = list(captions) if listing is None else [clip_name(name) for name in read_names(listing)]
    if not wanted:
        raise SplitError(listing or source, f"names no clips of split {split!r}")
    for name in wanted:
        if name not in captions:
            raise AnnotationError(listing or source, f"{source.name} has no caption for {name!r} of split {split!r}")
        yield Example(key=name, video=name, clip=library.clip(name), captions=tuple(captions[name]))


def msvd_qa(annotations: Path, videos: Path | None, split: str) -> Iterator[Example]:
    """Open-ended questions: ``{split}_qa.json`` (a list) or ``msvd_{split}_qa_encode.json`` (an object a line).

    ``video_id`` is a number. ``youtube_mapping.txt`` beside the questions gives the name of the clip; without that file
    the videos are named ``vid7``.

    Raises:
        AnnotationError: also if the mapping lacks a number.
    """
    patterns = (f"{split}_qa.json", f"msvd_{split}_qa*.json", f"{split}_qa.jsonl", f"*qa_{split}.jsonl",
                f"{split}.jsonl")  # fmt: skip
    table = find_file(annotations, patterns)
    library = VideoFolder(video_root(annotations, videos, MSVD_VIDEOS), ".avi")
    names = _msvd_mapping(annotations)
    for row in read_rows(table, "fields video_id, question, answer"):
        value = row.text("video_id")
        number = _msvd_number(value)
        if names and number not in names and number != value:
            raise row.error(f"'video_id' is {value}, and youtube_mapping.txt has no {number}")
        name = names.get(number, plain_name(number))
        yield question(row, name, library.clip(name))


def _msvd_mapping(annotations: Path) -> dict[str, str]:
    """The lines "clip vid7" of youtube_mapping.txt as ``vid7`` to clip; empty if there is no such file.

    Raises:
        AnnotationError: a line has another form, or repeats a number.
    """
    path = find_beside(annotations, ("youtube_mapping.txt", "*youtube_mapping.txt"))
    names: dict[str, str] = {}
    if path is None:
        return names
    for number, line in enumerate(lines(path), start=1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 2 or not re.fullmatch(r"vid\d+", fields[1]):
            raise AnnotationError(path, f"{line.strip()!r:.60} is not a clip followed by vid7", number)
        if names.setdefault(fields[1], fields[0]) != fields[0]:
            raise AnnotationError(path, f"{fields[1]} is named twice: {names[fields[1]]}, {fields[0]}", number)
    return names


def _msvd_number(name: str) -> str:
    """``vid7`` from 7, ``vid7`` or ``video7``; other names are unchanged."""
    match = re.fullmatch(r"(?:vid|video)?(\d+)(?:\.\w+)?", name)
    return f"vid{match[1]}" if match else name
