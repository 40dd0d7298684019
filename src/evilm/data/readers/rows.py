"""One row of an annotation file: checked fields, column names, captions, questions and choices."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from evilm.errors import AnnotationError
from evilm.types import Example

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from evilm.types import Clip

PATH_COLUMNS = ("path", "video_path", "video", "file", "filename", "file_name", "video_file", "clip", "clip_name",
                "video_id", "videoid", "image", "image_path", "key")  # fmt: skip
CAPTION_COLUMNS = ("caption", "captions", "sentence", "text", "description", "name", "title", "query")
QUESTION_WORDS = ("what", "who", "whom", "whose", "how", "when", "where", "which", "why", "is", "are", "was", "were",
                  "do", "does", "did", "can")  # fmt: skip
_KEYS = ("vid_id", "id", "question_id", "qid", "key")  # columns that number the questions of published files


@dataclass(frozen=True, slots=True)
class Row:
    """One row of an annotation file.

    Attributes:
        path: the file.
        line: the 1-based line, or the 1-based entry of a json list or parquet file.
        values: the fields by name.
    """

    path: Path
    line: int
    values: Mapping[str, Any]

    def has(self, name: str) -> bool:
        """Whether the field exists and is not empty."""
        return self.values.get(name) not in (None, "", [])

    def text(self, name: str) -> str:
        """A field as text without surrounding space; whole numbers are written without a decimal point.

        Raises:
            AnnotationError: the field is missing, empty, or not text.
        """
        value = self._value(name)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, (str, int, float)) or value != value:  # noqa: PLR0124, NaN
            raise self.error(f"{name!r} is {value!r:.60}, text is needed")
        return self._checked(name, str(value))

    def texts(self, name: str) -> tuple[str, ...]:
        """A field with a text or a list of texts.

        Raises:
            AnnotationError: as ``text``, or the list is empty.
        """
        value = self._value(name)
        if not isinstance(value, list):
            return (self.text(name),)
        items = cast("list[Any]", value)
        if not items or not all(isinstance(item, str) and item.strip() for item in items):
            raise self.error(f"{name!r} is {value!r:.60}, a list of texts is needed")
        return tuple(self._checked(name, item) for item in items)

    def flag(self, name: str) -> bool | None:
        """A field with true or false, in csv as a word; None if it is missing.

        Raises:
            AnnotationError: it is neither.
        """
        if not self.has(name):
            return None
        value = self.values[name]
        flag = {"true": True, "false": False}.get(value.strip().lower()) if isinstance(value, str) else value
        if not isinstance(flag, bool):
            raise self.error(f"{name!r} is {value!r:.60}, true or false is needed")
        return flag

    def integer(self, name: str) -> int:
        """A field with a whole number.

        Raises:
            AnnotationError: the field is missing or not a whole number.
        """
        value = self.text(name)
        try:
            return int(value)
        except ValueError:
            raise self.error(f"{name!r} is {value!r:.60}, a whole number is needed") from None

    def seconds(self, name: str) -> float:
        """A field with a time in seconds.

        Raises:
            AnnotationError: the field is missing, negative, or not a number.
        """
        value = self.text(name)
        try:
            number = float(value)
        except ValueError:
            number = -1.0
        if not (math.isfinite(number) and number >= 0):
            raise self.error(f"{name!r} is {value!r:.60}, seconds are needed")
        return number

    def first(self, *names: str) -> str | None:
        """The text of the first of some fields that exists and is not empty, or None."""
        return next((self.text(name) for name in names if self.has(name)), None)

    def column(self, names: Sequence[str], what: str) -> str:
        """The first of ``names`` that is a field of this row, ignoring case.

        Raises:
            AnnotationError: none is; lists the columns found and needed.
        """
        known = {name.lower(): name for name in self.values}
        for name in names:
            if name.lower() in known:
                return known[name.lower()]
        columns = ", ".join(f"{name:.40}" for name in self.values) or "none"
        raise self.error(f"has no column for {what}; columns found: {columns}; needed one of: {', '.join(names)}")

    def error(self, reason: str) -> AnnotationError:
        """An error about this row."""
        return AnnotationError(self.path, reason, self.line)

    def _checked(self, name: str, value: str) -> str:
        text = value.strip()
        if not text:
            raise self.error(f"{name!r} is empty")
        if "\0" in text or (not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text)):
            raise self.error(f"{name!r} is {text!r:.60}, which contains a NUL character or half of a surrogate pair")
        return text

    def _value(self, name: str) -> Any:
        if self.values.get(name) is None:
            fields = ", ".join(sorted(map(str, self.values))) or "none"
            raise self.error(f"has no {name!r}; fields found: {fields}")
        return self.values[name]


def question(row: Row, video: str, clip: Clip, *, kind: str | None = None, answer: str | None = None) -> Example:
    """An open-ended question with fields ``question`` and ``answer``.

    Args:
        row: the row.
        video: id of the video.
        clip: its pixels.
        kind: group of the question; None takes ``kind``, ``answer_type`` or the question's first word.
        answer: None takes the field ``answer``.

    Raises:
        AnnotationError: the question or the answer is missing or empty.
    """
    text = row.text("question")
    first = text.split(maxsplit=1)[0].lower().strip("?,.")
    return Example(
        key=row_key(row),
        video=video,
        clip=clip,
        question=text,
        answer=row.text("answer") if answer is None else answer,
        kind=kind or row.first("kind", "answer_type") or (first if first in QUESTION_WORDS else "other"),
        temporal=row.flag("temporal"),
    )


def choice(row: Row, video: str, clip: Clip) -> Example:
    """A multiple-choice question: ``options`` (a list), ``a1`` to ``a5`` or ``option_0`` to ``option_4``.

    ``answer`` is the index of the right one, from 0.

    Raises:
        AnnotationError: options or answer are missing, or the answer is not the index of an option.
    """
    if row.has("options"):
        options = row.texts("options")
    elif row.has("option_0"):
        options = tuple(row.text(name) for name in (f"option_{i}" for i in range(len(row.values))) if row.has(name))
    else:
        options = tuple(row.text(f"a{i}") for i in range(1, 6))
    return Example(
        key=row_key(row),
        video=video,
        clip=clip,
        question=row.first("question"),
        choices=options,
        label=right_option(row, options),
        kind=row.first("kind"),
        temporal=row.flag("temporal"),
    )


def right_option(row: Row, options: tuple[str, ...]) -> int:
    """The index in the field ``answer``.

    Raises:
        AnnotationError: it is not the index of an option.
    """
    label = row.integer("answer")
    if not 0 <= label < len(options):
        raise row.error(f"'answer' is {label}, outside the {len(options)} choices (counted from 0)")
    return label


def row_key(row: Row) -> str:
    """The number of a question in its file, else its line."""
    return row.first(*_KEYS) or str(row.line)
