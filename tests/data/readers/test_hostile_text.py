"""Encodings, line ends, quotes and garbage: read correctly, or refused in one line with file and line number."""

from __future__ import annotations

import codecs
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from evilm.data.readers import read, tables
from evilm.errors import EvilmError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Put = Callable[..., Path]
    Complaint = Callable[..., str]

ROWS = "path,caption\na.mp4,ein Möwen-Flug\nb.mp4,zwei\n"


@pytest.mark.parametrize(
    "data",
    [
        ROWS.encode(),
        ROWS.replace("\n", "\r\n").encode(),
        ROWS.replace("\n", "\r").encode(),
        codecs.BOM_UTF8 + ROWS.encode(),
        ROWS.encode("utf-16"),
        codecs.BOM_UTF16_BE + ROWS.encode("utf-16-be"),
        ROWS.encode("utf-16-le"),
        ROWS.encode("utf-32"),
        ROWS.replace(",", ";").encode(),
        ROWS.replace(",", "\t").encode(),
        (ROWS + "\n\n").encode(),
        ROWS.rstrip().encode(),
    ],
    ids=["plain", "crlf", "cr", "bom", "utf16", "utf16be", "utf16 without mark", "utf32", "semicolons", "tabs",
         "blank lines", "no last line end"],
)  # fmt: skip
def test_every_encoding_and_line_end(put: Put, data: bytes) -> None:
    found = read("captions", put("list.csv", data))
    assert [(e.video, e.captions) for e in found] == [("a.mp4", ("ein Möwen-Flug",)), ("b.mp4", ("zwei",))]


def test_quotes_commas_tabs_and_line_ends_inside_captions(put: Put) -> None:
    table = put(
        "l.csv", 'path,caption\na,"he said ""hi"", and left"\nb,"tab\there"\nc,"two\r\nlines"\nd,it\'s 5" wide\n'
    )
    found = {e.video: e.captions[0] for e in read("captions", table)}
    assert found == {"a": 'he said "hi", and left', "b": "tab\there", "c": "two\r\nlines", "d": "it's 5\" wide"}
    quoted = put("l.tsv", 'path\tcaption\na\t"tab\there"\nb\tsays "so"\n')
    assert [e.captions[0] for e in read("captions", quoted)] == ["tab\there", 'says "so"']


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("l.tsv", "path\tcaption\na\tb\nc\tone\ttwo\n", ":3: has 3 fields, the header names 2: path, caption"),
        ("l.tsv", 'path\tcaption\na\t"open\nb\tclosed"\n', ":2: opens a quote that closes on line 3"),
        ("l.csv", 'path,caption\na,"open\nb,c\n', ":2: is not well-formed csv"),
        ("l.csv", 'path,caption\na,b\nc,"d" e\n', ":3: is not well-formed csv"),
        ("l.csv", "path,caption\na,b\nc,d\0e\n", ":3: 'caption' is 'd\\x00e', which contains a NUL"),
        ("l.csv", b"path,caption\na,b\nc,\xff\xfe\n", ":3: is not UTF-8 text (byte 19); save it as UTF-8"),
        ("l.csv", b"path,caption\na,\xed\xa0\xbd\n", ":2: is not UTF-8 text"),  # half of a surrogate pair
        ("l.csv", codecs.BOM_UTF16_LE + "path,caption\na,b\n".encode("utf-16-le") + b"\x3d\xd8", ":3: is not UTF-16"),
        ("l.csv", "a.mp4,a dog\nb.mp4,a cat\n", ":2: has no column for the video; columns found: a.mp4, a dog"),
        (
            "l.jsonl",
            '{"video": "a", "caption": "x"}\n{"video": "b", "caption": "\\ud83d"}\n',
            ":2: 'caption' is '\\ud83d'",
        ),
        (
            "l.jsonl",
            '{"video": "a", "caption": "x"}\n{"video": "b", "caption": ["x", "\\udfff"]}\n',
            ":2: 'caption' is",
        ),
        ("l.jsonl", '{"video": "a", "caption": NaN}\n', ":1: 'caption' is nan, text is needed"),
        ("l.jsonl", '{"video": "a", "caption": true}\n', ":1: 'caption' is True, text is needed"),
        (
            "l.jsonl",
            '{"video": "a", "video": "b", "caption": "x"}\n',
            ":1: cannot be read as json: field 'video'",
        ),
        ("l.jsonl", '{"video": "a", "caption": "x"}\n["b"]\n', ":2: row ['b'] is not an object with fields"),
        ("l.jsonl", '{"video": "a", "caption": "x"}\n{"video": "b"\n', ":2: is not json"),
        ("l.json", "[" * 100_000, ": cannot be read as json"),
        ("l.json", '[{"video": "a", "caption": ' + "9" * 5000 + "}]", ": cannot be read as json"),
        ("l.csv", "path,caption\na.mp4,   \n", ":2: 'caption' is empty"),
        ("l.csv", "path,caption,start,end\na,b,nan,2\n", ":2: 'start' is 'nan', seconds are needed"),
        ("l.csv", "path,caption,start,end\na,b,1e400,2\n", ":2: 'start' is '1e400', seconds are needed"),
        ("l.csv", b"", ": holds no rows"),
        ("l.csv", b"\x89PNG\r\n\x1a\n" + bytes(range(256)), ":1: is not UTF-8 text"),
    ],
)
def test_bad_files_are_refused_in_one_line(
    put: Put, complaint: Complaint, name: str, content: str | bytes, said: str
) -> None:
    path = put(name, content)
    assert complaint("captions", path).startswith(f"{path}{said}")


def test_ids_that_are_numbers(put: Put) -> None:
    rows = [{"video_id": 7, "caption": "x"}, {"video_id": 8.0, "caption": "y"}, {"video_id": "9", "caption": "z"}]
    assert [e.video for e in read("captions", put("l.json", rows))] == ["7", "8", "9"]


@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "loop", "secret"])
def test_paths_that_are_not_files_are_refused(tmp_path: Path, complaint: Complaint, kind: str) -> None:
    path = tmp_path / "list.csv"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path = tmp_path / "no\udcffsuch.csv"
    for name in ("captions", "webvid", "msvd_qa", "hmdb51", "coco_captions"):
        assert complaint(name, path)
    with pytest.raises(EvilmError):
        list(tables.read_rows(path))


def test_a_gigabyte_without_a_line_end_is_refused_in_little_memory(tmp_path: Path) -> None:
    """With 1 GiB of address space in all, Python and its libraries included."""
    path = tmp_path / "list.csv"
    with path.open("wb") as file:
        file.write(b"path,caption\na,b\n")
        file.truncate(2**30 + 1)  # a sparse file
    (tmp_path / "list.jsonl").symlink_to(path)
    (tmp_path / "list.json").symlink_to(path)
    program = (
        "import sys, pathlib, resource\n"
        "from evilm.data.readers import tables\n"
        "from evilm.errors import AnnotationError\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))\n"
        "for path in sys.argv[1:]:\n"
        "    try:\n        list(tables.read_rows(pathlib.Path(path)))\n"
        "    except AnnotationError as error:\n        print(error)\n"
    )
    names = [str(tmp_path / name) for name in ("list.csv", "list.jsonl", "list.json")]
    done = subprocess.run([sys.executable, "-c", program, *names], capture_output=True, text=True, check=False)
    said = done.stdout.splitlines()
    assert [line.partition(": ")[0] for line in said] == [f"{names[0]}:3", f"{names[1]}:1", names[2]], done.stderr[
        -300:
    ]


def test_lines_are_read_one_by_one(put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put("l.jsonl", "".join(f'{{"video": "{i}", "caption": "c"}}\n' for i in range(50)))

    def all_at_once(_: Path) -> str:
        raise AssertionError("read as a whole")

    monkeypatch.setattr(tables, "read_text", all_at_once)
    rows = tables.read_rows(path)
    assert next(rows).line == 1
    monkeypatch.setattr(tables, "_parse", lambda *_: pytest.fail("a line was parsed before it was needed"))
    with pytest.raises(pytest.fail.Exception):
        next(rows)
