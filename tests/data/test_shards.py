"""WebDataset shards: plain tar files, equal bytes for equal samples, and readable if other programs wrote them."""

from __future__ import annotations

import io
import tarfile
from typing import TYPE_CHECKING

import numpy as np
import pytest

from evilm.data import readers
from evilm.data.pack import write_shard
from evilm.data.video.container import tar_members
from evilm.errors import AnnotationError

if TYPE_CHECKING:
    from pathlib import Path

SAMPLES = [
    ("000", {"json": b"{}", "00.jpg": b"one", "01.jpg": b"two" * 300}),
    ("a/b", {"txt": b"a cat", "mp4": b"film"}),
    ("002", {"frames.npy": b"x" * 1024}),
]


def test_members_are_where_write_shard_says(tmp_path: Path) -> None:
    path = tmp_path / "s-000000.tar"
    places = write_shard(path, SAMPLES)
    with tarfile.open(path) as archive:
        assert archive.getnames() == [f"{key}.{kind}" for key, members in SAMPLES for kind in members]
    data = path.read_bytes()
    for (_, members), where in zip(SAMPLES, places, strict=True):
        assert {kind: data[w.offset : w.offset + w.size] for kind, w in where.items()} == members
    assert {name: place[1] for name, place in tar_members(path).items()}["000.01.jpg"] == 900


def test_equal_samples_give_equal_bytes(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", SAMPLES)
    write_shard(tmp_path / "b.tar", iter(SAMPLES))
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("key", ["", "a.b", "folder/a.b"])
def test_ambiguous_keys_are_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match="is not a valid key"):
        write_shard(tmp_path / "a.tar", [(key, {"txt": b""})])
    assert not (tmp_path / "a.tar").exists()


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_shards_of_other_programs_are_read(tmp_path: Path, kind: int) -> None:
    """Tar formats, folders, names of more than 100 letters, capitals after the dot."""
    path = tmp_path / "train.tar"
    long = f"{'f' * 90}/{'n' * 60}"
    with tarfile.open(path, "w", format=kind) as archive:
        folder = tarfile.TarInfo("f" * 90)
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, data in ((f"{long}.JPG", b"1"), (f"{long}.txt", b"a cat"), ("next.mp4", b"3"), ("next.cls", b"3")):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime = len(data), 1e9
            archive.addfile(entry, io.BytesIO(data))
    rows = readers.read("shards", tmp_path)
    assert [(row.key, row.clip.frames, row.captions, row.label) for row in rows] == [
        (long, (f"{long}.JPG",), ("a cat",), None),
        ("next", ("next.mp4",), (), 3),
    ]


def test_damaged_shards_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    write_shard(path, SAMPLES)
    path.write_bytes(path.read_bytes()[:1800])
    with pytest.raises(AnnotationError, match=r"s\.tar: "):
        readers.read("shards", path)
    path.write_bytes(np.random.default_rng(0).bytes(4096))
    with pytest.raises(AnnotationError, match=r"s\.tar: "):
        readers.read("shards", path)
