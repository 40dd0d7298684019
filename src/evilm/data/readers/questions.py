"""TGIF-QA, and the question and caption files of VIOLET (``txt_*.json``)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

from evilm.data.readers.captions import DIDEMO_SECONDS, plain_split
from evilm.data.readers.places import VideoFolder, find_beside, find_file, video_root
from evilm.data.readers.rows import Row, choice, question
from evilm.data.readers.tables import json_rows, read_json, read_rows
from evilm.errors import AnnotationError, SplitError
from evilm.types import Example

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from evilm.types import Clip

_FRAME_KINDS = {"0": "object", "1": "number", "2": "color", "3": "location"}  # TGIF-QA's numbers for FrameQA
_VIOLET_VIDEOS = ("videos/all", "videos", "TrainValVideo", "YouTubeClips", "gifs")


# TGIF-QA: tab-separated {Train,Test}_{action,transition,frameqa,count}_question.csv, or jsonl with ``options``


def tgif_action(annotations: Path, videos: Path | None, split: str) -> Iterator[Example]:
    """What is repeated N times: five choices."""
    for row, name, clip in _tgif_rows(annotations, videos, split, "action"):
        yield choice(row, name, clip)


def tgif_transition(annotations: Path, videos: Path | None, split: str) -> Iterator[Example]:
    """What happens before or after something: five choices."""
    for row, name, clip in _tgif_rows(annotations, videos, split, "transition"):
        yield choice(row, name, clip)


def tgif_frame(annotations: Path, videos: Path | None, split: str) -> Iterator[Example]:
    """Open-ended questions that one frame answers."""
    for row, name, clip in _tgif_rows(annotations, videos, split, "frameqa"):
        kind = row.first("kind", "type", "answer_type")
        yield question(row, name, clip, kind=None if kind is None else _FRAME_KINDS.get(kind, kind))


def tgif_count(annotations: Path, videos: Path | None, split: str) -> Iterator[Example]:
    """How often something is repeated: a whole number, read as an open-ended answer.

    Raises:
        AnnotationError: also if the answer is not a whole number.
    """
    for row, name, clip in _tgif_rows(annotations, videos, split, "count"):
        row.integer("answer")
        yield question(row, name, clip, kind=row.first("kind") or "count")


def _tgif_rows(annotations: Path, videos: Path | None, split: str, task: str) -> Iterator[tuple[Row, str, Clip]]:
    """The rows of one task and split, with the name of the GIF and its clip."""
    library = VideoFolder(video_root(annotations, videos, ("gifs", "videos")), ".gif")
    patterns = (f"{split.capitalize()}_{task}_question.csv", f"{task}_{split}.jsonl", f"{split}_{task}.jsonl",
                f"*{task}*{split}*.jsonl", f"{split}.jsonl")  # fmt: skip
    for row in read_rows(find_file(annotations, patterns), "columns gif_name, question, answer"):
        name = row.text("gif_name").removesuffix(".gif")
        yield row, name, library.clip(name)


# VIOLET


def violet(annotations: Path, videos: Path | None, split: str) -> Iterator[Example]:
    """VIOLET's ``txt_<data set>-<task>.json``: ``{split: [{video, ...}]}`` for retrieval and questions.

    Rows have ``caption`` (retrieval; one example a row), ``question`` and ``answer`` (open-ended), or ``option_0`` to
    ``option_4``, ``answer`` (an index) and perhaps ``question`` (multiple choice). If an open-ended answer is a number
    of the answer vocabulary, ``*ans2label.json`` (answer to number) must be beside the file. DiDeMo's videos end after
    31 seconds, as in its annotations.

    Raises:
        AnnotationError: also if the folder has several such files, or a row has none of these fields.
    """
    source = _violet_file(annotations)
    data: Any = read_json(source)
    table = cast("dict[str, Any]", data) if isinstance(data, dict) else {}
    name = next((key for key in table if plain_split(key) == plain_split(split)), None)
    if name is None:
        splits = ", ".join(table)[:100] or "none"
        raise SplitError(source, f"has no split {split!r}; its splits: {splits}")
    library = VideoFolder(video_root(annotations, videos, _VIOLET_VIDEOS))
    end = DIDEMO_SECONDS if "didemo" in source.name.lower() else None
    answers: dict[int, str] | None = None
    for row in json_rows(source, table, name):
        video = row.text("video")
        clip = library.clip(video, end=end)
        key = f"{name}-{row.line}"
        if row.has("option_0"):
            yield choice(Row(row.path, row.line, {"key": key, **row.values}), video, clip)
        elif row.has("question"):
            value, text = row.values.get("answer"), None
            if isinstance(value, int) and not isinstance(value, bool):
                answers = _answer_names(source) if answers is None else answers
                if value not in answers:
                    raise row.error(f"'answer' is {value}, which the file *ans2label.json beside it does not have")
                text = answers[value]
            yield question(Row(row.path, row.line, {"key": key, **row.values}), video, clip, answer=text)
        elif row.has("caption"):
            yield Example(key=key, video=video, clip=clip, captions=row.texts("caption"))
        else:
            fields = ", ".join(row.values)[:100] or "none"
            raise row.error(f"has none of caption, question, option_0; fields found: {fields}")


def _violet_file(annotations: Path) -> Path:
    found = sorted(annotations.glob("txt_*.json")) if annotations.is_dir() else []
    if len(found) > 1:
        names = ", ".join(path.name for path in found)[:200]
        raise AnnotationError(annotations, f"holds several files of VIOLET ({names}): name one of them")
    return find_file(annotations, ("txt_*.json",))


def _answer_names(source: Path) -> dict[int, str]:
    """The answers by their number, of the ``*ans2label.json`` beside a file of questions."""
    stem = source.stem.removeprefix("txt_")
    path = find_beside(source.parent, (f"*{stem}*ans2label.json", "*ans2label.json"))
    if path is None:
        raise AnnotationError(source, "has answers as numbers: put the ans2label.json of its answers beside it")
    data: Any = read_json(path)
    numbers = cast("dict[str, Any]", data) if isinstance(data, dict) else {}
    if not numbers or not all(isinstance(number, int) for number in numbers.values()):
        raise AnnotationError(path, f"is not an object of answers and their numbers: {json.dumps(data):.60}")
    return {number: answer for answer, number in numbers.items()}
