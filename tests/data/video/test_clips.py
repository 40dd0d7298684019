"""Still pictures, thumbnails and cuts of files."""

from __future__ import annotations

import io
from fractions import Fraction
from typing import TYPE_CHECKING

import av
import numpy as np
import pytest

from evilm.data.video import DecoderPool, Limits, VideoFacts, VideoReader
from evilm.data.video.check import check
from evilm.data.video.clips import cut, read_picture, thumbnails
from evilm.errors import VideoError
from evilm.types import Clip
from films import number_of, numbered, write
from pictures import box, heic, jpeg

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def pool() -> Iterator[DecoderPool]:
    with DecoderPool() as made:
        yield made


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 frames, 25 a second, a keyframe every 50."""
    return write(tmp_path_factory.mktemp("film") / "a.mp4", range(100), second=25, gop=50, sc_threshold="0")


def with_sound(path: Path, seconds: int = 4, codec: str = "libx264") -> Path:
    """A video with a tone of 440 Hz whose loudness rises."""
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=25, options={"sc_threshold": "0"})
        video.width, video.height, video.pix_fmt, video.gop_size = 64, 64, "yuv420p", 50
        sound = container.add_stream("aac", rate=16000, layout="mono")
        wave = np.sin(np.arange(16000 * seconds) * 440 * 2 * np.pi / 16000) * np.linspace(0, 1, 16000 * seconds)
        for i in range(25 * seconds):
            container.mux(video.encode(av.VideoFrame.from_ndarray(numbered(i), format="rgb24")))
        container.mux(video.encode(None))
        for at in range(0, len(wave) - 1023, 1024):
            piece = wave[None, at : at + 1024].astype(np.float32)
            frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, at
            container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    return path


CORNERS = np.full((40, 60, 3), 128, np.uint8)
CORNERS[:20, :30], CORNERS[:20, 30:], CORNERS[20:, :30], CORNERS[20:, 30:] = 10, 90, 170, 250


def corners(pixels: np.ndarray) -> list[int]:
    """The grey of the corners, clockwise from the top left, as the nearest of the four in ``CORNERS``."""
    values = (pixels[y, x, 0] for y, x in ((5, 5), (5, -5), (-5, -5), (-5, 5)))
    return [min((10, 90, 170, 250), key=lambda grey: abs(grey - int(value))) for value in values]


# Where each corner of an upright picture lies in the stored one, by the value of the EXIF orientation.
ORIENTED = {
    1: [10, 90, 250, 170], 2: [90, 10, 170, 250], 3: [250, 170, 10, 90], 4: [170, 250, 90, 10],
    5: [10, 170, 250, 90], 6: [170, 10, 90, 250], 7: [250, 90, 10, 170], 8: [90, 250, 170, 10],
}  # fmt: skip


@pytest.mark.parametrize("orientation", ORIENTED)
def test_pictures_are_upright_by_their_exif_orientation(tmp_path: Path, pool: DecoderPool, orientation: int) -> None:
    for order in ("little", "big"):
        (tmp_path / "a.jpg").write_bytes(jpeg(CORNERS, orientation, order))
        pixels = pool.read_picture(tmp_path / "a.jpg", None)
        assert pixels.shape == ((1, 40, 60, 3) if orientation < 5 else (1, 60, 40, 3))
        assert corners(pixels[0]) == ORIENTED[orientation]
        assert read_picture(tmp_path / "a.jpg", 32, "squash").shape == (1, 32, 32, 3)


def test_heic_pictures_of_one_stream_and_of_tiles(tmp_path: Path, pool: DecoderPool) -> None:
    grey = [np.full((64, 64, 3), value, np.uint8) for value in (10, 90, 170, 250)]
    heic(tmp_path / "one.heic", grey[:1])
    assert abs(int(pool.read_picture(tmp_path / "one.heic", None)[0, 32, 32, 0]) - 10) < 4
    heic(tmp_path / "tiles.heic", grey, 2, 2, (120, 126))
    assert corners(pool.read_picture(tmp_path / "tiles.heic", None)[0]) == ORIENTED[1]
    # Three quarter turns counter-clockwise, as a telephone held upright writes; then mirrored left to right.
    heic(tmp_path / "turned.heic", grey, 2, 2, (120, 126), box(b"irot", b"\3"))
    pixels = pool.read_picture(tmp_path / "turned.heic", None)
    assert pixels.shape == (1, 126, 120, 3)
    assert corners(pixels[0]) == ORIENTED[6]
    heic(tmp_path / "mirrored.heic", grey, 2, 2, (120, 126), box(b"irot", b"\3") + box(b"imir", b"\1"))
    assert corners(pool.read_picture(tmp_path / "mirrored.heic", None)[0]) == ORIENTED[5]
    found = pool.check((tmp_path / "tiles.heic").rename(tmp_path / "tiles.mov"))
    assert (found.status, found.reason) == ("no_video", "is a still picture in HEIC/AVIF format, not a video")


def test_pictures_that_cannot_be_read(tmp_path: Path, pool: DecoderPool) -> None:
    data = jpeg(CORNERS, 1)
    (tmp_path / "cut.heic").write_bytes(heic(tmp_path / "a.heic", [CORNERS] * 2, 1, 2).read_bytes()[:-500])
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "large.jpg").write_bytes(data)
    (tmp_path / "page.jpg").write_text("<!DOCTYPE html><html>")
    for name, status in (("cut.heic", "corrupt"), ("text.jpg", "unsupported"), ("none.jpg", "not_a_file"),
                         ("page.jpg", "refused"), (".", "not_a_file")):  # fmt: skip
        with pytest.raises(VideoError) as caught:
            pool.read_picture(tmp_path / name, 32)
        assert caught.value.status == status, name
    # Twice as many pixels as for a video; FFmpeg counts the margins that it adds.
    assert read_picture(tmp_path / "large.jpg", 32, limits=Limits(max_pixels=64 * 48 // 2)).shape == (1, 32, 32, 3)
    with pytest.raises(VideoError, match="too_large"):
        read_picture(tmp_path / "large.jpg", 32, limits=Limits(max_pixels=40 * 60 // 2 - 1))


def test_a_picture_is_a_video_of_one_frame(tmp_path: Path, pool: DecoderPool) -> None:
    path = tmp_path / "A.JPG"
    path.write_bytes(jpeg(CORNERS, 6))
    assert pool.check(path).status == "ok"
    assert pool.duration(path) == 0.0
    frames = pool.frames_at(path, [0.0, 5.0, 0.0], size=32, fit="squash")
    assert (frames == read_picture(path, 32, "squash")).all()
    assert frames.shape == (3, 32, 32, 3)
    clip = Clip(path, 0.0, 0.0)
    assert (pool.read(clip, 2, 32, fit="squash") == frames[:2]).all()
    assert pool.describe(path) == VideoFacts(40, 60, "jpeg", "yuvj420p", "picture", 0.0, 0.0, None)
    [still] = pool.thumbnails(path, [0.0], 30)
    (tmp_path / "still.jpg").write_bytes(still)
    pixels = read_picture(tmp_path / "still.jpg", None)[0]
    assert pixels.shape == (30, 20, 3)
    with pytest.raises(VideoError, match="video format that may be opened"):
        pool.cut(path, tmp_path / "out.mp4")


def test_a_picture_that_is_cut_off_is_not_painted_grey(tmp_path: Path, pool: DecoderPool) -> None:
    inner, rng = jpeg(CORNERS, 1), np.random.default_rng(0)
    large = jpeg(rng.integers(0, 255, (200, 200, 3), np.uint8), 1)
    preview = b"\xff\xe2" + (2 + len(inner)).to_bytes(2) + inner  # its end marker is not that of the picture
    whole = large[:2] + preview + b"\xff" + large[2:]  # markers may be padded
    for part, status in ((whole, "ok"), (whole + b"more", "ok"), (whole[:-2], "corrupt"),
                         (whole[: len(whole) // 2], "corrupt"), (whole[: len(preview)], "corrupt")):  # fmt: skip
        (tmp_path / "a.jpg").write_bytes(part)
        assert pool.check(tmp_path / "a.jpg").status == status, len(part)


def test_thumbnail_is_a_jpeg_of_the_frame_on_screen(film: Path, pool: DecoderPool) -> None:
    data, other = pool.thumbnails(film, [2.01, 0.01], 32)
    assert data.startswith(b"\xff\xd8")
    with av.open(io.BytesIO(data)) as container:
        picture = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert picture.shape == (32, 32, 3)
    assert number_of(picture) == 50
    assert [data, other] == thumbnails(film, [2.01, 0.01], 32)
    with av.open(io.BytesIO(pool.thumbnails(film, [99.0], 500)[0])) as container:  # not enlarged
        assert next(container.decode(video=0)).height == 64
    assert pool.thumbnails(film, [], 32) == []


def test_describe_states_what_a_player_needs(tmp_path: Path, pool: DecoderPool) -> None:
    facts = pool.describe(with_sound(tmp_path / "a.mp4"))
    assert facts == VideoFacts(64, 64, "h264", "yuv420p", "mov", pytest.approx(4.0, abs=0.1), 25.0, "aac")
    facts = pool.describe(write(tmp_path / "b.webm", range(10), "libvpx-vp9", second=25))
    assert (facts.codec, facts.container, facts.audio_codec) == ("vp9", "matroska", None)
    wide = pool.describe(write(tmp_path / "b.mp4", range(10), second=25, aspect=Fraction(2)))
    assert (wide.width, wide.height) == (128, 64)
    av1 = write(tmp_path / "c.mkv", range(4), "libsvtav1", second=25)
    assert pool.describe(av1).codec == "av1"


def test_cut_copies_if_a_keyframe_is_near(film: Path, tmp_path: Path, pool: DecoderPool) -> None:
    pool.cut(film, tmp_path / "out.mp4", 2.2, 3.0)
    assert check(tmp_path / "out.mp4").status == "ok"
    with av.open(str(film)) as source, av.open(str(tmp_path / "out.mp4")) as result:
        stored = [bytes(packet) for packet in source.demux(video=0) if packet.size]
        copied = [bytes(packet) for packet in result.demux(video=0) if packet.size]
    assert 25 <= len(copied) <= 28  # frames that others refer to come along
    assert copied == stored[50 : 50 + len(copied)]
    with VideoReader(tmp_path / "out.mp4") as reader:
        assert [number_of(p) for p in reader.frames_at([0.01, 0.41, 0.97])] == [50, 60, 74]
    pool.cut(film, tmp_path / "exact.mp4", 2.2, 3.0, exact=True)
    with VideoReader(tmp_path / "exact.mp4") as reader:
        assert [number_of(p) for p in reader.frames_at([0.01, 0.21, 0.77])] == [55, 60, 74]
    pool.cut(film, tmp_path / "at.mp4", 2.0, 3.0, exact=True)
    with av.open(str(tmp_path / "at.mp4")) as result:
        assert next(bytes(packet) for packet in result.demux(video=0)) == stored[50]


@pytest.mark.parametrize(("start", "height", "first"), [(1.0, None, 25), (2.0, 32, 50)])
def test_cut_encodes_again_where_it_cannot_copy(
    film: Path, tmp_path: Path, pool: DecoderPool, start: float, height: int | None, first: int
) -> None:
    pool.cut(film, tmp_path / "out.mp4", start, start + 1, height)
    assert check(tmp_path / "out.mp4").status == "ok"
    with VideoReader(tmp_path / "out.mp4") as reader:
        assert reader.frames_at([0]).shape[1:3] == ((height or 64,) * 2)
        assert reader.duration == pytest.approx(1.0, abs=0.05)
        times = [0.02, 0.5, 0.97]
        assert [number_of(p) for p in reader.frames_at(times)] == [first, first + 12, first + 24]


@pytest.mark.parametrize("name", ["a.avi", "a.264", "a.webm"])
def test_cut_makes_h264_of_every_format(tmp_path: Path, pool: DecoderPool, name: str) -> None:
    codec = {"a.avi": "mpeg4", "a.264": "libx264", "a.webm": "libvpx"}[name]
    source = write(tmp_path / name, range(50), codec, second=25, bf="0")
    pool.cut(source, tmp_path / "out.mp4", 0.4, 1.2)
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "h264"
    with VideoReader(tmp_path / "out.mp4") as reader:
        assert [number_of(p) for p in reader.frames_at([0.02, 0.78])] == [10, 29]


@pytest.mark.parametrize("start", [0.0, 1.0])
def test_cut_keeps_the_sound(tmp_path: Path, pool: DecoderPool, start: float) -> None:
    source = with_sound(tmp_path / "a.mp4")
    pool.cut(source, tmp_path / "out.mp4", start, start + 1)
    with av.open(str(tmp_path / "out.mp4")) as container:
        sound = np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], axis=1)
        assert container.streams.audio[0].codec_context.name == "aac"
        assert container.streams.audio[0].codec_context.sample_rate == 48000
    assert sound.shape[1] == pytest.approx(48000, abs=6000)
    loud = np.abs(sound[0, sound.shape[1] // 2 :]).max()
    assert loud == pytest.approx(0.74 * (start + 1) / 4, rel=0.15)  # both channels as loud as one


def test_cut_of_nothing_writes_no_file(film: Path, tmp_path: Path, pool: DecoderPool) -> None:
    (tmp_path / "text.mp4").write_text("no video" * 100)
    for source, start, status in ((film, 9.0, "zero_frames"), (tmp_path / "text.mp4", 0.0, "corrupt")):
        with pytest.raises(VideoError) as caught:
            pool.cut(source, tmp_path / "out.mp4", start, start + 1)
        assert caught.value.status == status
    hang = "from evilm.data.video import child; import time; child.ANSWERS['cut'] = lambda *_: time.sleep(60); "
    slow = DecoderPool(program=("-P", "-c", hang + "child.main()"))
    with slow, pytest.raises(VideoError, match=r"timeout: not decoded within 0.5 s"):
        slow.cut(film, tmp_path / "out.mp4", timeout=0.5)
    assert [path.name for path in tmp_path.iterdir()] == ["text.mp4"]


def test_cut_is_upright_with_square_pixels(tmp_path: Path) -> None:
    source = write(tmp_path / "a.mp4", range(20), second=25, aspect=Fraction(2), bf="3")
    (tmp_path / "out.mp4").write_bytes(cut(source, 0.1, None, 32))
    with VideoReader(tmp_path / "out.mp4") as reader:
        assert reader.frames_at([0]).shape[1:3] == (32, 64)
        assert number_of(reader.frames_at([0.0])[0]) == 2
