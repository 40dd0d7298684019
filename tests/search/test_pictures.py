"""Still pictures beside videos: one segment each, at 0 seconds."""

from __future__ import annotations

import json
import os
import struct
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from evilm import cli
from evilm.search.database import Database
from evilm.search.index import VideoIndex
from evilm.search.merge import merge
from evilm.search.source import Shard
from pictures import heic, jpeg

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 60, 220), "black": (10, 10, 10)}


def plain(*colours: str) -> NDArray[np.uint8]:
    """48x48 pixels: stripes of some colours, the first on top."""
    stripes = [np.full((48 // len(colours), 48, 3), COLOURS[each], np.uint8) for each in colours]
    return np.concatenate(stripes)


def names(index: VideoIndex) -> dict[str, int]:
    """The files that have segments, and how many."""
    return {video.path.name: video.num_segments for video in index.videos() if video.num_segments}


@pytest.fixture
def mixed(clips: Path) -> Path:
    """The four videos, and two pictures."""
    (clips / "deep" / "sea.JPG").write_bytes(jpeg(plain("blue"), 1))
    heic(clips / "night.heic", [plain("black")])
    return clips


def test_pictures_are_indexed_beside_videos_where_they_are_wanted(mixed: Path, tmp_path: Path, model: Any) -> None:
    at = tmp_path / "index"
    with VideoIndex.build(mixed, model, at) as index:
        assert len(index) == 4
        assert (index.report.others, index.report.pictures, index.pictures) == (3, 0, False)  # type: ignore[union-attr]
    with VideoIndex.build(mixed, model, at, pictures=True) as index:
        report = index.report
        assert report is not None
        assert (report.new, report.same, report.files, report.pictures, report.segments) == (2, 4, 6, 2, 6)
        assert str(report).startswith("4 videos and 2 pictures, 6 segments (2 new, 4 same)")
        hits = index.search("something blue", k=2)
        assert {hit.path.name for hit in hits} == {"blue.mkv", "sea.JPG"}
        picture = next(hit for hit in hits if hit.path.name == "sea.JPG")
        assert (picture.start, picture.end) == (0.0, 0.0)
        assert index.search(mixed / "night.heic", k=1)[0].path.name == "night.heic"
        assert [each.start for each in index.scores_of(picture.video_id, "blue")] == [0.0]
        assert index.search("blue", k=6, rerank=2)[1].path.name in ("blue.mkv", "sea.JPG")
    (mixed / "night.heic").rename(mixed / "dark.heic")
    (mixed / "deep" / "sea.JPG").write_bytes(jpeg(plain("red"), 1))
    with VideoIndex.open(at, model) as index:  # later updates remember that pictures are wanted
        report = index.update(mixed)
        assert (report.moved, report.changed, report.deleted, report.same) == (1, 1, 0, 4)
        assert {hit.path.name for hit in index.search("red", k=2)} == {"red.mp4", "sea.JPG"}
    with VideoIndex.build(mixed, model, at, pictures=False) as index:
        assert index.report is not None
        assert (index.report.deleted, index.report.files) == (2, 4)


def test_pictures_are_seen_upright(clips: Path, tmp_path: Path, model: Any) -> None:
    (clips / "upright.jpg").write_bytes(jpeg(plain("red", "blue"), 1))
    (clips / "turned.jpg").write_bytes(jpeg(plain("blue", "red"), 3))  # stored upside down
    (clips / "other.jpg").write_bytes(jpeg(plain("blue", "red"), 1))
    with VideoIndex.build(clips, model, tmp_path / "index", pictures=True) as index:
        first, second, third = index.search(clips / "upright.jpg", k=3)
        assert {first.path.name, second.path.name} == {"upright.jpg", "turned.jpg"}
        assert second.cosine > 0.999 > third.cosine


def test_broken_and_hostile_pictures_are_unreadable_files(mixed: Path, tmp_path: Path, model: Any) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress(bytes(2001) * 16_000, 9)
    header = struct.pack(">IIBBBBB", 16_000, 16_000, 1, 0, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    whole = jpeg(np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8), 1)
    bad: dict[str, tuple[bytes, str]] = {
        "bomb.png": (bomb, "too_large"), "cut.jpg": (whole[:5000], "corrupt"), "empty.webp": (b"", "corrupt"),
        "video.jpg": ((mixed / "red.mp4").read_bytes(), "unsupported"),
        "playlist.png": (b"#EXTM3U\n/etc/passwd", "refused"),
        "vector.png": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "unsupported"), "photo.mp4": (whole, "refused"),
        "page.jpeg": (b"<!DOCTYPE html><html>", "refused"), "noise.bmp": (b"BM" + bytes(500), "corrupt"),
    }  # fmt: skip
    for name, (data, _) in bad.items():
        (mixed / name).write_bytes(data)
    (mixed / "lost.png").symlink_to("nothing.png")
    os.mkfifo(mixed / "pipe.jpg")
    (mixed / "folder.jpg").mkdir()
    expected = {name: status for name, (_, status) in bad.items()}
    expected |= {"lost.png": "not_a_file", "pipe.jpg": "not_a_file"}
    with VideoIndex.build(mixed, model, tmp_path / "index", pictures=True) as index:
        assert {each.path.name: each.status for each in index.unreadable()} == expected
        assert all(each.reason for each in index.unreadable())
        assert len(index) == 6


def test_shards_of_videos_and_pictures_are_joined(mixed: Path, tmp_path: Path, model: Any) -> None:
    parts = [tmp_path / f"part{i}" for i in range(3)]
    for i, part in enumerate(parts):
        VideoIndex.build(mixed, model, part, shard=Shard(i, 3), pictures=True).close()
    joined = tmp_path / "joined"
    assert merge(joined, parts, lambda _: model).files == 6
    with VideoIndex.open(joined, model) as index:
        assert names(index) == {"red.mp4": 1, "green.mp4": 1, "blue.mkv": 1, "yellow.webm.mp4": 1, "sea.JPG": 1,
                                "night.heic": 1}  # fmt: skip
        report = index.update(mixed)
        assert (report.new, report.deleted, report.same) == (0, 0, 6), "the joined index still wants pictures"


def test_a_list_may_name_pictures(mixed: Path, tmp_path: Path, model: Any) -> None:
    listed = mixed / "some.txt"
    listed.write_text("red.mp4\ndeep/sea.JPG\n")
    with VideoIndex.build(listed, model, tmp_path / "index") as index:
        assert names(index) == {"red.mp4": 1, "sea.JPG": 1}


def test_commands_on_pictures(mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    at, photos = str(tmp_path / "index"), mixed / "photos"
    photos.mkdir()
    (photos / "a.png").write_bytes(jpeg(plain("red"), 1))  # a wrong suffix does no harm
    assert cli.run(["index", str(photos), at, "--model", "world-tiny"]) == 2
    assert "holds no videos (1 pictures; --pictures indexes them)" in capsys.readouterr().err
    assert cli.run(["index", str(mixed), at, "--model", "world-tiny", "--pictures"]) == 0
    assert "4 videos and 3 pictures, 7 segments" in capsys.readouterr().out
    assert cli.run(["search", at, "a red disc", "-k", "7"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum("  picture  " in line for line in lines) == 3
    assert sum("  0:00-0:01  " in line for line in lines) == 4
    assert cli.run(["search", at, "a red disc", "--json"]) == 0
    hits = json.loads(capsys.readouterr().out)["hits"]
    assert {hit["end"] for hit in hits if not hit["path"].endswith((".mp4", ".mkv"))} == {0.0}
    (tmp_path / "names.txt").write_text("a red disc\na blue square\n")
    assert cli.run(["label", at, str(tmp_path / "names.txt")]) == 0
    assert "sea.JPG,0.00,0.00," in capsys.readouterr().out
    assert cli.run(["index", str(mixed), at]) == 0
    assert "0 new, 7 same" in capsys.readouterr().out
    with Database(tmp_path / "index") as database:
        assert database.metadata("pictures") is True


def test_addresses_of_pictures(tmp_path: Path, model: Any, painted: Callable[..., Path]) -> None:
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    video = painted(tmp_path / "b.mp4", ["blue"]).read_bytes()
    memory.pipe({"/album/a.jpg": jpeg(plain("red"), 1), "/album/b.mp4": video})
    try:
        with VideoIndex.build("memory://album", model, tmp_path / "index", pictures=True) as index:
            assert names(index) == {"a.jpg": 1, "b.mp4": 1}
    finally:
        memory.rm("/album", recursive=True)
