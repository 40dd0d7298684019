"""``VideoIndex``: building, updating, searching, and errors."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np
import pytest

from evilm.data.video import Limits
from evilm.errors import OutputError, QueryError, VideoIndexError
from evilm.search import pipeline, update, vectors
from evilm.search.database import Database
from evilm.search.index import VideoIndex
from evilm.search.model import IndexConfig, stored_config
from evilm.search.query import Filter
from evilm.search.segments import SegmentConfig
from evilm.types import Clip

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from evilm.search.update import Report


def build(folder: Path, model: Any, at: Path, **options: Any) -> tuple[VideoIndex, Report]:
    index = VideoIndex.build(folder, model, at, **options)
    assert index.report is not None
    return index, index.report


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory, painted: Callable[..., Path]) -> Path:
    """Eight videos of one colour, one of three colours of six seconds each, a file that is no video, and a picture."""
    home = tmp_path_factory.mktemp("library")
    for colour in ("red", "green", "blue", "yellow", "black", "white", "cyan", "magenta"):
        painted(home / "videos" / ("dark" if colour in ("black", "blue") else "bright") / f"{colour}.mp4", [colour])
    painted(home / "videos" / "long.mp4", ["red", "green", "blue"], seconds=6)
    (home / "videos" / "broken.mp4").write_bytes(b"not a video at all" * 10)
    picture = np.zeros((40, 60, 3), np.uint8)
    picture[:] = (40, 200, 60)
    with av.open(str(home / "green.png"), "w", format="image2") as container:
        stream = container.add_stream("png", rate=1)
        stream.width, stream.height, stream.pix_fmt = 60, 40, "rgb24"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return home


@pytest.fixture(scope="module")
def indexed(library: Path, make_model: Callable[..., Any]) -> Iterator[VideoIndex]:
    index, report = build(library / "videos", make_model(0), library / "index")
    assert (report.new, report.files, report.segments) == (10, 9, 11)
    assert [each["status"] for each in report.unreadable] == ["corrupt"]
    with index:
        yield index


def test_a_text_finds_its_segments(indexed: VideoIndex) -> None:
    hits = indexed.search("something red", k=3)
    found = {(hit.path.name, round(hit.start), round(hit.end)) for hit in hits.hits[:2]}
    assert found == {("red.mp4", 0, 1), ("long.mp4", 0, 6)}
    assert not hits.no_good_match
    assert hits[0].score >= hits[1].score > 0.5
    assert hits[1].cosine > 0.95 > hits[2].cosine
    row = hits.as_json()
    assert list(row) == ["query", "hits", "no_good_match"]
    assert list(row["hits"][0]) == ["path", "start", "end", "score", "why"]


def test_an_absent_scene_gives_no_good_match(indexed: VideoIndex) -> None:
    assert indexed.search("nothing that has a colour").no_good_match


def test_a_video_or_a_picture_finds_similar_segments(indexed: VideoIndex, library: Path) -> None:
    assert {hit.path.name for hit in indexed.search(library / "green.png", k=2)} == {"green.mp4", "long.mp4"}
    found = indexed.search(Clip(library / "videos" / "long.mp4", 12, 18), k=2)
    assert {(hit.path.name, round(hit.start)) for hit in found} == {("blue.mp4", 0), ("long.mp4", 12)}


def test_filters_limit_the_files(indexed: VideoIndex, library: Path) -> None:
    def names(**options: Any) -> set[str]:
        return {hit.path.name for hit in indexed.search("red", k=20, where=Filter(**options))}

    assert names(folder=library / "videos" / "dark") == {"black.mp4", "blue.mp4"}
    assert names(min_duration=5) == {"long.mp4"}
    assert "long.mp4" not in names(max_duration=5)
    changed = (library / "videos" / "long.mp4").stat().st_mtime
    today = dt.datetime.fromtimestamp(changed).astimezone().date()
    assert len(names(after=today, before=today + dt.timedelta(days=1))) == 9
    assert names(before=today) == set()


def test_reranking_orders_hits_by_the_match_head(indexed: VideoIndex) -> None:
    plain, again = indexed.search("blue", k=3), indexed.search("blue", k=3, rerank=3)
    assert {hit.path for hit in plain} == {hit.path for hit in again}
    assert [hit.start for hit in again] == sorted(hit.start for hit in plain)


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "empty"), ("  ?! ", "empty"), ("\x00", "empty"), ("word " * 10_000, "10,000 words"),
     ("a" * 9999, "characters"), ("собака ловит мяч", "does not know the words")],
)  # fmt: skip
def test_queries_that_cannot_be_searched_for(indexed: VideoIndex, text: str, said: str) -> None:
    with pytest.raises(QueryError, match=said):
        indexed.search(text)


def test_labels_calibrate_scores(indexed: VideoIndex, library: Path, tmp_path: Path, model: Any) -> None:
    shutil.copytree(indexed.folder, tmp_path / "index")
    bright = library / "videos" / "bright"
    with VideoIndex.open(tmp_path / "index", model) as index:
        pairs = [("red", bright / "red.mp4"), ("white", bright / "white.mp4"), ("yellow", bright / "yellow.mp4")]
        made = index.calibrate([*pairs, ("lost", bright / "nowhere.mp4")])
        assert (made.origin, made.samples) == ("labels", 3)
        assert index.search("red").calibration == made
        with pytest.raises(VideoIndexError, match="at least two texts"):
            index.calibrate([("red", "nowhere.mp4")])


def test_pages_of_hits_follow_one_another(indexed: VideoIndex) -> None:
    every = indexed.search("red", k=11)
    pages = [hit for offset in (0, 4, 8, 12) for hit in indexed.search("red", k=4, offset=offset)]
    assert pages == list(every)
    with pytest.raises(QueryError, match="at least one hit"):
        indexed.search("red", k=0)


def test_a_segment_finds_itself_first_with_score_one(indexed: VideoIndex) -> None:
    hit = indexed.search("something red", k=1)[0]
    found = indexed.search(hit.segment_id, k=3)
    assert (found[0].segment_id, found[0].score) == (hit.segment_id, 1.0)
    assert found.query == f"segment {hit.segment_id}"
    with pytest.raises(QueryError, match="segment 999: the index has no such segment"):
        indexed.search(999)
    with pytest.raises(QueryError, match="only a text can be re-ranked"):
        indexed.search(hit.segment_id, rerank=2)


def test_scores_of_one_video_come_in_order_of_time(indexed: VideoIndex) -> None:
    [long] = indexed.videos(Filter(name="LONG.*"))
    assert (long.path.name, long.num_segments, round(long.duration)) == ("long.mp4", 3, 18)
    hits = indexed.scores_of(long.id, "something green")
    assert [round(hit.start) for hit in hits] == [0, 6, 12]
    assert max(hits, key=lambda hit: hit.score).start == pytest.approx(6, abs=0.2)
    best = next(hit for hit in indexed.search("something green", k=11) if hit.video_id == long.id)
    assert best in hits
    with pytest.raises(QueryError, match="video 999"):
        indexed.scores_of(999, "something green")


def test_videos_segments_and_statuses_are_listed(indexed: VideoIndex, library: Path) -> None:
    videos = indexed.videos()
    assert [video.path for video in videos] == sorted(video.path for video in videos)
    assert indexed.videos(limit=3, offset=2) == videos[2:5]
    assert [video.path.name for video in indexed.videos(Filter(folder=library / "videos" / "dark"))] == [
        "black.mp4", "blue.mp4",
    ]  # fmt: skip
    assert sum(video.num_segments for video in videos) == len(indexed) == 11
    segments = indexed.segments_of(indexed.videos(Filter(name="long*"))[0].id)
    assert [round(segment.end) for segment in segments] == [6, 12, 18]
    assert indexed.status_counts() == {"ok": 9, "corrupt": 1}
    assert [(video.path.name, video.status, bool(video.reason)) for video in indexed.unreadable()] == [
        ("broken.mp4", "corrupt", True)
    ]


def test_threads_search_while_another_process_updates(
    clips: Path, tmp_path: Path, model: Any, painted: Callable[..., Path]
) -> None:
    """Each search sees the state before or after a commit."""
    at, driver = tmp_path / "index", Path(__file__).with_name("driver.py")
    build(clips, model, at)[0].close()
    one = painted(tmp_path / "one.mp4", ["cyan"])
    for i in range(20):
        shutil.copy(one, clips / f"{i}.mp4")
    with (
        VideoIndex.open(at, model) as index,
        subprocess.Popen(
            [sys.executable, str(driver), "update", str(clips), str(at)], stdout=subprocess.DEVNULL
        ) as writer,
        ThreadPoolExecutor(3) as threads,
    ):

        def search_until_done(_: int) -> list[int]:
            counts = [4]
            while writer.poll() is None:
                counts.append(len(index.search("red", k=99)))
            return counts

        for counts in threads.map(search_until_done, range(3)):
            assert counts == sorted(counts)
        assert writer.wait() == 0
        assert len(index.search("red", k=99)) == 24


# Updates


def test_only_what_changed_is_encoded_again(
    clips: Path, tmp_path: Path, model: Any, painted: Callable[..., Path]
) -> None:
    at = tmp_path / "index"
    build(clips, model, at)[0].close()
    assert model.encoded == 4
    index, report = build(clips, model, at)
    with index:
        assert (report.same, model.encoded) == (4, 4)
        painted(clips / "new.mp4", ["cyan"])
        painted(clips / "red.mp4", ["magenta"])
        shutil.move(clips / "green.mp4", clips / "deep" / "grass.mp4")
        (clips / "deep" / "blue.mkv").unlink()
        again, report = build(clips, model, at)
        again.close()
        assert (report.new, report.changed, report.moved, report.deleted, report.same) == (1, 1, 1, 1, 1)
        assert model.encoded == 6
        # The reader that was open all the time sees it too.
        assert {hit.path.name for hit in index.search("red", k=20)} == {
            "new.mp4", "red.mp4", "grass.mp4", "yellow.webm.mp4"
        }  # fmt: skip
        assert index.search("magenta", k=1)[0].path.name == "red.mp4"


def test_a_video_that_became_unreadable_is_not_found(clips: Path, tmp_path: Path, model: Any) -> None:
    at = tmp_path / "index"
    build(clips, model, at)[0].close()
    (clips / "red.mp4").write_bytes(b"gone bad")
    index, report = build(clips, model, at)
    with index:
        assert report.changed == 1
        assert [Path(row["path"]).name for row in report.unreadable] == ["red.mp4"]
        assert json.loads((at / update.UNREADABLE).read_text())["status"] == "corrupt"
        assert [(file.path.name, file.status) for file in index.unreadable()] == [("red.mp4", "corrupt")]
        assert "red.mp4" not in {hit.path.name for hit in index.search("red", k=9)}


def test_a_file_that_is_deleted_during_the_update(
    clips: Path, tmp_path: Path, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def vanishing(*arguments: Any, **options: Any) -> Any:
        found = walk(*arguments, **options)
        (clips / "red.mp4").unlink()
        return found

    walk = update.scan.walk
    monkeypatch.setattr(update.scan, "walk", vanishing)
    index, report = build(clips, model, tmp_path / "index")
    index.close()
    assert (report.vanished, report.files, report.unreadable) == (1, 3, [])


def test_files_that_timed_out_are_tried_again(clips: Path, tmp_path: Path, model: Any) -> None:
    """With a limit that every file exceeds, and then with the default."""
    at = tmp_path / "index"
    with contextlib.suppress(VideoIndexError):
        build(clips, model, at, limits=Limits(timeout=1e-6))
    with Database(at) as database:
        assert {record.status for record in database.files()} == {"timeout"}
    index, report = build(clips, model, at)
    index.close()
    assert (report.changed, report.files) == (4, 4)


def test_an_empty_folder_needs_allow_empty(clips: Path, tmp_path: Path, model: Any) -> None:
    at = tmp_path / "index"
    build(clips, model, at)[0].close()
    clips.rename(tmp_path / "away")
    clips.mkdir()
    with pytest.raises(VideoIndexError, match=r"has 4 of this folder: is a disk missing\? --allow-empty"):
        build(clips, model, at)
    index, report = build(clips, model, at, allow_empty=True)
    assert (report.deleted, len(index)) == (4, 0)
    assert index.search("red").no_good_match
    index.close()


# Errors


def test_another_model_is_refused(clips: Path, tmp_path: Path, model: Any, make_model: Callable[..., Any]) -> None:
    at = tmp_path / "index"
    build(clips, model, at)[0].close()
    for act in (lambda: build(clips, make_model(1), at), lambda: VideoIndex.open(at, make_model(1)).search("red")):
        with pytest.raises(VideoIndexError, match="made by another model"):
            act()
    with VideoIndex.open(at) as index, pytest.raises(VideoIndexError, match="does not know where its model is"):
        index.search("red")
    with VideoIndex.open(at, model) as index:
        assert len(index.search("red")) == 4


def test_other_settings_than_those_of_the_index_are_refused(clips: Path, tmp_path: Path, model: Any) -> None:
    build(clips, model, tmp_path / "index", config=IndexConfig(segments=SegmentConfig(max_seconds=0.4)))[0].close()
    index, report = build(clips, model, tmp_path / "index")
    index.close()
    assert (report.same, report.segments) == (4, 12)
    with pytest.raises(VideoIndexError, match=r"was made with .*max_seconds=0\.4"):
        build(clips, model, tmp_path / "index", config=IndexConfig())


def test_settings_are_stored_under_the_names_of_format_1(clips: Path, tmp_path: Path, model: Any) -> None:
    """Indexes of earlier versions stay readable."""
    config = IndexConfig(mode="fast", segments=SegmentConfig(method="windows", max_seconds=5, max_segments=7))
    build(clips, model, tmp_path / "index", config=config)[0].close()
    with Database(tmp_path / "index") as database:
        assert database.metadata("config") == {
            "mode": "fast", "cut": {"by": "windows", "seconds": 5.0, "shortest": 1.5, "change": 0.45, "most": 7},
        }  # fmt: skip
        assert stored_config(database) == config


def test_an_index_of_another_format_names_the_remedy(clips: Path, tmp_path: Path, model: Any) -> None:
    build(clips, model, tmp_path / "index")[0].close()
    with contextlib.closing(sqlite3.connect(tmp_path / "index" / "index.db")) as base:
        base.execute("PRAGMA user_version = 99")
    with pytest.raises(
        VideoIndexError, match=r"format 99, .* reads format 1; index the videos again into a new folder"
    ):
        VideoIndex.open(tmp_path / "index", model)


def test_an_open_index_updates_itself(clips: Path, tmp_path: Path, model: Any, painted: Callable[..., Path]) -> None:
    with VideoIndex.build(clips, model, tmp_path / "index") as index:
        painted(clips / "new.mp4", ["cyan"])
        report = index.update(clips)
        assert (report.new, report.same) == (1, 4)
        assert index.report is report
        assert index.search("cyan", k=1)[0].path.name == "new.mp4"


def test_a_folder_of_something_else_is_refused(clips: Path, tmp_path: Path, model: Any) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match="holds something else"):
        build(clips, model, tmp_path / "other")
    with pytest.raises(VideoIndexError, match="holds no index"):
        VideoIndex.open(tmp_path / "other", model)
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["thesis.tex"]


def test_a_folder_without_videos_leaves_no_index(tmp_path: Path, model: Any) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a")
    with pytest.raises(VideoIndexError, match=r"holds no videos \(1 files with other suffixes\)"):
        build(tmp_path / "texts", model, tmp_path / "index")
    with pytest.raises(VideoIndexError, match="no such folder"):
        build(tmp_path / "nowhere", model, tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_a_folder_of_unreadable_videos_gives_an_error(tmp_path: Path, model: Any) -> None:
    (tmp_path / "videos").mkdir()
    for name in ("a.mp4", "b.avi"):
        (tmp_path / "videos" / name).write_bytes(b"nothing")
    with pytest.raises(VideoIndexError, match=r"none of its 2 videos can be read \(2 corrupt\); .*unreadable.jsonl"):
        build(tmp_path / "videos", model, tmp_path / "index")
    assert len((tmp_path / "index" / update.UNREADABLE).read_text().splitlines()) == 2


def test_a_full_disk_keeps_what_was_committed(
    clips: Path, tmp_path: Path, model: Any, monkeypatch: pytest.MonkeyPatch, painted: Callable[..., Path]
) -> None:
    at = tmp_path / "index"
    build(clips, model, at)[0].close()
    with VideoIndex.open(at, model) as index:
        before = {hit.path.name for hit in index.search("red", k=9)}
    one = painted(tmp_path / "one.mp4", ["cyan"])
    for i in range(12):
        shutil.copy(one, clips / f"{i}.mp4")
    monkeypatch.setattr(pipeline, "FLUSH_FILES", 1)
    committed: list[bytes] = []
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, hard))  # room for some commits, and then a write fails
    try:
        with pytest.raises(OutputError, match=r"cannot be written: .*; what was indexed is kept"):
            VideoIndex.build(clips, model, at, on_commit=lambda paths, *_: committed.extend(paths))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert 0 < len(committed) < 12
    with VideoIndex.open(at, model) as index:
        after = {hit.path.name for hit in index.search("red", k=99)}
    assert after == before | {Path(os.fsdecode(path)).name for path in committed}
    index, _ = build(clips, model, at)
    assert len(index) == 16
    index.close()


def test_one_process_writes_and_others_read_meanwhile(clips: Path, tmp_path: Path, model: Any) -> None:
    at = tmp_path / "index"
    build(clips, model, at)[0].close()
    with update.writing(at), Database(at, write=True) as database, database.transaction():
        database.delete_files([each.path for each in database.files()])
        with pytest.raises(VideoIndexError, match=f"process {os.getpid()} is writing to this index"):
            build(clips, model, at)
        with VideoIndex.open(at, model) as reader:
            assert len(reader.search("red")) == 4  # what is not committed is not there
            with pytest.raises(VideoIndexError, match="is writing"):
                reader.compact()


def test_a_damaged_database_gives_an_error(clips: Path, tmp_path: Path, model: Any) -> None:
    at = tmp_path / "index"
    build(clips, model, at)[0].close()
    (at / "index.db").write_bytes(b"SQLite format 3\0" + bytes(range(256)) * 200)
    for name in ("index.db-wal", "index.db-shm"):
        (at / name).unlink(missing_ok=True)
    with pytest.raises(VideoIndexError, match=r"damaged|another program"):
        VideoIndex.open(at, model).search("red")
    (at / "index.db").unlink()
    with contextlib.closing(sqlite3.connect(at / "index.db")) as base:
        base.execute("CREATE TABLE accounts (owner)")
    with pytest.raises(VideoIndexError, match="a database of another program"):
        VideoIndex.open(at, model)


def test_an_index_without_its_model_was_interrupted(clips: Path, tmp_path: Path, model: Any) -> None:
    at = tmp_path / "index"
    at.mkdir()
    (at / ".evilm").write_text("index of videos\n")
    Database(at, write=True).close()
    with VideoIndex.open(at, model) as index:
        index.compact()
        with pytest.raises(VideoIndexError, match="stopped before the first video"):
            index.search("red")
    index, _ = build(clips, model, at)
    assert len(index) == 4
    index.close()


# The cache


@pytest.mark.parametrize("harm", ["gone", "flipped", "short", "other"])
def test_a_missing_or_damaged_cache_changes_no_result(
    indexed: VideoIndex, tmp_path: Path, model: Any, harm: str
) -> None:
    shutil.copytree(indexed.folder, tmp_path / "index")
    path = tmp_path / "index" / vectors.NAME
    data = bytearray(path.read_bytes())
    if harm == "gone":
        path.unlink()
    elif harm == "flipped":
        data[-5] ^= 64
        path.write_bytes(data)
    elif harm == "short":
        path.write_bytes(data[:-7])
    else:
        path.write_bytes(data.replace(b'"identity": "', b'"identity": "0', 1))
    with VideoIndex.open(tmp_path / "index", model) as index:
        assert [hit.cosine for hit in index.search("red")] == [hit.cosine for hit in indexed.search("red")]


def test_compacting_frees_space_and_loses_nothing(clips: Path, tmp_path: Path, model: Any) -> None:
    at = tmp_path / "index"
    index, _ = build(clips, model, at)
    with update.writing(at), Database(at, write=True) as database:
        vectors = np.ones((4000, 32), np.float32)
        entry = database.files()[0]
        with database.transaction():
            database._connection.executemany(
                "INSERT INTO moments (file, start, end, vector) VALUES (?, 0, 1, ?)",
                [(entry.id, each.tobytes()) for each in vectors],
            )
        with database.transaction():
            database._connection.execute("DELETE FROM moments WHERE id > 4")
        database._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    before = (at / "index.db").stat().st_size
    with index:
        index.compact()
        assert (at / "index.db").stat().st_size < before / 2
        assert len(index.search("red")) == 4


def test_a_read_only_index_can_be_searched(indexed: VideoIndex, tmp_path: Path, model: Any) -> None:
    shutil.copytree(indexed.folder, tmp_path / "index")
    with contextlib.closing(sqlite3.connect(tmp_path / "index" / "index.db")) as base:
        base.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    for name in ("index.db-wal", "index.db-shm"):
        (tmp_path / "index" / name).unlink(missing_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "access", lambda *_: False)  # root may write everywhere
        with VideoIndex.open(tmp_path / "index", model) as index:
            assert len(index.search("red")) == 10
    assert not (tmp_path / "index" / "index.db-shm").exists()
