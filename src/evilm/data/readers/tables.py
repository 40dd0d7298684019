"""Annotation files to rows: csv, tab-separated, jsonl, json and parquet, each row knowing its file and line.

Whatever is wrong becomes an ``AnnotationError`` that names the file, the line, what was found and what is needed;
nothing is left out silently.
"""

from __future__ import annotations

import csv
import importlib
import json
from typing import TYPE_CHECKING, Any, cast

from evilm.data.readers.row import Row
from evilm.data.readers.text import lines, read_text
from evilm.errors import AnnotationError, DependencyError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KINDS = ("csv", "tsv", "jsonl", "json", "parquet")  # of tables, by the end of their names
_FIELD_LIMIT = 16 * 2**20  # characters in one csv field; beyond it a quote was surely left open
_BATCH = 4096  # rows of a parquet file held at a time


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
