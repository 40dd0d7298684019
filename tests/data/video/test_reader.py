from __future__ import annotations

import contextlib
import io
import pickle
import struct
import tarfile
from fractions import Fraction
from operator import itemgetter
from typing import TYPE_CHECKING

import av
import numpy as np
import pytest

from evilm.data.video import Limits, Mode, VideoReader, read_clip
from evilm.data.video.check import check
from evilm.errors import VideoError
from evilm.types import Clip
from films import SIDE, number_of, numbered, write

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray


@pytest.fixture(scope="module")
def regular(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 frames, 25 a second, a keyframe every 10, B-frames between."""
    stamps = range(0, 400, 4)
    return write(tmp_path_factory.mktemp("video") / "regular.mp4", stamps, bf="3", sc_threshold="0")


def test_every_time_gives_the_frame_on_screen(regular: Path) -> None:
    with VideoReader(regular) as reader:
        assert reader.duration == pytest.approx(4.0)
        assert reader.frames_at([0]).shape[1:3] == (SIDE, SIDE)
        times = [(i + 0.5) / 25 for i in range(100)]
        assert [number_of(p) for p in reader.frames_at(times)] == list(range(100))


def test_times_in_any_order_and_beyond_the_ends(regular: Path) -> None:
    with VideoReader(regular) as reader:
        pictures = reader.frames_at([3.5 / 25, 77 / 25, 99.5 / 25, 12.9 / 25, -5.0, 100.0, 77 / 25])
        assert pictures.shape == (7, SIDE, SIDE, 3)
        assert pictures.dtype == np.uint8
        assert [number_of(p) for p in pictures] == [3, 77, 99, 12, 0, 99, 77]
        assert [number_of(p) for p in reader.frames_at([0.0, 2.0])] == [0, 50]  # the reader can be asked again


def test_times_equal_to_time_stamps(regular: Path) -> None:
    with VideoReader(regular) as reader:
        assert [number_of(p) for p in reader.frames_at([i / 25 for i in range(100)])] == list(range(100))


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [("a.264", "libx264", {"bf": "3"}), ("a.avc", "libx264", {}),
     ("a.h265", "libx265", {"x265-params": "log-level=none:open-gop=0"}),
     ("a.hevc", "libx265", {"x265-params": "log-level=none"})],
)  # fmt: skip
def test_raw_streams_are_read_by_their_frame_rate(
    tmp_path: Path, name: str, codec: str, options: dict[str, str]
) -> None:
    """They have no index: far times are reached by leaving out packets up to a frame at which decoding can start."""
    path = write(tmp_path / ("a.264" if codec == "libx264" else "a.hevc"), range(250), codec, 50, 25, **options)
    path = path.rename(tmp_path / name)
    times = [0.0, 0.5, 4.0, 3.3, 9.98, 9.5, 7.02, 2.0]
    with VideoReader(path) as reader:
        assert reader.raw
        assert reader.duration == pytest.approx(10.0)
        assert [number_of(p) for p in reader.frames_at(times)] == [round(25 * time - 0.49) for time in times]
        assert [number_of(p) for p in reader.frames_at([9.0])] == [225]
        assert (reader._resume >= 175) == (name != "a.hevc"), "frames of an open group cannot be left out"
        assert number_of(next(iter(reader.frames_between(9.0, 9.2, (SIDE, SIDE))))[1]) == 225
        near = [number_of(p) for p in reader.frames_at(times, "fast")]
        assert all(found - 3 <= 25 * time < found + 51 for time, found in zip(times, near, strict=True))
        assert reader.frames_at([]).shape == (0, SIDE, SIDE, 3)
    assert check(path).status == "ok"


def test_variable_frame_rate(tmp_path: Path) -> None:
    # Gaps of 1, 2, 3, ... hundredths of a second: frame i is on screen from i (i + 1) / 2 hundredths on.
    stamps = [i * (i + 1) // 2 for i in range(60)]
    path = write(tmp_path / "variable.mp4", stamps, gop=12, bf="3")
    rng = np.random.default_rng(0)
    times = rng.uniform(0, stamps[-1] / 100, 50)
    expected = [max(i for i, stamp in enumerate(stamps) if stamp / 100 <= t) for t in times]
    with VideoReader(path) as reader:
        assert [number_of(p) for p in reader.frames_at(times)] == expected
        one_by_one = [number_of(reader.frames_at([t])[0]) for t in times[:10]]
        assert one_by_one == expected[:10]


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mkv", "libx264"), ("a.avi", "mpeg4"), ("a.webm", "libvpx-vp9"), ("a.ts", "libx264"), ("a.mpg", "mpeg2video"),
     ("a.flv", "libx264"), ("a.mov", "libx265")],
)  # fmt: skip
def test_containers_and_codecs(tmp_path: Path, name: str, codec: str) -> None:
    path = write(tmp_path / name, range(50), codec, gop=12, second=25)
    with VideoReader(path) as reader:
        if name != "a.mpg":  # whose last pictures carry no time stamps, so that FFmpeg takes it for shorter
            assert reader.duration == pytest.approx(2.0, abs=0.1)
        assert [number_of(p) for p in reader.frames_at([0.5 / 25, 20.5 / 25, 45.5 / 25])] == [0, 20, 45]


def test_fast_gives_keyframes(regular: Path) -> None:
    with VideoReader(regular) as reader:
        assert [number_of(p) for p in reader.frames_at([3.5 / 25, 29.5 / 25, 77 / 25], mode="fast")] == [0, 20, 70]
        assert number_of(reader.frames_at([3.5 / 25])[0]) == 3


def rotated(source: Path, target: Path, matrix: tuple[int, int, int, int]) -> Path:
    """A copy of an MP4 whose track header rotates the frames."""
    data = bytearray(source.read_bytes())
    identity = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    place = data.index(identity, data.index(b"tkhd"))
    a, b, c, d = (value << 16 for value in matrix)
    data[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    target.write_bytes(data)
    return target


# The matrix [a b; c d] maps (x, y), y downwards, to (a x + c y, b x + d y): (0, 1, -1, 0) turns clockwise, so the
# bar on the left comes to lie on top.
@pytest.mark.parametrize(("matrix", "clockwise"), [((0, 1, -1, 0), 1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 3)])
def test_frames_are_upright(regular: Path, tmp_path: Path, matrix: tuple[int, int, int, int], clockwise: int) -> None:
    with VideoReader(rotated(regular, tmp_path / "turned.mp4", matrix)) as reader:
        picture = reader.frames_at([53.5 / 25])[0]
    assert number_of(np.rot90(picture, clockwise)) == 53
    assert number_of(picture) != 53


def test_rotation_of_a_frame_that_is_not_square(tmp_path: Path) -> None:
    path = tmp_path / "oblong.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(numbered(5, 64, 96), format="rgb24")))
        container.mux(stream.encode(None))
    with VideoReader(rotated(path, tmp_path / "t.mp4", (0, 1, -1, 0))) as reader:
        assert reader.frames_at([0.0]).shape == (1, 96, 64, 3)
        assert reader.frames_at([0.0], size=32).shape == (1, 32, 32, 3)


def test_read_clip_follows_the_sampling_rule(regular: Path) -> None:
    def numbers(clip: Clip, rng: np.random.Generator | None = None, mode: Mode = "exact") -> list[int]:
        pictures = read_clip(clip, 4, 32, rng, mode)
        assert pictures.shape == (4, 32, 32, 3)
        return [number_of(p) for p in pictures]

    assert numbers(Clip(regular)) == [12, 37, 62, 87]  # middles of 1 s segments: 0.5 s is picture 12.5
    assert numbers(Clip(regular, 1.0, 3.0)) == [31, 43, 56, 68]  # 1.25, 1.75, 2.25, 2.75 s
    assert numbers(Clip(regular, 3.0, 99.0)) == [78, 84, 90, 96]  # an end beyond the video's is the video's
    drawn = [numbers(Clip(regular), np.random.default_rng(seed)) for seed in range(5)]
    assert all(25 * i <= row[i] < 25 * (i + 1) for row in drawn for i in range(4))
    assert len(set(map(tuple, drawn))) == 5
    assert drawn[0] == numbers(Clip(regular), np.random.default_rng(0))


def test_part_beyond_the_end_gives_no_frames(regular: Path) -> None:
    with pytest.raises(VideoError, match="it lasts 4 s") as caught:
        read_clip(Clip(regular, 7.0, 9.0), 4, 32)
    assert caught.value.status == "zero_frames"


def test_crop_keeps_the_middle_and_squash_keeps_all(tmp_path: Path) -> None:
    wide = np.zeros((64, 192, 3), np.uint8)
    wide[:, :64, 0] = 255
    wide[:, 64:128, 1] = 255
    wide[:, 128:, 2] = 255
    path = tmp_path / "0.png"
    path.write_bytes(png(wide))
    clip = Clip(tmp_path, frames=("0.png",))
    crop, squash = read_clip(clip, 1, 48)[0], read_clip(clip, 1, 48, fit="squash")[0]
    assert crop[:, 2:-2].reshape(-1, 3).mean(0) == pytest.approx([0, 255, 0], abs=3)
    for i in range(3):
        third = squash[:, 16 * i + 3 : 16 * i + 13].reshape(-1, 3).mean(0)
        assert third == pytest.approx(np.eye(3)[i] * 255, abs=3)
    assert read_clip(clip, 1, 128).shape == (1, 128, 128, 3)  # larger than the picture


def png(pixels: NDArray[np.uint8], codec: str = "png", pix_fmt: str = "rgb24") -> bytes:
    context = av.CodecContext.create(codec, "w")
    context.height, context.width, context.pix_fmt = pixels.shape[0], pixels.shape[1], pix_fmt
    context.time_base = Fraction(1, 25)
    frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=pix_fmt)
    return b"".join(bytes(packet) for packet in [*context.encode(frame), *context.encode(None)])


def stills_tar(path: Path, pictures: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in pictures.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


@pytest.mark.parametrize(("codec", "pix_fmt"), [("png", "rgb24"), ("mjpeg", "yuvj420p")])
def test_still_frames_from_tar_and_folder(tmp_path: Path, codec: str, pix_fmt: str) -> None:
    names = tuple(f"v.{i:02d}.jpg" for i in range(8))
    pictures = {name: png(numbered(i), codec, pix_fmt) for i, name in enumerate(names)}
    tar = stills_tar(tmp_path / "a.tar", pictures)
    (tmp_path / "folder").mkdir()
    for name, data in pictures.items():
        (tmp_path / "folder" / name).write_bytes(data)
    for place in (tar, tmp_path / "folder"):
        assert [number_of(p) for p in read_clip(Clip(place, frames=names), 4, SIDE)] == [1, 3, 5, 7]
        few = read_clip(Clip(place, frames=names[:3]), 4, SIDE)
        assert [number_of(p) for p in few] == [0, 1, 1, 2]  # 0.375, 1.125, 1.875, 2.625


def test_rewritten_tar_is_read_again(tmp_path: Path) -> None:
    clip = Clip(stills_tar(tmp_path / "a.tar", {"x.png": png(numbered(1))}), frames=("x.png",))
    assert number_of(read_clip(clip, 1, SIDE)[0]) == 1
    stills_tar(tmp_path / "a.tar", {"y.png": png(numbered(9)), "x.png": png(numbered(2)), "z.png": b"12345" * 4096})
    assert number_of(read_clip(clip, 1, SIDE)[0]) == 2


def sound_only(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        stream.codec_context.layout = "mono"
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def bad_files() -> dict[str, tuple[str, Callable[[Path, Path], Path]]]:
    """Faulty files by name: the status, and a function of (valid file, target) that writes one."""

    def content(data: bytes) -> Callable[[Path, Path], Path]:
        def make(_: Path, target: Path) -> Path:
            target.write_bytes(data)
            return target

        return make

    def folder(_: Path, target: Path) -> Path:
        target.mkdir()
        return target

    def noise_within(good: Path, target: Path) -> Path:
        data = bytearray(good.read_bytes())
        start = data.index(b"mdat") + 4
        end = data.index(b"moov") - 4
        data[start:end] = bytes(end - start)
        target.write_bytes(data)
        return target

    def cut_off(good: Path, target: Path) -> Path:
        target.write_bytes(good.read_bytes()[:2000])
        return target

    return {
        "missing": ("not_a_file", lambda _, target: target),
        "folder": ("not_a_file", folder),
        "empty": ("corrupt", content(b"")),
        "text": ("corrupt", content(b"no video at all\n" * 200)),
        "cut off": ("corrupt", cut_off),
        "zeros for pictures": ("corrupt", noise_within),
        "other files by name": ("refused", content(b"ffconcat version 1.0\nfile /etc/passwd\n")),
        "sound only": ("no_video", lambda _, target: sound_only(target)),
        "no pictures": ("zero_frames", lambda _, target: write(target.with_suffix(".avi"), [], "mpeg4")),
    }


@pytest.mark.parametrize("what", sorted(bad_files()))
def test_faulty_files_have_their_status(regular: Path, tmp_path: Path, what: str) -> None:
    status, make = bad_files()[what]
    path = make(regular, tmp_path / "bad.mp4")
    with pytest.raises(VideoError) as caught:
        read_clip(Clip(path), 4, 32)
    assert (caught.value.status, caught.value.path) == (status, str(path))
    assert "\n" not in str(caught.value)
    again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 - loader workers send it across processes
    assert str(again) == str(caught.value)


def test_frame_that_is_too_large(regular: Path, tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="64x64 pixels") as caught:
        VideoReader(regular, limits=Limits(max_pixels=64 * 64 - 1))
    assert caught.value.status == "too_large"
    (tmp_path / "x.png").write_bytes(png(numbered(1)))
    with pytest.raises(VideoError) as caught:
        read_clip(Clip(tmp_path, frames=("x.png",)), 1, 32, limits=Limits(max_pixels=1000))
    assert caught.value.status == "too_large"


def test_name_with_a_colon_is_a_file(regular: Path, tmp_path: Path) -> None:
    path = tmp_path / "concat:x.mp4"
    path.write_bytes(regular.read_bytes())
    assert read_clip(Clip(path), 2, 32).shape == (2, 32, 32, 3)


def test_truncated_video_gives_its_frames(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.ts", range(0, 400, 4), gop=10).read_bytes()
    path = tmp_path / "half.ts"
    path.write_bytes(whole[: len(whole) // 2])
    with VideoReader(path) as reader:
        numbers = [number_of(p) for p in reader.frames_at([0.02, 3.9])]
    assert numbers[0] == 0
    assert 20 < numbers[1] < 80  # the last there is


@pytest.mark.parametrize(
    ("frames", "status"),
    [(("missing.png",), "not_a_file"), (("../x.png",), "refused"), (("text.png",), "unsupported"),
     (("broken.png",), "corrupt"), (("nul\0.png",), "not_a_file")],
)  # fmt: skip
def test_faulty_still_frames(tmp_path: Path, frames: tuple[str, ...], status: str) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    (tmp_path / "x.png").write_bytes(png(numbered(1)))
    (folder / "text.png").write_text("text")
    (folder / "broken.png").write_bytes(png(numbered(1))[:60])
    with pytest.raises(VideoError) as caught:
        read_clip(Clip(folder, frames=frames), 1, 32)
    assert caught.value.status == status


def test_faulty_tars(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    for content, status in ((None, "not_a_file"), (b"no tar" * 1000, "corrupt")):
        if content:
            path.write_bytes(content)
        with pytest.raises(VideoError) as caught:
            read_clip(Clip(path, frames=("x.png",)), 1, 32)
        assert caught.value.status == status


def test_real_clips_match_a_plain_decode(shared_data: Path) -> None:
    rng = np.random.default_rng(0)
    for path in sorted((shared_data / "clips").rglob("*.mp4"))[::40]:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            shown = [(float(f.pts * stream.time_base), f.to_ndarray(format="rgb24")) for f in container.decode(stream)]
        with VideoReader(path) as reader:
            times = rng.uniform(0, reader.duration, 5)
            for moment, picture in zip(times, reader.frames_at(times), strict=True):
                plain = max((pair for pair in shown if pair[0] <= moment), default=shown[0], key=itemgetter(0))[1]
                # Two conversions to RGB may differ by rounding.
                assert np.abs(picture.astype(int) - plain).mean() < 1


def test_odd_files_give_frames_or_a_status(shared_data: Path) -> None:
    files = sorted(path for path in (shared_data / "odd-videos").rglob("*") if path.suffix != ".jsonl")
    assert len(files) > 100
    readable = 0
    for path in files[::20]:
        with contextlib.suppress(VideoError):  # anything else that is raised fails the test
            assert read_clip(Clip(path), 2, 32).shape == (2, 32, 32, 3)
            readable += 1
    assert readable


@pytest.mark.parametrize("name", ["166b9808452f.mp4", "3708bf1db5f7.264", "b91fb8ecc005.ogv"])
def test_keyframes_only_reads_files_without_keyframes(shared_data: Path, name: str) -> None:
    clip = Clip(shared_data / "odd-videos" / name)
    assert (read_clip(clip, 2, 32, mode="fast") == read_clip(clip, 2, 32)).all()
