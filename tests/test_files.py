"""Output folders are accepted by kind and locked by one process; files are replaced atomically."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from evilm import files
from evilm.errors import OutputError

if TYPE_CHECKING:
    from pathlib import Path


def test_new_empty_and_own_folders_are_acquired(tmp_path: Path) -> None:
    new = tmp_path / "deep" / "new"
    files.acquire_dir(new, "run of evilm")
    (new / "more").touch()
    files.acquire_dir(new, "run of evilm")
    (tmp_path / "empty").mkdir()
    files.acquire_dir(tmp_path / "empty", "run of evilm")


def test_folders_of_another_kind_are_refused(tmp_path: Path) -> None:
    foreign = tmp_path / "photos"
    foreign.mkdir()
    (foreign / "cat.jpg").touch()
    with pytest.raises(OutputError, match="photos: holds something else"):
        files.acquire_dir(foreign, "run of evilm")
    assert sorted(path.name for path in foreign.iterdir()) == ["cat.jpg"]
    files.acquire_dir(tmp_path / "index", "video index")
    with pytest.raises(OutputError, match="holds video index"):
        files.acquire_dir(tmp_path / "index", "run of evilm")
    with pytest.raises(OutputError, match="is a file"):
        files.acquire_dir(foreign / "cat.jpg", "run of evilm")
    with pytest.raises(OutputError, match=r"cat\.jpg"):
        files.acquire_dir(foreign / "cat.jpg" / "below", "run of evilm")


def test_one_process_holds_the_lock_until_it_dies(tmp_path: Path) -> None:
    program = "import sys; from pathlib import Path; from evilm import files\n"
    program += "with files.lock_dir(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        with (
            pytest.raises(OutputError, match=f"another run is writing into it .process {first.pid} on"),
            files.lock_dir(tmp_path),
        ):
            pass
        first.kill()
    with files.lock_dir(tmp_path):
        pass


def test_write_atomic_replaces_the_whole_file_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "some.cache"
    files.write_atomic(path, [b"one", memoryview(b" two")])
    assert path.read_bytes() == b"one two"
    files.write_atomic(path, "text")
    assert path.read_bytes() == b"text"

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write_atomic(path, b"three")
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("some.cache", b"text")]
