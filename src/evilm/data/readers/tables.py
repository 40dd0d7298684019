"""Annotation files to rows: encodings, csv, tsv, jsonl, json and parquet.

Every problem is an ``AnnotationError`` with the file, the line, the value and what is needed; no row is skipped. Files
are read line by line, so that ten million rows need no more memory than ten; json, which must be read whole, is
limited.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import importlib
import io
import itertools
import json
import os
import zlib
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from evilm.data.readers.rows import Row
from evilm.errors import AnnotationError, DependencyError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

FORMATS = ("csv", "tsv", "jsonl", "json", "parquet")  # suffixes of tables
MAX_LINE = 16 * 2**20  # bytes of a line, and characters of a csv field; a longer one means another kind of file
MAX_WHOLE = 2**30  # bytes of a file that must be read at once (json, UTF-16)
_BATCH = 4096  # rows of a parquet file in memory
# UTF-32 first: its little-endian mark begins with that of UTF-16.
_MARKS = ((codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF8, "utf-8-sig"),
          (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))  # fmt: skip


# Rows


def read_rows(path: Path, needed: str = "") -> Iterator[Row]:
    """The rows of a ``.csv``, ``.tsv``, ``.jsonl``, ``.json`` (a list of objects, or jsonl) or ``.parquet`` file.

    Files with other suffixes are read as csv. The csv separator is a tab if the header has one, else a comma, else a
    semicolon.

    Args:
        path: the file.
        needed: the columns that the caller needs, for the error about a file without rows.

    Raises:
        AnnotationError: a line is wrong, or there are no rows.
        DependencyError: a parquet file without pyarrow.
    """
    kind = path.suffix.lower()
    columns: list[str] = []
    if kind == ".parquet":
        rows = _parquet(path)
    elif kind == ".jsonl" or (kind == ".json" and _is_jsonl(path)):
        rows = (_row(path, n, _parse(path, line, n)) for n, line in enumerate(lines(path), start=1) if line.strip())
    elif kind == ".json":
        data = read_json(path)
        if not isinstance(data, list):
            keys = ", ".join(cast("dict[str, Any]", data))[:100] if isinstance(data, dict) else type(data).__name__
            raise AnnotationError(
                path, f"is not a list of rows but an object with {keys}: use the reader of its format (violet reads "
                "VIOLET's txt_*.json)"
            )  # fmt: skip
        rows = iter(list_rows(path, cast("list[Any]", data)))
    else:
        rows = _csv(path, columns)
    first = next(rows, None)
    if first is None:
        header = f" below its first line, whose columns are: {', '.join(columns):.200}" if columns else ""
        raise AnnotationError(path, f"holds no rows{header}{f'; needed: {needed}' if needed else ''}")
    yield first
    yield from rows


def read_json(path: Path) -> Any:
    """The value of a json file.

    Raises:
        AnnotationError: the file is missing, is not json, or has a field twice.
    """
    return _parse(path, read_text(path), None)


def json_rows(path: Path, data: Any, key: str) -> list[Row]:
    """The rows of the list ``data[key]``.

    Raises:
        AnnotationError: there is no such list, or an entry is not an object.
    """
    table = cast("dict[str, Any]", data) if isinstance(data, dict) else {}
    values = table.get(key)
    if not isinstance(values, list):
        raise AnnotationError(path, f"has no list {key!r}; keys found: {', '.join(table)[:200] or 'none'}")
    return list_rows(path, cast("list[Any]", values))


def list_rows(path: Path, values: Sequence[Any]) -> list[Row]:
    """The entries of a json list as rows.

    Raises:
        AnnotationError: an entry is not an object.
    """
    return [_row(path, number, value) for number, value in enumerate(values, start=1)]


def _csv(path: Path, columns: list[str]) -> Iterator[Row]:
    """The rows of a csv file; ``columns`` receives the names in its header."""
    source = lines(path)
    header = next(source, "")
    delimiter = next((each for each in "\t,;" if each in header), ",")
    csv.field_size_limit(MAX_LINE)
    reader = csv.reader(itertools.chain([header], source), delimiter=delimiter, strict=True)
    line = 1
    try:
        for fields in reader:
            if delimiter == "\t" and reader.line_num > line:
                raise AnnotationError(
                    path, f"opens a quote that closes on line {reader.line_num}: a field of a tab-separated file must "
                    "not contain a line break; double the quote or remove it", line,
                )  # fmt: skip
            if columns and fields:
                if len(fields) != len(columns):
                    raise AnnotationError(
                        path, f"has {len(fields)} fields, the header names {len(columns)}: {', '.join(columns):.200}",
                        line,
                    )  # fmt: skip
                yield Row(path, line, dict(zip(columns, fields, strict=True)))
            elif fields:
                columns.extend(name.strip() for name in fields)
                if len(set(columns)) < len(columns):
                    raise AnnotationError(path, f"names a column twice: {', '.join(columns):.200}", line)
            line = reader.line_num + 1
    except csv.Error as error:
        reason = f"is not well-formed csv: {error}; quotes in a field must be doubled"
        raise AnnotationError(path, reason, line) from None


def _is_jsonl(path: Path) -> bool:
    """Whether a .json file has an object on each line, as some published files do."""
    filled = (line.strip() for line in lines(path) if line.strip())
    first, second = next(filled, ""), next(filled, "")
    if not (first.startswith("{") and first.endswith("}") and second.startswith("{")):
        return False
    try:
        return isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


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
    except (OSError, ValueError) as error:  # pyarrow's own errors derive from these
        reason = str(error).splitlines()[0]
        raise AnnotationError(path, f"cannot be read as parquet: {reason:.200}", number + 1) from None


def _row(path: Path, line: int, value: Any) -> Row:
    if not isinstance(value, dict):
        raise AnnotationError(path, f"row {value!r:.60} is not an object with fields", line)
    return Row(path, line, cast("dict[str, Any]", value))


def _parse(path: Path, text: str, line: int | None) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique_fields)
    except json.JSONDecodeError as error:
        raise AnnotationError(path, f"is not json: {error.msg}", error.lineno if line is None else line) from None
    except (RecursionError, ValueError) as error:
        raise AnnotationError(path, f"cannot be read as json: {error}", line) from None


def _unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A json object; json's default would silently drop the first of two fields with one name."""
    table = dict(pairs)
    if len(table) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"field {twice!r:.60} occurs twice in one object")
    return table


# Text


def lines(path: Path) -> Iterator[str]:
    """The lines of a text file, one by one, with their line ends (LF, CRLF or CR).

    The encoding is UTF-8, with or without a byte order mark, or UTF-16, which is read at once.

    Raises:
        AnnotationError: the file is missing or unreadable, has another encoding, or a line over ``MAX_LINE`` bytes.
    """
    with _open(path) as file:
        encoding = _detect_encoding(file)
        if encoding in ("utf-8", "utf-8-sig"):
            file.seek(len(codecs.BOM_UTF8) if encoding == "utf-8-sig" else 0)
            yield from _utf8_lines(path, file)
            return
    yield from io.StringIO(read_text(path), newline="")


def gzip_lines(path: Path) -> Iterator[str]:
    """The lines of a gzipped UTF-8 text file, one by one.

    Raises:
        AnnotationError: the file is missing or damaged, or has another encoding.
    """
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            yield from file
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise AnnotationError(path, f"cannot be read as gzipped UTF-8 text: {error}") from None


def read_names(path: Path) -> list[str]:
    """The names in a file with one a line, without surrounding space and empty lines."""
    return [name for line in lines(path) if (name := line.strip())]


def read_text(path: Path) -> str:
    """The text of a UTF-8 or UTF-16 file, line ends unchanged.

    Raises:
        AnnotationError: the file is missing, unreadable, larger than ``MAX_WHOLE``, or has another encoding.
    """
    with _open(path) as file:
        if os.fstat(file.fileno()).st_size > MAX_WHOLE:
            raise AnnotationError(
                path, f"is larger than {MAX_WHOLE} bytes, too large to be read at once: save it as jsonl, csv "
                "or parquet",
            )  # fmt: skip
        encoding = _detect_encoding(file)
        file.seek(0)
        data = file.read(MAX_WHOLE)
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        before = data[: error.start].decode(encoding, errors="ignore")
        raise _encoding_error(path, encoding, error.start, before.count("\n") + 1) from None


def _detect_encoding(file: BinaryIO) -> str:
    """The encoding by the byte order mark, or by the zero bytes of Latin text in UTF-16."""
    head = file.read(4)
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name
    if len(head) == 4 and head[1] == head[3] == 0 and head[0] and head[2]:
        return "utf-16-le"
    if len(head) == 4 and head[0] == head[2] == 0 and head[1] and head[3]:
        return "utf-16-be"
    return "utf-8"


def _open(path: Path) -> BinaryIO:
    try:
        if path.is_dir():
            raise AnnotationError(path, "is a folder, an annotation file is needed")
        if path.exists() and not path.is_file():
            raise AnnotationError(path, "is not a regular file")
        return path.open("rb")
    except FileNotFoundError:
        raise AnnotationError(path, "no such annotation file") from None
    except (OSError, ValueError) as error:
        raise AnnotationError(path, f"cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _utf8_lines(path: Path, file: BinaryIO) -> Iterator[str]:
    number = position = 0
    while True:
        try:
            raw = file.readline(MAX_LINE + 1)
        except OSError as error:
            raise AnnotationError(path, f"cannot be read: {error.strerror}", number + 1) from None
        if not raw:
            return
        if len(raw) > MAX_LINE:
            raise AnnotationError(path, f"is longer than {MAX_LINE} bytes: this is not a table of rows", number + 1)
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            raise _encoding_error(path, "utf-8", position + error.start, number + 1) from None
        position += len(raw)
        for line in (text,) if b"\r" not in raw else io.StringIO(text, newline=""):
            number += 1
            yield line


def _encoding_error(path: Path, encoding: str, byte: int, line: int) -> AnnotationError:
    name = "UTF-8" if encoding.startswith("utf-8") else encoding.upper()
    return AnnotationError(path, f"is not {name} text (byte {byte}); save it as UTF-8", line)
