"""Shards of a folder, joined, are the index of the folder; lists and addresses are indexed as folders are."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from evilm import cli
from evilm.errors import ConfigError, VideoIndexError
from evilm.search.database import Database
from evilm.search.index import VideoIndex
from evilm.search.merge import merge
from evilm.search.source import Shard, Source

if TYPE_CHECKING:
    from collections.abc import Callable


def rows(index: Path, root: Path | str = "") -> list[Any]:
    """Everything that an index says of each file, vectors as bytes, in order of paths; numbers of rows left out."""
    with Database(index) as database:
        told = []
        for record in database.files():
            spans = [(each.start, each.end) for each in database.segments(file_id=record.id)]
            vectors = database._rows("SELECT vector FROM moments WHERE file = ? ORDER BY start, id", [record.id])
            path = os.fsdecode(record.path).removeprefix(str(root)).lstrip("/")
            told.append((path, record.size, record.content_hash, record.status, record.duration, spans, vectors))
        return told


@pytest.fixture
def many(tmp_path: Path, painted: Callable[..., Path]) -> Path:
    """A folder of 12 videos and two that cannot be read."""
    folder = tmp_path / "many"
    for i in range(12):
        painted(folder / f"{i % 3}" / f"{i}.mp4", [["red", "green"], ["blue"], ["black", "white"]][i % 3])
    (folder / "broken.mp4").write_bytes(b"no video")
    (folder / "empty.mkv").write_bytes(b"")
    return folder


@pytest.mark.parametrize("count", [1, 3, 20])
def test_joined_shards_equal_the_index_of_the_folder(many: Path, tmp_path: Path, model: Any, count: int) -> None:
    whole = VideoIndex.build(many, model, tmp_path / "whole")
    parts = [tmp_path / f"part{i}" for i in range(count)]
    for i, part in enumerate(parts):
        VideoIndex.build(many, model, part, shard=Shard(i, count)).close()
    assert sum(len(rows(part)) for part in parts) == 14
    joined = tmp_path / "joined"
    merged = merge(joined, parts, lambda _: model)
    assert (merged.added, merged.doubled, merged.files, merged.segments) == (14, 0, 12, len(whole))
    assert rows(joined) == rows(tmp_path / "whole")
    assert (joined / "unreadable.jsonl").read_text() == (tmp_path / "whole" / "unreadable.jsonl").read_text()
    # The joined index is an index like any other: the same hits, and nothing is left to do for the folder.
    opened = VideoIndex.open(joined, model)
    assert {(h.path, h.start) for h in opened.search("red", k=3)} == {
        (h.path, h.start) for h in whole.search("red", k=3)
    }
    again = merge(joined, parts, lambda _: model)
    assert (again.added, again.replaced, again.same) == (0, 0, 14)
    assert (opened.update(many).new, opened.update(many).same) == (0, 14)


def test_a_killed_shard_and_a_killed_merge_are_continued(many: Path, tmp_path: Path, model: Any) -> None:
    program = (
        "import importlib.util, os, signal, sys\n"
        "from pathlib import Path\n"
        "from evilm.search import merge as m, pipeline\n"
        "from evilm.search.index import VideoIndex\n"
        "from evilm.search.source import Shard\n"
        "spec = importlib.util.spec_from_file_location('fake', sys.argv[2])\n"
        "fake = importlib.util.module_from_spec(spec); spec.loader.exec_module(fake)\n"
        "pipeline.FLUSH_FILES = m._BLOCK = 2\n"
        "die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "at = [Path(each) for each in sys.argv[3:]]\n"
        "if sys.argv[1] == 'shard':\n"
        "    VideoIndex.build(at[0], fake.Fake(), at[1], shard=Shard(0, 2), on_commit=die)\n"
        "else:\n"
        "    m.merge(at[0], at[1:], lambda _: fake.Fake(), die)\n"
    )
    fake = str(Path(__file__).with_name("fake.py"))
    parts, joined = [tmp_path / "part0", tmp_path / "part1"], tmp_path / "joined"
    places = [many, parts[0]], [joined, *parts]

    def killed(what: str, at: list[Path]) -> None:
        done = subprocess.run([sys.executable, "-c", program, what, fake, *map(str, at)], check=False)
        assert done.returncode == -signal.SIGKILL

    killed("shard", places[0])
    begun = len(rows(parts[0]))
    for i, part in enumerate(parts):
        with VideoIndex.build(many, model, part, shard=Shard(i, 2)) as made:
            assert made.report is not None
            assert i or 0 < begun == made.report.same
    killed("merge", places[1])
    copied = len(rows(joined))
    merged = merge(joined, parts, lambda _: model)
    assert (merged.same, merged.added) == (copied, 14 - copied)
    assert copied == 2
    VideoIndex.build(many, model, tmp_path / "whole").close()
    assert rows(joined) == rows(tmp_path / "whole")


def test_only_alike_indexes_are_joined(clips: Path, tmp_path: Path, model: Any, make_model: Any) -> None:
    VideoIndex.build(clips, model, tmp_path / "one").close()
    VideoIndex.build(clips, make_model(1), tmp_path / "other").close()
    with pytest.raises(VideoIndexError, match="made with another model"):
        merge(tmp_path / "joined", [tmp_path / "one", tmp_path / "other"], lambda _: model)
    assert not (tmp_path / "joined").exists()
    with pytest.raises(VideoIndexError, match="holds no index"):
        merge(tmp_path / "joined", [tmp_path / "nowhere"], lambda _: model)
    VideoIndex.build(clips, model, tmp_path / "two").close()
    assert merge(tmp_path / "joined", [tmp_path / "one", tmp_path / "two"], lambda _: model).doubled == 4
    assert rows(tmp_path / "joined") == rows(tmp_path / "one")


def test_shards_are_even_and_do_not_depend_on_the_mount_point() -> None:
    for root in (b"/mnt/a", b"/data/b"):
        owners = [[s for s in range(7) if Shard(s, 7).has(root + b"/%d.mp4" % i, root)] for i in range(7000)]
        assert all(len(each) == 1 for each in owners)
        assert owners[:5] == [[s for s in range(7) if Shard(s, 7).has(b"/x/%d.mp4" % i, b"/x")] for i in range(5)]
        assert all(900 < owners.count([s]) < 1100 for s in range(7))
    for wrong in ("1", "2/2", "a/b", "-1/2", "1/0", "²/3"):
        with pytest.raises(ConfigError, match="shard"):
            Shard.parse(wrong)


def test_a_list_is_indexed_and_deletes_nothing(clips: Path, tmp_path: Path, model: Any) -> None:
    listed = tmp_path / "videos.txt"
    listed.write_text(f"# some\nclips/red.mp4\n\n{clips}/green.mp4\nclips/red.mp4\nclips/gone.mp4\n")
    with VideoIndex.build(listed, model, tmp_path / "index") as made:
        assert made.status_counts() == {"ok": 2, "not_a_file": 1}
    listed.write_text("clips/deep/blue.mkv\n")
    with VideoIndex.build(listed, model, tmp_path / "index") as made:
        assert made.num_videos == 3
    table = tmp_path / "captions.csv"
    table.write_text("path,caption\nclips/yellow.webm.mp4,a\nclips/red,b\n")
    with VideoIndex.build(table, model, tmp_path / "index") as made:
        assert (made.num_videos, len(made.videos())) == (4, 5)
    with pytest.raises(VideoIndexError, match="name a folder for its index"):
        VideoIndex.build(listed, model)
    with pytest.raises(VideoIndexError, match="no such folder of videos"):
        Source.of(tmp_path / "nothing")


def test_an_address_is_indexed(many: Path, tmp_path: Path, model: Any) -> None:
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    memory.put(str(many), "/bucket", recursive=True)
    try:
        with VideoIndex.build("memory://bucket", model, tmp_path / "index") as made:
            assert made.report is not None
            assert (made.report.new, made.num_videos) == (14, 12)
            assert made.search("red", k=1).as_json()["hits"][0]["path"].startswith("memory://bucket/")
        VideoIndex.build(many, model, tmp_path / "whole").close()
        assert rows(tmp_path / "index", "memory://bucket") == rows(tmp_path / "whole", many)
        memory.rm("/bucket/0/0.mp4")
        with VideoIndex.build("memory://bucket", model, tmp_path / "index") as made:
            assert made.report is not None
            assert (made.report.deleted, made.report.same) == (1, 13)
    finally:
        memory.rm("/bucket", recursive=True)


def test_an_unknown_scheme_is_refused(tmp_path: Path, model: Any) -> None:
    with pytest.raises(VideoIndexError if importlib.util.find_spec("fsspec") else ImportError, match="nope"):
        VideoIndex.build("nope://bucket", model, tmp_path / "index")


def test_an_s3_server(many: Path, tmp_path: Path, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bucket of a local server, in two shards, killed connections aside: equal to the folder."""
    server, s3fs = pytest.importorskip("moto.server"), pytest.importorskip("s3fs")
    running = server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    running.start()
    try:
        host, port = running.get_host_and_port()
        for name, value in (("AWS_ENDPOINT_URL", f"http://{host}:{port}"), ("AWS_ACCESS_KEY_ID", "x"),
                            ("AWS_SECRET_ACCESS_KEY", "x"), ("AWS_DEFAULT_REGION", "us-east-1")):  # fmt: skip
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        files = s3fs.S3FileSystem()
        files.mkdir("films")
        files.put(str(many), "films/clips", recursive=True)
        parts = [tmp_path / "part0", tmp_path / "part1"]
        for i, part in enumerate(parts):
            VideoIndex.build("s3://films/clips", model, part, shard=Shard(i, 2)).close()
        merge(tmp_path / "joined", parts, lambda _: model)
        VideoIndex.build(many, model, tmp_path / "whole").close()
        assert rows(tmp_path / "joined", "s3://films/clips") == rows(tmp_path / "whole", many)
        with VideoIndex.open(tmp_path / "joined", model) as opened:
            assert opened.update("s3://films/clips").same == 14
    finally:
        running.stop()
        s3fs.S3FileSystem.clear_instance_cache()


def test_the_commands(tmp_path: Path, clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(2):
        name = str(tmp_path / f"part{i}")
        assert cli.run(["index", str(clips), name, "--model", "world-tiny", "--shard", f"{i}/2"]) == 0
    capsys.readouterr()
    joined = str(tmp_path / "joined")
    assert cli.run(["merge", joined, str(tmp_path / "part0"), str(tmp_path / "part1"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["added"] == 4
    assert cli.run(["search", joined, "a red disc"]) == 0
    assert cli.run(["index", str(clips), joined, "--shard", "2/2"]) == 2
    assert "shards of 2 are 0/2 to 1/2" in capsys.readouterr().err
