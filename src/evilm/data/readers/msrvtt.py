"""MSR-VTT and what was built on it: captions for retrieval, open-ended questions, multiple choice."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from evilm.data.readers.places import Videos, find, find_optional, video_root
from evilm.data.readers.tables import Row, json_rows, read_json, read_rows, read_text
from evilm.errors import AnnotationError
from evilm.types import Example

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CAPTION_FILES = ("MSRVTT_data.json", "MSR_VTT.json", "videodatainfo*.json", "*videodatainfo.json")
TEST_FILES = ("MSRVTT_JSFUSION_test.csv", "msrvtt_*test_1k*.csv")
_JSON_SPLITS = {"val": ("val", "validate", "validation"), "train": ("train",), "test": ("test",)}
_QUESTION_WORDS = ("what", "who", "whom", "whose", "how", "when", "where", "which", "why", "is", "are", "was", "were",
                   "do", "does", "did", "can")  # fmt: skip


def msrvtt_retrieval(annotations: Path, videos: Path | None, split: str) -> Iterator[Example]:
    """One example a video with all its captions; for the 1k-A test one a row of ``MSRVTT_JSFUSION_test.csv``.

    ``annotations`` is the folder of the published files, or one of them. ``train`` takes ``MSRVTT_train.9k.csv``, then
    ``train_list_jsfusion.txt``, and where neither is there what the json calls ``train``; ``train.9k`` and ``train.7k``
    name the list. Other splits are those of the json. A video's category becomes its label.
    """
    library = Videos(video_root(annotations, videos, ("videos/all", "videos", "TrainValVideo")))
    table = find_optional(annotations, TEST_FILES) if split == "test" or annotations.suffix == ".csv" else None
    if table is not None and table.suffix == ".csv":
        yield from _captioned_rows(table, library)
        return
    source = find(annotations, CAPTION_FILES)
    captions, facts = _captions(source)
    for name in _listed(annotations, split) or _of_split(source, facts, split):
        if name not in captions:
            raise AnnotationError(source, f"has no caption for {name!r} of split {split!r}")
        label = facts[name].integer("category") if name in facts and facts[name].has("category") else None
        yield Example(key=name, video=name, clip=library.clip(name), captions=tuple(captions[name]), label=label)


def _captioned_rows(table: Path, library: Videos) -> Iterator[Example]:
    for row in read_rows(table):
        name = row.text("video_id")
        key = row.text("key") if row.has("key") else name
        yield Example(key=key, video=name, clip=library.clip(name), captions=(row.text("sentence"),))


def _captions(source: Path) -> tuple[dict[str, list[str]], dict[str, Row]]:
    """Captions by video, and the entries of ``videos`` by video, of a json in one of the two published shapes."""
    data: Any = read_json(source)
    older = isinstance(data, dict) and "annotations" in data
    captions: dict[str, list[str]] = defaultdict(list)
    for row in json_rows(source, data, "annotations" if older else "sentences"):
        captions[row.text("image_id" if older else "video_id")].append(row.text("caption"))
    facts: dict[str, Row] = {}
    for row in json_rows(source, data, "images" if older else "videos") if not older or "images" in data else []:
        facts[row.text("id" if older else "video_id")] = row
    return captions, facts


def _listed(annotations: Path, split: str) -> list[str]:
    """The videos that a list file beside the json gives a split; empty where there is none."""
    if annotations.is_file():
        return []
    name, _, which = split.partition(".")
    lists = (f"MSRVTT_{name}.{which}.csv",) if which else (f"MSRVTT_{name}.9k.csv", f"{name}_list_jsfusion.txt")
    path = find(annotations, lists) if which else find_optional(annotations, lists)
    if path is None:
        return []
    if path.suffix == ".csv":
        return [row.text("video_id") for row in read_rows(path)]
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def _of_split(source: Path, facts: dict[str, Row], split: str) -> list[str]:
    wanted = _JSON_SPLITS.get(split, (split,))
    names = [name for name, row in facts.items() if row.has("split") and row.text("split") in wanted]
    if not names:
        known = sorted({row.text("split") for row in facts.values() if row.has("split")})
        raise AnnotationError(source, f"has no videos of split {split!r}; its splits: {', '.join(known) or 'none'}")
    return names


def msrvtt_qa(annotations: Path, videos: Path | None, split: str) -> Iterator[Example]:
    """Open-ended questions: ``{split}_qa.json`` (a list) or jsonl, with ``video_id, question, answer``."""
    table = find(annotations, (f"{split}_qa.json", f"{split}_qa.jsonl", f"*qa_{split}.jsonl", f"{split}.jsonl"))
    library = Videos(video_root(annotations, videos, ("videos/all", "videos", "TrainValVideo")))
    for row in read_rows(table):
        name = _video_name(row, "video_id")
        question = row.text("question")
        yield Example(
            key=next((row.text(k) for k in ("id", "question_id", "qid") if row.has(k)), str(row.line)),
            video=name,
            clip=library.clip(name),
            question=question,
            answer=row.text("answer"),
            kind=_question_kind(row, question),
        )


def msrvtt_mc(annotations: Path, videos: Path | None, split: str) -> Iterator[Example]:
    """Which of five sentences describes the clip: jsonl with ``qid, clip_name, options, answer``."""
    table = find(
        annotations,
        (f"mc_{split}.jsonl", f"msrvtt_retrieval_mc_{split}.jsonl", f"msrvtt_mc_{split}.jsonl", f"*mc_{split}.jsonl"),
    )
    library = Videos(video_root(annotations, videos, ("videos/all", "videos", "TrainValVideo")))
    for row in read_rows(table):
        name = _video_name(row, "clip_name" if row.has("clip_name") else "video_id")
        choices = row.texts("options")
        yield Example(
            key=row.text("qid") if row.has("qid") else str(row.line),
            video=name,
            clip=library.clip(name),
            question=row.text("question") if row.has("question") else None,
            choices=choices,
            label=right_choice(row, choices),
            kind=row.text("kind") if row.has("kind") else None,
        )


def right_choice(row: Row, choices: tuple[str, ...]) -> int:
    """The index in field ``answer``.

    Raises:
        AnnotationError: it is no index of a choice.
    """
    label = row.integer("answer")
    if not 0 <= label < len(choices):
        raise row.error(f"'answer' is {label}, outside the {len(choices)} choices (counted from 0)")
    return label


def _video_name(row: Row, field: str) -> str:
    """``video7`` from 7, "7" or "video7"; the published files have all three."""
    name = row.text(field)
    return f"video{name}" if name.isdigit() else name


def _question_kind(row: Row, question: str) -> str:
    """The group of a question: the row's ``kind`` or ``answer_type``, else its first word."""
    for field in ("kind", "answer_type"):
        if row.has(field):
            return row.text(field)
    first = question.split(maxsplit=1)[0].lower().strip("?,.")
    return first if first in _QUESTION_WORDS else "other"
