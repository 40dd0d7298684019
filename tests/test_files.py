"""A folder for output is taken by its own kind alone, and held by one process at a time."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from evilm import files
from evilm.errors import OutputError

if TYPE_CHECKING:
    from pathlib import Path


def test_claim_takes_what_is_new_empty_or_its_own(tmp_path: Path) -> None:
    new = tmp_path / "deep" / "new"
    files.acquire_dir(new, "run of evilm")
    (new / "more").touch()
    files.acquire_dir(new, "run of evilm")
    (tmp_path / "empty").mkdir()
    files.acquire_dir(tmp_path / "empty", "run of evilm")


def test_claim_refuses_what_belongs_to_another(tmp_path: Path) -> None:
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


def test_a_folder_is_held_by_one_process_and_let_go_when_it_dies(tmp_path: Path) -> None:
    program = "import sys; from pathlib import Path; from evilm import output\n"
    program += "with files.hold(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
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
