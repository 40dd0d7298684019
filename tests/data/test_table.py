"""Tables return the rows that were written, and memory use does not grow with their number."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from evilm.data import table
from evilm.data.table import Table
from evilm.errors import DataError
from evilm.types import Clip, Example

ROWS = [
    Example("1", "v1", Clip(Path("a/b.mp4")), ("a cat", "eine Katze ist müde 🐈")),
    Example("", "", Clip(Path("a.mp4"), 1.5, 2.25), (), "what?", "", ("x", "", "y"), 0, "who"),
    Example("3", "v1", Clip(Path("x.tar"), frames=("p.00.jpg", "p.01.jpg")), ("\udc80 lone",), label=-3),
    Example("4", "v4", Clip(Path("a/b.mp4")), answer="no\nline\0", temporal=False),
    Example("5", "v5", Clip(Path("a/b.mp4")), temporal=True),
]


def test_rows_are_read_as_written(tmp_path: Path) -> None:
    rows = Table.write(tmp_path, iter(ROWS))
    assert len(rows) == 5
    assert list(rows) == ROWS
    assert [rows[i] for i in range(-5, 5)] == ROWS + ROWS
    assert rows[1:] == ROWS[1:]
    assert rows.clips == table.count_clips(ROWS) == table.count_clips(rows) == 3
    assert list(Table(tmp_path)) == ROWS
    with pytest.raises(IndexError):
        rows[5]


def test_every_field_is_stored() -> None:
    """A new field of ``Example`` or ``Clip`` must be added to the lines of ``Table``."""
    names = {field.name for kind in (Example, Clip) for field in fields(kind)}
    assert names == {"clip", "path", "start", "end", "frames", "key", "video", "captions", "question", "answer",
                     "choices", "label", "kind", "temporal"}  # fmt: skip


def test_rows_without_texts(tmp_path: Path) -> None:
    bare = [Example(str(i), "v", Clip(Path("v.mp4"))) for i in range(3)]
    assert list(Table.write(tmp_path, bare)) == bare


def test_few_rows_stay_a_list_and_many_become_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(table.collect(iter(ROWS)), list)
    monkeypatch.setattr(table, "MIN_ROWS", 3)
    monkeypatch.setattr(table, "_CHUNK", 2)
    rows = table.collect(iter(ROWS), tmp_path / "cache")
    assert isinstance(rows, Table)
    assert [*rows, rows[1]] == [*ROWS, ROWS[1]]
    assert not list((tmp_path / "cache").iterdir()), "no file is left behind, however the process ends"


def test_a_damaged_table_is_refused(tmp_path: Path) -> None:
    Table.write(tmp_path, ROWS)
    for name in sorted(path.name for path in tmp_path.iterdir()):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(DataError, match="is not a complete table of rows"):
            Table(tmp_path)
        (tmp_path / name).write_bytes(whole)
    with pytest.raises(DataError, match="is not a complete table of rows"):
        Table(tmp_path / "nowhere")


MILLIONS = """
import sys
from pathlib import Path
import numpy as np
import torch
from evilm.training import build
from evilm.data.loader import Loader
from evilm.data.pixels import FilePixels
from evilm.data.config import SourceConfig

class Grey(FilePixels):
    needs_workers = False
    def read(self, job, count):
        return np.zeros((count, self.size, self.size, 3), np.uint8)

rows = build.examples_of(SourceConfig(reader="captions", annotations=Path(sys.argv[1])))
count = int(sys.argv[2])
assert rows.clips == len(rows) == count
assert sum(len(row.captions[0]) for row in rows) > 50 * count
loader, seen = Loader(rows, Grey(8), 1, 8, 256, train=True), 0
for batch in loader.epoch(0):
    seen += len(batch)
    assert all(example.captions[0].endswith(f" {int(example.clip.path.stem)}") for example in batch.examples)
    if seen > 50_000:
        break
said = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
print(*(int(said[name].split()[0]) >> 10 for name in ("VmHWM", "RssAnon", "RssFile")))
"""


@pytest.mark.parametrize("count", [pytest.param(10_000_000, marks=pytest.mark.slow), 60_000])
def test_ten_million_rows_in_less_than_a_gigabyte(tmp_path: Path, count: int) -> None:
    """Read a csv of captions, iterate over its rows, and load 50,000 of them in random order.

    One process does all of it, with torch. The limit is its peak resident memory, mapped files included.
    """
    with (tmp_path / "train.csv").open("w") as file:
        file.write("path,caption\n")
        for i in range(count):
            file.write(f"{i // 1000:06d}/{i:010d}.mp4,a caption of sixty letters or so about the clip number {i}\n")
    program = [sys.executable, "-c", MILLIONS, str(tmp_path / "train.csv"), str(count)]
    found = subprocess.run(
        program, capture_output=True, text=True, check=True, env={**os.environ, "TMPDIR": str(tmp_path)}
    )
    most, *_ = map(int, found.stdout.split())
    assert most < 1000, f"MiB at most, and at the end anonymous and of files: {found.stdout}"
