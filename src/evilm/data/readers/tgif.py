"""TGIF-QA: tab-separated ``{Train,Test}_{action,transition,frameqa}_question.csv``, or jsonl with ``options``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evilm.data.readers.msrvtt import right_choice
from evilm.data.readers.places import Videos, find, video_root
from evilm.data.readers.tables import read_rows
from evilm.types import Example

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from evilm.data.readers.tables import Row

_FRAME_KINDS = {"0": "object", "1": "number", "2": "color", "3": "location"}  # TGIF-QA's numbers for FrameQA


def tgif_action(annotations: Path, videos: Path | None, split: str) -> Iterator[Example]:
    """What is repeated N times: five choices."""
    return _choices(annotations, videos, split, "action")


def tgif_transition(annotations: Path, videos: Path | None, split: str) -> Iterator[Example]:
    """What happens before or after something: five choices."""
    return _choices(annotations, videos, split, "transition")


def _choices(annotations: Path, videos: Path | None, split: str, task: str) -> Iterator[Example]:
    library = _library(annotations, videos)
    for row in read_rows(find(annotations, _names(split, task))):
        name = row.text("gif_name")
        choices = row.texts("options") if row.has("options") else tuple(row.text(f"a{i}") for i in range(1, 6))
        yield Example(
            key=_key(row),
            video=name,
            clip=library.clip(name),
            question=row.text("question"),
            choices=choices,
            label=right_choice(row, choices),
            kind=row.text("kind") if row.has("kind") else None,
        )


def tgif_frame(annotations: Path, videos: Path | None, split: str) -> Iterator[Example]:
    """Open-ended questions that one frame answers."""
    library = _library(annotations, videos)
    for row in read_rows(find(annotations, _names(split, "frameqa"))):
        name = row.text("gif_name")
        kind = next((row.text(field) for field in ("kind", "type", "answer_type") if row.has(field)), None)
        yield Example(
            key=_key(row),
            video=name,
            clip=library.clip(name),
            question=row.text("question"),
            answer=row.text("answer"),
            kind=None if kind is None else _FRAME_KINDS.get(kind, kind),
        )


def _names(split: str, task: str) -> tuple[str, ...]:
    return (f"{split.capitalize()}_{task}_question.csv", f"{task}_{split}.jsonl", f"{split}_{task}.jsonl",
            f"*{task}*{split}*.jsonl", f"{split}.jsonl")  # fmt: skip


def _library(annotations: Path, videos: Path | None) -> Videos:
    return Videos(video_root(annotations, videos, ("gifs", "videos")), ".gif")


def _key(row: Row) -> str:
    """``vid_id`` is what the published files number their questions by."""
    return next((row.text(field) for field in ("vid_id", "qid", "key", "id") if row.has(field)), str(row.line))
