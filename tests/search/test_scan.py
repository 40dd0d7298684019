from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from evilm.search.database import FileRecord
from evilm.search.scan import FoundFile, Walk, compare, content_hash, walk


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files that only look like videos: scanning never decodes."""
    for name in ("a.mp4", "b.MKV", "deep/c.webm", "notes.txt", ".hidden/d.mp4", "deep/._a.mp4"):
        path = tmp_path / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode() * 50_000)
    return tmp_path / "videos"


def names(found: Walk, folder: Path) -> list[str]:
    return [os.path.relpath(os.fsdecode(each.path), folder) for each in found.files]


def name(path: bytes) -> str:
    return Path(os.fsdecode(path)).name


def known(files: list[FoundFile], status: str = "ok") -> list[FileRecord]:
    return [FileRecord(i, *each, content_hash(each.path), status, "", 1.0) for i, each in enumerate(files)]


def test_every_file_with_a_video_suffix_is_found_once(folder: Path) -> None:
    (folder / "again").symlink_to(folder)  # a loop
    (folder / "linked.mp4").symlink_to(folder / "a.mp4")
    found = walk(folder)
    assert names(found, folder) == ["a.mp4", "b.MKV", "deep/c.webm", "linked.mp4"]
    assert found.others == 1


def test_a_linked_folder_is_followed_and_the_index_is_not(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "disk"
    outside.mkdir()
    (outside / "e.avi").write_bytes(b"e")
    (folder / "more").symlink_to(outside)
    assert "more/e.avi" in names(walk(folder), folder)
    assert names(walk(folder, skip=folder / "deep"), folder) == ["a.mp4", "b.MKV", "more/e.avi"]


def test_entries_that_are_not_regular_files_are_refused(folder: Path) -> None:
    os.mkfifo(folder / "pipe.mp4")
    (folder / "lost.mp4").symlink_to(folder / "nowhere")
    (folder / "self.mp4").symlink_to("self.mp4")
    (folder / "self").symlink_to("self")
    refused = {name(path): reason for path, reason in walk(folder).refused}
    assert refused == {"pipe.mp4": "is not a regular file", "lost.mp4": "is a link to nothing",
                       "self.mp4": "is a link that leads back to itself"}  # fmt: skip


def test_nothing_changed(folder: Path) -> None:
    found = walk(folder)
    changes = compare(known(found.files), found)
    assert changes.same == 3
    assert [*changes.new, *changes.changed, *changes.moved, *changes.deleted, *changes.touched] == []


def test_new_changed_moved_and_deleted(folder: Path) -> None:
    before = known(walk(folder).files)
    (folder / "new.mp4").write_bytes(b"n" * 9)
    (folder / "a.mp4").write_bytes(b"other")
    shutil.move(folder / "deep" / "c.webm", folder / "c2.webm")
    (folder / "b.MKV").unlink()
    changes = compare(before, walk(folder))
    assert [name(each.path) for each in changes.new] == ["new.mp4"]
    assert [name(each.path) for each in changes.changed] == ["a.mp4"]
    assert [(name(a.path), name(b.path)) for a, b in changes.moved] == [("c.webm", "c2.webm")]
    assert [name(each.path) for each in changes.deleted] == ["b.MKV"]


def test_a_file_of_equal_size_and_time_but_other_content_was_not_moved(folder: Path) -> None:
    before = known(walk(folder).files)
    old = (folder / "a.mp4").stat()
    (folder / "a.mp4").unlink()
    (folder / "z.mp4").write_bytes(b"z" * old.st_size)
    os.utime(folder / "z.mp4", ns=(old.st_mtime_ns, old.st_mtime_ns))
    changes = compare(before, walk(folder))
    assert len(changes.new) == len(changes.deleted) == 1
    assert not changes.moved


def test_a_folder_renamed_is_moves_only(folder: Path) -> None:
    before = known(walk(folder).files)
    (folder / "deep").rename(folder / "renamed")
    changes = compare(before, walk(folder))
    assert (len(changes.moved), len(changes.new), len(changes.deleted)) == (1, 0, 0)


def test_a_file_that_came_from_another_indexed_folder(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    elsewhere = known(walk(folder).files)
    shutil.move(folder / "a.mp4", other / "a.mp4")
    changes = compare([], walk(other), elsewhere)
    assert [old.path for old, _ in changes.moved] == [os.fsencode(folder / "a.mp4")]


def test_a_replaced_copy_of_the_same_content_is_only_touched(folder: Path) -> None:
    before = known(walk(folder).files)
    shutil.copy2(folder / "a.mp4", folder / "copy")
    os.replace(folder / "copy", folder / "a.mp4")
    changes = compare(before, walk(folder))
    assert (len(changes.touched), len(changes.changed), changes.same) == (1, 0, 2)


def test_files_beyond_a_limit_are_tried_again(folder: Path) -> None:
    found = walk(folder)
    for status in ("timeout", "crashed", "too_large"):
        assert len(compare(known(found.files, status), found).changed) == 3
    assert compare(known(found.files, "corrupt"), found).same == 3


def test_a_folder_that_cannot_be_listed_loses_nothing(folder: Path) -> None:
    before = known(walk(folder).files)
    closed = walk(folder)
    closed.files = [each for each in closed.files if b"deep" not in each.path]
    assert len(compare(before, closed).deleted) == 1
    closed.unlisted = [(os.fsencode(folder / "deep"), "cannot be listed")]
    assert compare(before, closed).deleted == []
