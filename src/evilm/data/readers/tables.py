"""Annotation files to rows: csv, tab-separated, jsonl, json and parquet, each row knowing its file and line.

Whatever is wrong becomes an ``AnnotationError`` that names the file, the line, what was found and what is needed;
nothing is left out silently.
"""

from __future__ import annotations

import csv
import importlib
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from evilm.data.readers.text import lines, read_text
from evilm.errors import AnnotationError, DependencyError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

PATH_COLUMNS = ("path", "video_path", "video", "file", "filename", "file_name", "video_file", "clip", "clip_name",
                "video_id", "videoid", "image", "image_path", "key")  # fmt: skip
CAPTION_COLUMNS = ("caption", "captions", "sentence", "text", "description", "name", "title", "query")
KINDS = ("csv", "tsv", "jsonl", "json", "parquet")  # of tables, by the end of their names
_FIELD_LIMIT = 16 * 2**20  # characters in one csv field; beyond it a quote was surely left open
_BATCH = 4096  # rows of a parquet file held at a time


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


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a ``.csv``, ``.tsv``, ``.jsonl``, ``.json`` (a list of tables, or jsonl) or ``.parquet`` file.

    All but json are read a row at a time. A file of another name is read as csv. The separator is the tab where the
    header has one, else the comma, else the semicolon.

    Raises:
        AnnotationError: naming the first line that is wrong; also where there are no rows at all.
        DependencyError: a parquet file without pyarrow.
    """
    kind = path.suffix.lower()
    if kind == ".parquet":
        rows = _parquet(path)
    elif kind == ".jsonl" or (kind == ".json" and _is_jsonl(path)):
        rows = _jsonl(path)
    elif kind == ".json":
        rows = _json(path)
    else:
        rows = _csv(path)
    empty = True
    for row in rows:
        empty = False
        yield row
    if empty:
        raise AnnotationError(path, "holds no rows")


def read_json(path: Path) -> Any:
    """The value of a json file.

    Raises:
        AnnotationError: the file is missing, is not json, or names a field twice.
    """
    return _parse(path, read_text(path), None)


def json_rows(path: Path, data: Any, key: str) -> list[Row]:
    """The rows in the list under ``key`` of a json table.

    Raises:
        AnnotationError: there is no such list, or an entry is no table.
    """
    table = cast("dict[str, Any]", data) if isinstance(data, dict) else {}
    found = table.get(key)
    if not isinstance(found, list):
        raise AnnotationError(path, f"has no list {key!r}; keys found: {', '.join(table)[:200] or 'none'}")
    return list_rows(path, cast("list[Any]", found))


def list_rows(path: Path, data: list[Any]) -> list[Row]:
    """The entries of a json list as rows.

    Raises:
        AnnotationError: an entry is no table.
    """
    return [_row(path, number, value) for number, value in enumerate(data, start=1)]


def _csv(path: Path) -> Iterator[Row]:
    source = lines(path)
    header = next(source, "")
    delimiter = next((each for each in "\t,;" if each in header), ",")
    csv.field_size_limit(_FIELD_LIMIT)
    reader = csv.reader(_chain(header, source), delimiter=delimiter, strict=True)
    columns: list[str] = []
    line = 1
    try:
        for fields in reader:
            if delimiter == "\t" and reader.line_num > line:
                raise AnnotationError(
                    path, f"opens a quote that closes on line {reader.line_num}: no field of a tab-separated file runs "
                    "over lines; double the quote or leave it out", line,
                )  # fmt: skip
            if columns and fields:
                if len(fields) != len(columns):
                    raise AnnotationError(
                        path, f"has {len(fields)} fields, the header names {len(columns)}: {', '.join(columns):.200}",
                        line,
                    )  # fmt: skip
                yield Row(path, line, dict(zip(columns, fields, strict=True)))
            elif fields:
                columns = [name.strip() for name in fields]
                if len(set(columns)) < len(columns):
                    raise AnnotationError(path, f"names a column twice: {', '.join(columns):.200}", line)
            line = reader.line_num + 1
    except csv.Error as error:
        raise AnnotationError(path, f"is not well-formed csv: {error}; quotes in a field are doubled", line) from None


def _chain(header: str, rest: Iterator[str]) -> Iterator[str]:
    yield header
    yield from rest


def _is_jsonl(path: Path) -> bool:
    """Whether a .json file holds a table a line, as some published ones do."""
    found = (line.strip() for line in lines(path) if line.strip())
    first, second = next(found, ""), next(found, "")
    if not (first.startswith("{") and first.endswith("}") and second.startswith("{")):
        return False
    try:
        return isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def _jsonl(path: Path) -> Iterator[Row]:
    for line, content in enumerate(lines(path), start=1):
        if content.strip():
            yield _row(path, line, _parse(path, content, line))


def _json(path: Path) -> Iterator[Row]:
    data = _parse(path, read_text(path), None)
    if not isinstance(data, list):
        keys = ", ".join(cast("dict[str, Any]", data))[:100] if isinstance(data, dict) else type(data).__name__
        raise AnnotationError(path, f"is not a list of rows but a table of {keys}: take the reader of its own format")
    for number, value in enumerate(cast("list[Any]", data), start=1):
        yield _row(path, number, value)


def _parquet(path: Path) -> Iterator[Row]:
    if not path.is_file():
        raise AnnotationError(path, "no such annotation file")
    try:
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise DependencyError(f"{path}: parquet needs pyarrow: pip install 'evilm[parquet]'") from None
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_BATCH):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(path, number, values)
    except (OSError, ValueError) as error:  # pyarrow's own errors are of these kinds
        said = str(error).splitlines()[0]
        raise AnnotationError(path, f"is not parquet that can be read: {said:.200}", number + 1) from None


def _row(path: Path, line: int, value: Any) -> Row:
    if not isinstance(value, dict):
        raise AnnotationError(path, f"row {value!r:.60} is not a table of fields", line)
    return Row(path, line, cast("dict[str, Any]", value))


def _parse(path: Path, text: str, line: int | None) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_table)
    except json.JSONDecodeError as error:
        raise AnnotationError(path, f"is not json: {error.msg}", error.lineno if line is None else line) from None
    except (RecursionError, ValueError) as error:
        raise AnnotationError(path, f"is not json that can be read: {error}", line) from None


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A json table; the standard one keeps the last of two fields of one name and forgets the first."""
    table = dict(pairs)
    if len(table) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"field {twice!r:.60} stands twice in one table")
    return table
