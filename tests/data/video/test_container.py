"""Files that are no videos, or that would use too much memory or time: refused, and no other file is opened."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import zlib
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import av
import pytest

import evilm
from evilm.data.video import DecoderPool, Limits, read_clip
from evilm.data.video.check import check
from evilm.data.video.process import _seconds_used
from evilm.errors import VideoError
from evilm.types import Clip
from films import write

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

STRACE = shutil.which("strace")


@pytest.fixture(scope="module")
def canary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A valid video that must not be opened: the disguised files refer to it."""
    return write(tmp_path_factory.mktemp("canary") / "canary.mp4", range(10), second=25)


@pytest.fixture(scope="module")
def pool() -> Iterator[DecoderPool]:
    with DecoderPool() as made:
        yield made


def texts(target: str) -> dict[str, str]:
    """The content of each disguised file, all referring to ``target``."""
    hls = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{target}\n#EXT-X-ENDLIST\n"
    return {
        "hls": hls,
        "hls after a bom": "\ufeff" + hls,
        "hls after blanks": "\n \n" + hls,
        "hls map": f'#EXTM3U\n#EXT-X-MAP:URI="{target}"\n#EXTINF:1,\nfile:{target}\n',
        "ffconcat": f"ffconcat version 1.0\nfile '{target}'\n",
        "dash": f'<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><BaseURL>{target}</BaseURL></MPD>',
        "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
        "lfs": "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
        "html": "<!DOCTYPE html>\n<html><body>404</body></html>",
    }


def external_track(film: Path, target: Path) -> bytes:
    """An MP4 whose track states that its frames are in another file; FFmpeg reads them from this one."""
    data = film.read_bytes()
    inside = b"url \x00\x00\x00\x01"
    assert data.count(inside) == 1
    return data.replace(inside, b"url \x00\x00\x00\x00") + os.fsencode(target)


def disguises(folder: Path, canary: Path) -> dict[str, str]:
    """Write disguised files to ``folder``; return the expected status by name."""
    expected: dict[str, str] = {}
    for name, text in texts(str(canary)).items():
        (folder / f"{name}.mp4").write_text(text, encoding="utf-8")
        expected[f"{name}.mp4"] = "refused"
    (folder / "picture%03d.png").write_bytes(png(8))
    (folder / "picture001.png").write_bytes(png(8))
    (folder / "external.mp4").write_bytes(external_track(canary, canary))
    os.mkfifo(folder / "fifo.mp4")
    (folder / "loop.mp4").symlink_to("loop.mp4")
    (folder / "zero.mp4").symlink_to("/dev/zero")
    (folder / "terminal.mp4").symlink_to("/dev/tty")
    (folder / "nowhere.mp4").symlink_to("nothing there")
    for name in ("fifo", "loop", "zero", "terminal", "nowhere"):
        expected[f"{name}.mp4"] = "not_a_file"
    # Formats that cannot refer to other files, with the path appended.
    for name, codec in (("a.264", "libx264"), ("a.265", "libx265"), ("a.ivf", "libvpx"), ("a.mxf", "mpeg2video"),
                        ("a.rm", "rv20")):  # fmt: skip
        film = write(folder / name, range(10), codec, second=25)
        film.write_bytes(film.read_bytes() + f"\nfile://{canary}\n{canary}\n".encode())
        film.rename(folder / f"{name}.mp4")
        expected[f"{name}.mp4"] = "readable"
    return expected | {"picture%03d.png": "ok", "picture001.png": "ok", "external.mp4": "ok"}  # one picture each


def test_disguises_are_refused_by_name(tmp_path: Path, canary: Path, pool: DecoderPool) -> None:
    for name, status in disguises(tmp_path, canary).items():
        found = pool.check(tmp_path / name)
        assert found.readable if status == "readable" else found.status == status, (name, found)


ADDRESSES = ("{url}", "concat:{path}|{path}", "subfile,,start,0,end,9,,:{path}", "data:video/mp4;base64,AAAA", "pipe:0",
             "picture%03d.png", "-", "nul\0.mp4")  # fmt: skip


@pytest.mark.parametrize("scheme", ADDRESSES)
def test_addresses_are_not_paths(scheme: str, canary: Path, pool: DecoderPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(canary.parent)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        path = Path(scheme.format(url=f"http://127.0.0.1:{server.getsockname()[1]}/a.mp4", path=canary))
        assert pool.check(path).status == "not_a_file"
        assert check(path).status == "not_a_file"
        with pytest.raises(BlockingIOError):  # no connection
            server.accept()


@pytest.mark.slow
@pytest.mark.skipif(STRACE is None, reason="strace is not installed")
def test_nothing_else_is_opened(tmp_path: Path, canary: Path) -> None:
    """Trace all system calls with a file or an address while a folder of disguised files is checked."""
    folder = tmp_path / "folder"
    folder.mkdir()
    disguises(folder, canary)
    log = tmp_path / "calls"
    command = [
        sys.executable,
        "-m",
        "evilm",
        "data",
        "check-videos",
        str(folder),
        "--workers",
        "1",
        "--timeout",
        "60",
    ]
    trace = ["-f", "-qq", "-e", "trace=%file,%network", "-s", "999", "-o", str(log)]
    subprocess.run([str(STRACE), *trace, *command], check=True, capture_output=True, timeout=600)
    calls = log.read_text(encoding="utf-8", errors="replace").splitlines()
    opened = [
        (i, found[1]) for i, call in enumerate(calls) if (found := re.search(r'open(?:at)?\([^"]*"([^"]*)"', call))
    ]
    begun = next(i for i, path in opened if path.startswith(f"{folder}/"))
    assert any(path.endswith("external.mp4") for _, path in opened), "nothing was seen at all"
    assert not [call for call in calls if str(canary.parent) in call]
    assert not [call for call in calls if re.search(r"(socket|connect|sendto)\(.*AF_INET", call)]
    package = str(Path(evilm.__file__).parent)
    own = (str(folder), sys.prefix, sys.base_prefix, package, "/proc/", "/usr/lib", "/dev/null")
    assert not [path for i, path in opened if i > begun and not path.startswith(own)]


# Bombs


def png(side: int) -> bytes:
    """A white square PNG of one bit a pixel, which is a tiny file for any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4)

    rows = (b"\x00" + b"\xff" * (-(-side // 8))) * side
    header = side.to_bytes(4) * 2 + bytes([1, 0, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def huge(side: int, container: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / f"huge.{container}"
        with av.open(str(path), "w") as out:
            stream = out.add_stream("png", rate=25)
            stream.width = stream.height = side
            stream.pix_fmt = "monob"
            out.start_encoding()
            for stamp in range(2):
                packet = av.Packet(png(side))
                packet.stream, packet.time_base = stream, Fraction(1, 25)
                packet.pts = packet.dts = stamp
                packet.is_keyframe = True
                out.mux(packet)
        assert path.stat().st_size < 200_000
        return path

    return make


def huge_gif(folder: Path) -> Path:
    data = bytearray(write(folder / "small.gif", range(3), "gif", second=25).read_bytes())
    side = (16000).to_bytes(2, "little") * 2
    data[6:10] = side
    for found in re.finditer(rb"\x2c\x00\x00\x00\x00\x40\x00\x40\x00", bytes(data)):
        data[found.start() + 5 : found.start() + 9] = side
    (folder / "huge.gif").write_bytes(data)
    return folder / "huge.gif"


def long(container: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        stamps = range(0, 1010 * 36_000, 10 * 36_000)  # a picture every ten hours
        path = write(folder / f"long.{container}", stamps, second=10, gop=200)
        assert path.stat().st_size < 15_000
        return path

    return make


def many(count: int) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = write(folder / "many.mp4", range(10), second=25, gop=1)
        data = bytearray(path.read_bytes())
        number = count.to_bytes(4)
        times, sizes, chunks = (data.index(kind) for kind in (b"stts", b"stsz", b"stsc"))
        data[times + 12 : times + 16] = number  # so many pictures of one length,
        data[sizes + 8 : sizes + 16] = (1).to_bytes(4) + number  # each of one byte,
        data[chunks + 16 : chunks + 20] = number  # in one chunk
        path.write_bytes(data)
        return path

    return make


BOMBS: dict[str, tuple[str, Callable[[Path], Path]]] = {
    **{f"{side} {kind}": ("too_large", huge(side, kind)) for side in (8192, 16000) for kind in ("avi", "mov")},
    "gif": ("too_large", huge_gif),
    "hours mp4": ("too_long", long("mp4")),
    "hours mkv": ("too_long", long("mkv")),
    "million": ("too_long", many(1_000_000)),
    "billions": ("too_long", many(4_000_000_000)),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_quickly_and_cheaply(tmp_path: Path, name: str) -> None:
    status, make = BOMBS[name]
    path = make(tmp_path)
    with DecoderPool(limits=Limits(timeout=60)) as pool:
        with pytest.raises(VideoError) as caught:
            pool.read(Clip(path), 4, 224)
        assert caught.value.status == status
        (process,) = pool._idle
        status_text = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
        assert int(re.findall(r"VmHWM:\s+(\d+)", status_text)[0]) < 400 * 1024
        # Processor time since the request; other tests do not add to it.
        assert _seconds_used(process.pid) - process._used < 2.0


def test_such_files_within_the_limits_are_read(tmp_path: Path) -> None:
    """The bombs are refused for their size, and not because such files cannot be read."""
    assert read_clip(Clip(huge(512, "avi")(tmp_path)), 1, 32).min() == 255
    assert check(long("mp4")(tmp_path), Limits(max_seconds=5000 * 3600.0)).readable


@pytest.mark.slow
@pytest.mark.parametrize("side", [8192, 16000])
def test_h264_bombs_are_refused(tmp_path: Path, side: int) -> None:
    """The container does not state the size, so FFmpeg finds it by decoding."""
    path = tmp_path / "bomb.ts"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"preset": "ultrafast", "x264-params": "threads=1"})
        stream.width, stream.height, stream.pix_fmt = side, side // 2 * 2, "yuv420p"
        out.mux(stream.encode(av.VideoFrame(side, side // 2 * 2, "yuv420p")))
        out.mux(stream.encode(None))
    with DecoderPool(limits=Limits(timeout=60)) as pool:
        found = pool.check(path)
        assert found.status == "too_large", found
        (process,) = pool._idle
        status_text = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
        assert int(re.findall(r"VmHWM:\s+(\d+)", status_text)[0]) < 400 * 1024
        assert _seconds_used(process.pid) - process._used < 2.0
