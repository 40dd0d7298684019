"""Annotation files to text, line by line: encodings, line ends, and limits on what one line may hold.

A reader holds one line at a time, so that a file of ten million rows costs no more memory than one of ten.
"""

from __future__ import annotations

import codecs
import io
import os
from typing import TYPE_CHECKING, BinaryIO

from evilm.errors import AnnotationError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAX_LINE = 16 * 2**20  # bytes of one line; beyond it the file is surely of another kind
MAX_WHOLE = 2**30  # bytes of a file that has to be read at once (json, UTF-16)
# UTF-32 first: its little-endian mark begins with that of UTF-16.
_MARKS = ((codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF8, "utf-8-sig"),
          (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))  # fmt: skip


def lines(path: Path) -> Iterator[str]:
    """The lines of a file, each with its end (of Linux, of Windows, or a lone carriage return), read one by one.

    The text is UTF-8, with or without a byte order mark, or UTF-16 (which is read at once).

    Raises:
        AnnotationError: the file is missing, unreadable, no such text, or has a line of more than ``MAX_LINE`` bytes.
    """
    with open_binary(path) as file:
        mark = encoding(file)
        if mark in ("utf-8", "utf-8-sig"):
            file.seek(len(codecs.BOM_UTF8) if mark == "utf-8-sig" else 0)
            yield from _utf8(path, file)
            return
    yield from io.StringIO(read_text(path), newline="")


def listed(path: Path) -> list[str]:
    """The names in a file that has one a line, without surrounding space; empty lines are passed over."""
    return [name for line in lines(path) if (name := line.strip())]


def read_text(path: Path) -> str:
    """The whole text of a file in UTF-8 or UTF-16, line ends as they are.

    Raises:
        AnnotationError: the file is missing, unreadable, larger than ``MAX_WHOLE``, or no such text (with the line).
    """
    with open_binary(path) as file:
        if os.fstat(file.fileno()).st_size > MAX_WHOLE:
            raise AnnotationError(
                path,
                f"is larger than {MAX_WHOLE} bytes, too large to be read at once: save it as jsonl, csv or parquet",
            )
        mark = encoding(file)
        file.seek(0)
        data = file.read(MAX_WHOLE)
    try:
        return data.decode(mark)
    except UnicodeDecodeError as error:
        good = data[: error.start].decode(mark, errors="ignore")
        raise _not_text(path, mark, error.start, good.count("\n") + 1) from None


def encoding(file: BinaryIO) -> str:
    """The encoding that a file's first bytes tell: by a mark, or by the zeros that UTF-16 has in Latin text."""
    head = file.read(4)
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name
    if len(head) == 4 and head[1] == head[3] == 0 and head[0] and head[2]:
        return "utf-16-le"
    if len(head) == 4 and head[0] == head[2] == 0 and head[1] and head[3]:
        return "utf-16-be"
    return "utf-8"


def open_binary(path: Path) -> BinaryIO:
    """The bytes of a regular file.

    Raises:
        AnnotationError: there is none, or it may not be read.
    """
    try:
        if path.is_dir():
            raise AnnotationError(path, "is a folder, an annotation file is needed")
        if path.exists() and not path.is_file():
            raise AnnotationError(path, "is no regular file")
        return path.open("rb")
    except FileNotFoundError:
        raise AnnotationError(path, "no such annotation file") from None
    except (OSError, ValueError) as error:
        raise AnnotationError(path, f"cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _utf8(path: Path, file: BinaryIO) -> Iterator[str]:
    number = read = 0
    while raw := _readline(path, file, number + 1):
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            raise _not_text(path, "utf-8", read + error.start, number + 1) from None
        read += len(raw)
        for line in (text,) if b"\r" not in raw else io.StringIO(text, newline=""):
            number += 1
            yield line


def _readline(path: Path, file: BinaryIO, number: int) -> bytes:
    try:
        raw = file.readline(MAX_LINE + 1)
    except OSError as error:
        raise AnnotationError(path, f"cannot be read: {error.strerror}", number) from None
    if len(raw) > MAX_LINE:
        raise AnnotationError(path, f"is longer than {MAX_LINE} bytes: this is no table of rows", number)
    return raw


def _not_text(path: Path, mark: str, byte: int, line: int) -> AnnotationError:
    name = "UTF-8" if mark.startswith("utf-8") else mark.upper()
    return AnnotationError(path, f"is not {name} text (byte {byte}); save it as UTF-8", line)
