"""Shards are tar files that others read too, the same bytes each time, and can be read on from any sample."""

from __future__ import annotations

import io
import json
import tarfile
from typing import TYPE_CHECKING

import numpy as np
import pytest

from evilm.data import shards
from evilm.data.shards import Place
from evilm.data.video.container import tar_members
from evilm.errors import AnnotationError

if TYPE_CHECKING:
    from pathlib import Path

CONTENTS = [
    ("000", {"json": b"{}", "00.jpg": b"one", "01.jpg": b"two" * 300}),
    ("a/b", {"txt": b"a cat", "mp4": b"film"}),
    ("002", {"frames.npy": b"x" * 1024}),
]


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "s-000000.tar"
    places = shards.write(path, CONTENTS)
    with tarfile.open(path) as archive:  # any reader of tar files sees plain members
        assert archive.getnames() == [f"{key}.{kind}" for key, members in CONTENTS for kind in members]
    data = path.read_bytes()
    for (_, members), where in zip(CONTENTS, places, strict=True):
        assert {kind: data[w.offset : w.offset + w.size] for kind, w in where.items()} == members
    assert [(sample.key, sample.members) for sample in shards.samples([path])] == CONTENTS
    assert {name: place[1] for name, place in tar_members(path).items()}["000.01.jpg"] == 900


def test_the_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    shards.write(tmp_path / "a.tar", CONTENTS)
    shards.write(tmp_path / "b.tar", iter(CONTENTS))
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    assert not list(tmp_path.glob("*.tmp"))


def test_reading_goes_on_from_any_sample(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.tar" for i in range(3)]
    for i, path in enumerate(paths):
        shards.write(path, [(f"{i}-{key.replace('/', '-')}", members) for key, members in CONTENTS[: 3 - i]])
    whole = list(shards.samples(paths))
    assert len(whole) == 6
    for done, sample in enumerate(whole, 1):
        state = json.loads(json.dumps(sample.after))  # as a checkpoint keeps it
        assert list(shards.samples(paths, Place(*state))) == whole[done:]


@pytest.mark.parametrize("key", ["", "a.b", "folder/a.b"])
def test_a_key_that_others_would_read_otherwise(tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match="cannot be called"):
        shards.write(tmp_path / "a.tar", [(key, {"txt": b""})])
    assert not (tmp_path / "a.tar").exists()


def test_shards_that_others_wrote(tmp_path: Path) -> None:
    """GNU and PAX headers, folders, names of a hundred and more letters, capitals in what follows the dot."""
    for kind in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT):
        path = tmp_path / f"{kind}.tar"
        long = f"{'f' * 90}/{'n' * 60}"
        with tarfile.open(path, "w", format=kind) as archive:
            folder = tarfile.TarInfo("f" * 90)
            folder.type = tarfile.DIRTYPE
            archive.addfile(folder)
            for name, data in ((f"{long}.JPG", b"1"), (f"{long}.txt", b"2"), ("next.txt", b"3")):
                entry = tarfile.TarInfo(name)
                entry.size, entry.mtime = len(data), 1e9
                archive.addfile(entry, io.BytesIO(data))
        found = list(shards.samples([path]))
        assert [(s.key, s.members) for s in found] == [(long, {"jpg": b"1", "txt": b"2"}), ("next", {"txt": b"3"})]
        assert [s.key for s in shards.samples([path], found[0].after)] == ["next"]


def test_damaged_shards_are_said(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    shards.write(path, CONTENTS)
    data = path.read_bytes()
    path.write_bytes(data[:1800])
    with pytest.raises(AnnotationError, match=r"s\.tar: cannot be read as an uncompressed tar"):
        list(shards.samples([path]))
    path.write_bytes(np.random.default_rng(0).bytes(4096))
    with pytest.raises(AnnotationError, match=r"s\.tar: cannot be read as an uncompressed tar"):
        list(shards.samples([path]))
    with pytest.raises(AnnotationError, match=r"no\.tar: cannot be read: No such file"):
        list(shards.samples([tmp_path / "no.tar"]))
