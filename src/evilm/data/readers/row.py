"""One record of an annotation file, which knows its file and line, and what its columns may be called."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from evilm.errors import AnnotationError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

PATH_COLUMNS = ("path", "video_path", "video", "file", "filename", "file_name", "video_file", "clip", "clip_name",
                "video_id", "videoid", "image", "image_path", "key")  # fmt: skip
CAPTION_COLUMNS = ("caption", "captions", "sentence", "text", "description", "name", "title", "query")


@dataclass(frozen=True, slots=True)
class Row:
    """One record of an annotation file.

    Attributes:
        path, line: where it stands; ``line`` is the 1-based line, or the 1-based record of a json list or parquet.
        values: its fields by name, as the file has them.
    """

    path: Path
    line: int
    values: Mapping[str, Any]

    def has(self, name: str) -> bool:
        """Whether the field is there and is not empty."""
        return self.values.get(name) not in (None, "", [])

    def text(self, name: str) -> str:
        """A field as text without surrounding space; numbers are written out, whole ones without a point.

        Raises:
            AnnotationError: the field is missing, empty, or no text.
        """
        value = self._field(name)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, (str, int, float)) or value != value:  # noqa: PLR0124, NaN
            raise self.error(f"{name!r} is {value!r:.60}, text is needed")
        return self._clean(name, str(value))

    def texts(self, name: str) -> tuple[str, ...]:
        """A field that is a text or a list of texts, as texts.

        Raises:
            AnnotationError: as for ``text``, or an empty list.
        """
        value = self._field(name)
        if not isinstance(value, list):
            return (self.text(name),)
        items = cast("list[Any]", value)
        if not items or not all(isinstance(item, str) and item.strip() for item in items):
            raise self.error(f"{name!r} is {value!r:.60}, a list of texts is needed")
        return tuple(self._clean(name, item) for item in items)

    def flag(self, name: str) -> bool | None:
        """A field as yes or no; None where it is absent.

        Raises:
            AnnotationError: it is neither; a csv's ``true`` and ``false`` are.
        """
        if not self.has(name):
            return None
        value = self.values[name]
        found = {"true": True, "false": False}.get(value.strip().lower()) if isinstance(value, str) else value
        if not isinstance(found, bool):
            raise self.error(f"{name!r} is {value!r:.60}, true or false is needed")
        return found

    def integer(self, name: str) -> int:
        """A field as a whole number.

        Raises:
            AnnotationError: the field is missing or no whole number.
        """
        value = self.text(name)
        try:
            return int(value)
        except ValueError:
            raise self.error(f"{name!r} is {value!r:.60}, a whole number is needed") from None

    def seconds(self, name: str) -> float:
        """A field as a moment in seconds.

        Raises:
            AnnotationError: the field is missing, negative, or no number.
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
        """The first of some fields that is there and not empty, as text; None where none is."""
        return next((self.text(name) for name in names if self.has(name)), None)

    def error(self, reason: str) -> AnnotationError:
        """The error to raise about this row."""
        return AnnotationError(self.path, reason, self.line)

    def _clean(self, name: str, value: str) -> str:
        text = value.strip()
        if not text:
            raise self.error(f"{name!r} is empty")
        if text.isascii():
            if "\0" in text:
                raise self.error(f"{name!r} is {text!r:.60}, which holds a NUL character")
            return text
        if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
            raise self.error(
                f"{name!r} is {text!r:.60}, which holds a NUL or half of a surrogate pair: no text has that"
            )
        return text

    def _field(self, name: str) -> Any:
        if self.values.get(name) is None:
            found = ", ".join(sorted(map(str, self.values))) or "none"
            raise self.error(f"has no {name!r}; fields found: {found}")
        return self.values[name]


def first_column(row: Row, names: Sequence[str], what: str) -> str:
    """The first of ``names`` that is a field of ``row``; capitals do not matter.

    Raises:
        AnnotationError: none is, naming the columns found and those that would do.
    """
    found = {name.lower(): name for name in row.values}
    for name in names:
        if name.lower() in found:
            return found[name.lower()]
    columns = ", ".join(f"{name:.40}" for name in row.values) or "none"
    raise row.error(f"has no column for {what}; columns found: {columns}; needed one of: {', '.join(names)}")
