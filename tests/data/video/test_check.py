"""`evilm data check-videos`: one status for each file of a folder, whatever its name."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import resource
import time
from collections import Counter
from pathlib import Path

import pytest

from evilm.cli import run
from evilm.data.video import DecoderPool, VideoReader
from evilm.data.video.check import STATUSES, check, check_folder, list_files
from films import number_of, write


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("film") / "a.ts", range(100), second=25)


def test_every_file_has_one_status(film: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inner = tmp_path / "inner" / "most"
    inner.mkdir(parents=True)
    whole = film.read_bytes()
    expected = {
        "a.ts": "ok", "no suffix": "ok", ".hidden": "ok", "inner/most/x.txt": "ok", "half": "partial",
        "notes.md": "corrupt",
        "empty.mp4": "corrupt", "fifo": "not_a_file", "link": "ok", "loop": "not_a_file", "inner/up": "not_a_file",
        "playlist.mp4": "refused", "line\nbreak": "ok", "\udcff\udcfe.mp4": "ok", "\x1b[31mred": "corrupt",
    }  # fmt: skip
    for name, status in expected.items():
        if status == "ok" and name != "link":
            (tmp_path / name).write_bytes(whole)
    broken_off = write(tmp_path / "film.mkv", range(100), second=25).read_bytes()
    (tmp_path / "half").write_bytes(broken_off[: len(broken_off) // 2])
    (tmp_path / "film.mkv").unlink()
    (tmp_path / "notes.md").write_text("no video at all\n" * 100)
    (tmp_path / "\x1b[31mred").write_text("neither\n" * 100)
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "playlist.mp4").write_text("#EXTM3U\n")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("a.ts")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "inner" / "up").symlink_to("..")
    assert run(["data", "check-videos", str(tmp_path), "--json", "--workers", "1"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {str(Path(each["path"]).relative_to(tmp_path)): each["status"] for each in report["files"]} == expected
    assert report["counts"] == {status: list(expected.values()).count(status) for status in STATUSES}
    assert sum(report["counts"].values()) == len(list_files(tmp_path)[0]) == len(expected)
    assert all(set(each) == {"path", "status", "reason"} for each in report["files"])
    assert all(bool(each["reason"]) == (each["status"] != "ok") for each in report["files"])
    assert run(["data", "check-videos", str(tmp_path), "--workers", "1"]) == 0
    said = capsys.readouterr().out
    assert "15 files: ok 7, partial 1, corrupt 3, refused 1, not_a_file 3" in said
    assert "\x1b" not in said


def test_missing_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "check-videos", str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path}/nowhere: no such folder\n"
    assert run(["data", "check-videos", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"] == []


def test_folder_that_cannot_be_listed_is_counted(
    film: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "closed").mkdir()
    (tmp_path / "a.ts").write_bytes(film.read_bytes())
    real = os.scandir

    def scandir(path: str) -> object:
        if Path(path).name == "closed":  # the tests may run as root, who may list everything
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr("os.scandir", scandir)
    assert run(["data", "check-videos", str(tmp_path), "--workers", "1"]) == 2
    output = capsys.readouterr()
    assert "1 files and 1 folders that cannot be listed: ok 1, not_a_file 1" in output.out
    assert f"error: 1 folders cannot be listed, the first {tmp_path}/closed: Permission denied" in output.err
    assert run(["data", "check-videos", str(tmp_path), "--json"]) == 2
    report = json.loads(capsys.readouterr().out)
    assert report["unlisted_folders"] == 1
    assert sum(report["counts"].values()) == len(report["files"]) == 2


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mkv", "libx264"), ("a.webm", "libvpx"), ("a.wmv", "wmv2"), ("a.ts", "libx264"), ("a.mp4", "libx264"),
     ("a.flv", "libx264")],
)  # fmt: skip
def test_stream_that_starts_late_is_sampled_by_its_own_start(tmp_path: Path, name: str, codec: str) -> None:
    path = write(tmp_path / name, range(5000 * 25, 5003 * 25), codec, second=25)
    assert check(path).status == "ok"
    with VideoReader(path) as reader:
        assert reader.duration == pytest.approx(3.0, abs=0.1)
        assert [number_of(p) for p in reader.frames_at([0.02, 1.02, 2.98])] == [0, 25, 74]


def test_options_allow_larger_frames(film: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.ts").write_bytes(film.read_bytes())
    for limit, status in ((64 * 64, "ok"), (64 * 64 - 1, "too_large")):
        assert run(["data", "check-videos", str(tmp_path), "--json", "--max-pixels", str(limit)]) == 0
        assert json.loads(capsys.readouterr().out)["files"][0]["status"] == status


def test_video_shorter_than_stated_is_partial(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mkv", range(0, 2000, 4), gop=25)
    assert check(path).status == "ok"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    found = check(path)
    assert found.status == "partial"
    assert "of the 20.0 s it states" in found.reason


def _used() -> tuple[int, int]:
    """Resident KiB and open descriptors of this process."""
    said = Path("/proc/self/statm").read_text(encoding="ascii").split()
    return int(said[1]) * resource.getpagesize() >> 10, len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("opens", [200, pytest.param(10_000, marks=pytest.mark.slow)])
def test_opening_leaks_no_memory_and_no_descriptors(film: Path, tmp_path: Path, opens: int) -> None:
    (tmp_path / "bad.ts").write_bytes(film.read_bytes()[: 188 * 3])
    paths = [film, write(tmp_path / "a.mp4", range(10), second=25), tmp_path / "bad.ts", tmp_path / "none"]

    def look(count: int) -> None:
        for i in range(count):
            path = paths[i % len(paths)]
            if i % 8 == 1:
                with VideoReader(path) as reader:
                    reader.frames_at([0.1], size=16)
            else:
                check(path)

    look(100)
    memory, files = _used()
    look(opens)
    later, left = _used()
    assert left == files
    assert (
        later - memory < 8 * 1024
    )  # KiB, where a leak of one small picture an open would be 12 times as much at 10,000


def test_opening_leaks_no_byte(film: Path) -> None:
    """By the count of the C library, because a leak of few bytes does not show in the resident memory."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2"):
        pytest.skip("needs glibc 2.33, whose count of bytes in use goes beyond 2 GiB")
    # Ten numbers of size_t; the eighth is the number of allocated bytes.
    libc.mallinfo2.restype = type("Mallinfo", (ctypes.Structure,), {"_fields_": [("all", ctypes.c_size_t * 10)]})

    def allocated() -> int:
        gc.collect()
        return int(libc.mallinfo2().all[7])

    for _ in range(20):
        check(film)
    before = allocated()
    for _ in range(100):
        check(film)
    assert (allocated() - before) / 100 < 100  # bytes; a leaked packet of FFmpeg has 104


@pytest.mark.slow
def test_a_decoder_process_does_not_grow(film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """10,000 requests are answered by two processes, because one is replaced after 5,000; neither grows."""
    monkeypatch.setattr("evilm.data.video.pool._REQUESTS", 5000)
    paths = [film, write(tmp_path / "a.mp4", range(10), second=25), tmp_path / "none"]
    sizes: dict[int, list[int]] = {}
    with DecoderPool() as pool:
        for i in range(10_000):
            pool.check(paths[i % 3])
            if i % 100 == 99:
                for pid in pool.processes:
                    said = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()
                    sizes.setdefault(pid, []).append(int(said[1]) * resource.getpagesize())
                    assert len(list(Path(f"/proc/{pid}/fd").iterdir())) < 16
    assert len(sizes) == 2
    assert all(max(each) - each[2] < 8 << 20 for each in sizes.values() if len(each) > 2)


def test_some_odd_files(shared_data: Path) -> None:
    """Each twentieth; the slow test has all of them."""
    files = list_files(shared_data / "odd-videos")[0][::20]
    with DecoderPool() as pool:
        counts = check_folder(files, [], pool).counts
    assert sum(counts.values()) == len(files)
    assert counts["crashed"] == counts["timeout"] == 0
    assert counts["ok"] > 0


@pytest.mark.slow
def test_all_odd_files(shared_data: Path) -> None:
    folder = shared_data / "odd-videos"
    lines = (folder / "index.jsonl").read_text(encoding="utf-8").splitlines()
    plain = {row["file"]: row["pyav"] for row in map(json.loads, lines)}
    found, slowest = {}, 0.0
    with DecoderPool() as pool:
        for name in plain:
            began = time.monotonic()
            found[name] = pool.check(folder / name)
            slowest = max(slowest, time.monotonic() - began)
    assert slowest < 5.0
    counts = Counter(finding.status for finding in found.values())
    assert counts["crashed"] == counts["timeout"] == 0
    assert sum(counts.values()) == len(plain) == 409
    readable = {name for name, said in plain.items() if said == "ok"}
    lost = {name: found[name].status for name in readable if not found[name].readable}
    # Two files of a game and two with DRM; docs/reliability.md lists them.
    assert Counter(lost.values()) == {"refused": 2, "encrypted": 2}
