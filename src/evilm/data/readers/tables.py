"""Annotation files to rows: csv, tab-separated, jsonl and json, each row knowing its file and line.

Whatever is wrong becomes an ``AnnotationError`` that names the file, the line, what was found and what is needed;
nothing is left out silently.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from evilm.errors import AnnotationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

PATH_COLUMNS = ("path", "video_path", "video", "file", "filename", "file_name", "video_file", "clip", "clip_name",
                "video_id", "videoid", "key")  # fmt: skip
CAPTION_COLUMNS = ("caption", "captions", "sentence", "text", "description", "name", "title", "query")
_FIELD_LIMIT = 16 * 2**20  # characters in one csv field; beyond it a quote was surely left open
_BOMS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


@dataclass(frozen=True, slots=True)
class Row:
    """One record of an annotation file.

    Attributes:
        path, line: where it stands; ``line`` is the 1-based line, or the 1-based record of a json list.
        values: its fields by name, as the file has them.
    """

    path: Path
    line: int
    values: Mapping[str, Any]

    def has(self, name: str) -> bool:
        """Whether the field is there and is not empty."""
        return self.values.get(name) not in (None, "", [])

    def text(self, name: str) -> str:
        """A field as text without surrounding space; numbers are written out.

        Raises:
            AnnotationError: the field is missing, empty, or no text.
        """
        value = self._field(name)
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise self.error(f"{name!r} is {value!r:.60}, text is needed")
        text = str(value).strip()
        if not text:
            raise self.error(f"{name!r} is empty")
        if "\0" in text:
            raise self.error(f"{name!r} is {text!r:.60}, which holds a NUL character")
        return text

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
        return tuple(item.strip() for item in items)

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
        if not 0 <= number < float("inf"):
            raise self.error(f"{name!r} is {value!r:.60}, seconds are needed")
        return number

    def error(self, reason: str) -> AnnotationError:
        """The error to raise about this row."""
        return AnnotationError(self.path, reason, self.line)

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
    raise row.error(
        f"has no column for {what}; columns found: {', '.join(row.values) or 'none'}; needed one of: {', '.join(names)}"
    )


def read_text(path: Path) -> str:
    """The text of a file in UTF-8 or, with a byte order mark, UTF-16.

    Raises:
        AnnotationError: the file is missing, unreadable, or no such text (with the line).
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise AnnotationError(path, "no such annotation file") from None
    except (OSError, ValueError) as error:
        raise AnnotationError(path, f"cannot be read: {getattr(error, 'strerror', None) or error}") from None
    encoding = next((name for bom, name in _BOMS.items() if data.startswith(bom)), "utf-8")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise AnnotationError(path, f"is not UTF-8 text (byte {error.start}); save it as UTF-8", line) from None


def read_json(path: Path) -> Any:
    """The value of a json file.

    Raises:
        AnnotationError: the file is missing or is not json.
    """
    return _parse(path, read_text(path), None)


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a ``.csv``, ``.tsv`` (or tab-separated ``.csv``), ``.jsonl`` or ``.json`` (list of tables) file.

    Raises:
        AnnotationError: naming the first line that is wrong; also where there are no rows at all.
    """
    text = read_text(path)
    kind = path.suffix.lower()
    if kind == ".jsonl":
        rows = _jsonl(path, text)
    elif kind == ".json":
        rows = _json(path, text)
    else:
        rows = _csv(path, text)
    empty = True
    for row in rows:
        empty = False
        yield row
    if empty:
        raise AnnotationError(path, "holds no rows")


def _csv(path: Path, text: str) -> Iterator[Row]:
    header = text[: text.find("\n")] if "\n" in text else text
    delimiter = "\t" if "\t" in header else ","
    csv.field_size_limit(_FIELD_LIMIT)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    columns: list[str] = []
    line = 1
    try:
        for fields in reader:
            if columns and fields:
                if len(fields) != len(columns):
                    raise AnnotationError(
                        path, f"has {len(fields)} fields, the header names {len(columns)}: {', '.join(columns)}", line
                    )
                yield Row(path, line, dict(zip(columns, fields, strict=True)))
            elif fields:
                columns = [name.strip() for name in fields]
                if len(set(columns)) < len(columns):
                    raise AnnotationError(path, f"names a column twice: {', '.join(columns)}", line)
            line = reader.line_num + 1
    except csv.Error as error:
        raise AnnotationError(path, f"is not well-formed csv: {error}", line) from None


def _jsonl(path: Path, text: str) -> Iterator[Row]:
    # Not splitlines: json strings may hold U+2028 and its like unescaped.
    for line, content in enumerate(text.split("\n"), start=1):
        if content.strip():
            yield _row(path, line, _parse(path, content, line))


def _json(path: Path, text: str) -> Iterator[Row]:
    data = _parse(path, text, None)
    if not isinstance(data, list):
        raise AnnotationError(path, "is not a list of rows")
    for number, value in enumerate(cast("list[Any]", data), start=1):
        yield _row(path, number, value)


def json_rows(path: Path, data: Any, key: str) -> list[Row]:
    """The rows in the list under ``key`` of a json table.

    Raises:
        AnnotationError: there is no such list, or an entry is no table.
    """
    table = cast("dict[str, Any]", data) if isinstance(data, dict) else {}
    found = table.get(key)
    if not isinstance(found, list):
        raise AnnotationError(path, f"has no list {key!r}; keys found: {', '.join(table) or 'none'}")
    return [_row(path, number, value) for number, value in enumerate(cast("list[Any]", found), start=1)]


def _row(path: Path, line: int, value: Any) -> Row:
    if not isinstance(value, dict):
        raise AnnotationError(path, f"row {value!r:.60} is not a table of fields", line)
    return Row(path, line, cast("dict[str, Any]", value))


def _parse(path: Path, text: str, line: int | None) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise AnnotationError(path, f"is not json: {error.msg}", error.lineno if line is None else line) from None
    except (RecursionError, ValueError) as error:
        raise AnnotationError(path, f"is not json that can be read: {error}", line) from None
