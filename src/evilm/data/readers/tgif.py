"""TGIF-QA: tab-separated ``{Train,Test}_{action,transition,frameqa,count}_question.csv``, or jsonl with ``options``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evilm.data.readers.places import Videos, find, video_root
from evilm.data.readers.questions import choice, question
from evilm.data.readers.tables import read_rows

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from evilm.data.readers.row import Row
    from evilm.types import Clip, Example

_FRAME_KINDS = {"0": "object", "1": "number", "2": "color", "3": "location"}  # TGIF-QA's numbers for FrameQA


def tgif_action(annotations: Path, videos: Path | None, split: str) -> Iterator[Example]:
    """What is repeated N times: five choices."""
    for row, name, clip in _rows(annotations, videos, split, "action"):
        yield choice(row, name, clip)


def tgif_transition(annotations: Path, videos: Path | None, split: str) -> Iterator[Example]:
    """What happens before or after something: five choices."""
    for row, name, clip in _rows(annotations, videos, split, "transition"):
        yield choice(row, name, clip)


def tgif_frame(annotations: Path, videos: Path | None, split: str) -> Iterator[Example]:
    """Open-ended questions that one frame answers."""
    for row, name, clip in _rows(annotations, videos, split, "frameqa"):
        kind = row.first("kind", "type", "answer_type")
        yield question(row, name, clip, None if kind is None else _FRAME_KINDS.get(kind, kind))


def tgif_count(annotations: Path, videos: Path | None, split: str) -> Iterator[Example]:
    """How often something is repeated: a whole number, read as an open-ended answer.

    Raises:
        AnnotationError: also where the answer is no whole number.
    """
    for row, name, clip in _rows(annotations, videos, split, "count"):
        row.integer("answer")
        yield question(row, name, clip, row.first("kind") or "count")


def _rows(annotations: Path, videos: Path | None, split: str, task: str) -> Iterator[tuple[Row, str, Clip]]:
    """The rows of one task and split, with the name of the GIF and where it is."""
    library = Videos(video_root(annotations, videos, ("gifs", "videos")), ".gif")
    names = (f"{split.capitalize()}_{task}_question.csv", f"{task}_{split}.jsonl", f"{split}_{task}.jsonl",
             f"*{task}*{split}*.jsonl", f"{split}.jsonl")  # fmt: skip
    for row in read_rows(find(annotations, names)):
        name = row.text("gif_name").removesuffix(".gif")
        yield row, name, library.clip(name)
