"""Rows that ask something: what open-ended questions and multiple choice have in common in all data sets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evilm.types import Example

if TYPE_CHECKING:
    from evilm.data.readers.row import Row
    from evilm.types import Clip

QUESTION_WORDS = ("what", "who", "whom", "whose", "how", "when", "where", "which", "why", "is", "are", "was", "were",
                  "do", "does", "did", "can")  # fmt: skip
_KEYS = ("vid_id", "id", "question_id", "qid", "key")  # what published files number their questions by


def question(row: Row, video: str, clip: Clip, kind: str | None = None) -> Example:
    """An open-ended question: ``question, answer``; ``kind`` or ``answer_type`` groups it, else its first word.

    Raises:
        AnnotationError: the question or the answer is missing or empty.
    """
    asked = row.text("question")
    return Example(
        key=key(row),
        video=video,
        clip=clip,
        question=asked,
        answer=row.text("answer"),
        kind=kind or row.first("kind", "answer_type") or first_word(asked),
        temporal=row.flag("temporal"),
    )


def choice(row: Row, video: str, clip: Clip) -> Example:
    """A choice: ``options`` (a list) or ``a1`` to ``a5``, and in ``answer`` the index of the right one, from 0.

    Raises:
        AnnotationError: options or answer are missing, or the answer is no index of an option.
    """
    options = row.texts("options") if row.has("options") else tuple(row.text(f"a{i}") for i in range(1, 6))
    return Example(
        key=key(row),
        video=video,
        clip=clip,
        question=row.first("question"),
        choices=options,
        label=right_choice(row, options),
        kind=row.first("kind"),
        temporal=row.flag("temporal"),
    )


def key(row: Row) -> str:
    """What the row is numbered by; its line where nothing numbers it."""
    return row.first(*_KEYS) or str(row.line)


def right_choice(row: Row, options: tuple[str, ...]) -> int:
    """The index in field ``answer``.

    Raises:
        AnnotationError: it is no index of a choice.
    """
    label = row.integer("answer")
    if not 0 <= label < len(options):
        raise row.error(f"'answer' is {label}, outside the {len(options)} choices (counted from 0)")
    return label


def first_word(text: str) -> str:
    """The first word of a question where it is one that questions begin with, else ``other``."""
    first = text.split(maxsplit=1)[0].lower().strip("?,.")
    return first if first in QUESTION_WORDS else "other"
