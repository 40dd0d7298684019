"""MSR-VTT and what was built on it: captions for retrieval, open-ended questions, multiple choice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from evilm.data.readers.places import Videos, find, find_optional, plain_name, video_root
from evilm.data.readers.questions import choice, question
from evilm.data.readers.sentences import by_video
from evilm.data.readers.tables import json_rows, read_json, read_rows
from evilm.data.readers.text import listed
from evilm.errors import AnnotationError, SplitError
from evilm.types import Example

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from evilm.data.readers.row import Row

CAPTION_FILES = ("MSRVTT_data.json", "MSR_VTT.json", "videodatainfo*.json", "*videodatainfo.json")
TEST_FILES = ("MSRVTT_JSFUSION_test.csv", "msrvtt_*test_1k*.csv")
FOLDERS = ("videos/all", "videos", "TrainValVideo")
_JSON_SPLITS = {"val": ("val", "validate", "validation"), "train": ("train",), "test": ("test",)}


def video_name(name: str) -> str:
    """``video7`` from 7, ``video7`` or ``video7.mp4``; the published files have all three."""
    plain = plain_name(name)
    return f"video{plain}" if plain.isdecimal() else plain


def msrvtt_retrieval(annotations: Path, videos: Path | None, split: str) -> Iterator[Example]:
    """One example a video with all its captions; for the 1k-A test one a row of ``MSRVTT_JSFUSION_test.csv``.

    ``annotations`` is the folder of the published files, or one of them. ``train`` takes ``MSRVTT_train.9k.csv``, then
    ``train_list_jsfusion.txt``, and where neither is there what the json calls ``train``; ``train.9k`` and ``train.7k``
    name the list. ``test`` takes the csv of 1k-A, then the videos of ``val_list_jsfusion.txt``, then the json's test
    split; ``test.full`` always takes the json's. Other splits are those of the json. A video's category becomes its
    label. A list of videos without a file of captions beside it gives examples without captions.
    """
    library = Videos(video_root(annotations, videos, FOLDERS))
    table = annotations if annotations.is_file() and annotations.suffix != ".json" else None
    if table is None and split == "test":
        table = find_optional(annotations, TEST_FILES) if annotations.is_dir() else None
    if table is not None:
        yield from _rows(table, library)
        return
    names, listing = _listed(annotations, split)
    source = find_optional(annotations, (*CAPTION_FILES, f"msrvtt_caption_{split.partition('.')[0]}.json"))
    if source is None:
        if not names:
            find(annotations, CAPTION_FILES)  # says what is missing
        for name in names:
            yield Example(key=name, video=name, clip=library.clip(name))
        return
    captions, facts = _captions(source)
    whole = source.name.startswith("msrvtt_caption_") or (annotations.is_file() and not _knows_splits(facts))
    for name in names or (list(captions) if whole else _of_split(source, facts, split)):
        if name not in captions:
            raise AnnotationError(listing or source, f"{source.name} has no caption for {name!r} of split {split!r}")
        label = facts[name].integer("category") if name in facts and facts[name].has("category") else None
        yield Example(key=name, video=name, clip=library.clip(name), captions=tuple(captions[name]), label=label)


def _rows(table: Path, library: Videos) -> Iterator[Example]:
    """The rows of a csv, or the lines of a list: with a sentence each, or without."""
    if table.suffix == ".txt":
        for name in map(video_name, listed(table)):
            yield Example(key=name, video=name, clip=library.clip(name))
        return
    for row in read_rows(table):
        field = next((field for field in ("video_id", "clip_name", "video") if row.has(field)), "video_id")
        name = video_name(row.text(field))
        text = next((field for field in ("sentence", "caption") if field in row.values), None)
        captions = row.texts(text) if text else ()
        key = row.first("key", "retrieval_key") or name
        yield Example(key=key, video=name, clip=library.clip(name), captions=captions)


def _captions(source: Path) -> tuple[dict[str, list[str]], dict[str, Row]]:
    """Captions by video, and the entries of ``videos`` by video, of a json in one of the published shapes."""
    captions = by_video(source, video_name)
    data: Any = read_json(source)
    if not isinstance(data, dict):
        return captions, {}
    key, name = ("images", "id") if "images" in data else ("videos", "video_id")
    facts = {video_name(row.text(name)): row for row in json_rows(source, data, key)} if key in data else {}
    return captions, facts


def _listed(annotations: Path, split: str) -> tuple[list[str], Path | None]:
    """The videos that a list file beside the json gives a split, and that file; none where there is none."""
    if annotations.is_file():
        return [], None
    name, _, which = split.partition(".")
    if which == "full":
        return [], None
    lists = (f"MSRVTT_{name}.{which}.csv",) if which else (f"MSRVTT_{name}.9k.csv", f"{name}_list_jsfusion.txt")
    if split == "test":
        lists = ("val_list_jsfusion.txt",)
    path = find(annotations, lists) if which else find_optional(annotations, lists)
    if path is None:
        return [], None
    if path.suffix == ".csv":
        return [video_name(row.text("video_id")) for row in read_rows(path)], path
    return [video_name(name) for name in listed(path)], path


def _knows_splits(facts: dict[str, Row]) -> bool:
    return any(row.has("split") for row in facts.values())


def _of_split(source: Path, facts: dict[str, Row], split: str) -> list[str]:
    """The videos that the json itself gives a split."""
    base = split.partition(".")[0]
    wanted = _JSON_SPLITS.get(base, (base,))
    names = [name for name, row in facts.items() if row.has("split") and row.text("split") in wanted]
    if not names:
        known = sorted({row.text("split") for row in facts.values() if row.has("split")})
        raise SplitError(source, f"has no videos of split {split!r}; its splits: {', '.join(known) or 'none'}")
    return names


def msrvtt_qa(annotations: Path, videos: Path | None, split: str) -> Iterator[Example]:
    """Open-ended questions: ``{split}_qa.json`` (a list) or jsonl, with ``video_id, question, answer``."""
    names = (f"{split}_qa.json", f"{split}_qa.jsonl", f"*qa_{split}.jsonl", f"{split}.jsonl")
    library = Videos(video_root(annotations, videos, FOLDERS))
    for row in read_rows(find(annotations, names)):
        name = video_name(row.text("video_id"))
        yield question(row, name, library.clip(name))


def msrvtt_mc(annotations: Path, videos: Path | None, split: str) -> Iterator[Example]:
    """Which of five sentences describes the clip: jsonl with ``qid, clip_name, options, answer``."""
    names = (
        f"mc_{split}.jsonl",
        f"msrvtt_retrieval_mc_{split}.jsonl",
        f"msrvtt_mc_{split}.jsonl",
        f"*mc_{split}.jsonl",
    )
    library = Videos(video_root(annotations, videos, FOLDERS))
    for row in read_rows(find(annotations, names)):
        name = video_name(row.text("clip_name" if row.has("clip_name") else "video_id"))
        yield choice(row, name, library.clip(name))
