"""Each frame of each container and codec: the reader returns the frame that is on screen."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

import av
import numpy as np
import pytest

from evilm.data.video import VideoReader
from films import number_of, write

if TYPE_CHECKING:
    from pathlib import Path

B_FRAMES = {"bf": "3"}
OPEN_GOP = {"x264-params": "open-gop=1:keyint=10:min-keyint=10:bframes=3:scenecut=0:b-adapt=0"}
PYRAMID = {"x264-params": "open-gop=1:keyint=12:bframes=5:b-pyramid=normal:b-adapt=0"}
REFRESH = {"x264-params": "intra-refresh=1:keyint=10:bframes=0"}  # no keyframes at all after the first


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [("b.mp4", "libx264", B_FRAMES), ("open.mp4", "libx264", OPEN_GOP), ("open.ts", "libx264", OPEN_GOP),
     ("pyramid.mkv", "libx264", PYRAMID), ("refresh.mp4", "libx264", REFRESH), ("a.flv", "libx264", {}),
     ("open.mov", "libx265", {"x265-params": "log-level=none:open-gop=1:keyint=10:bframes=4"}),
     ("a.webm", "libvpx-vp9", {}), ("8.webm", "libvpx", {}), ("b.avi", "mpeg4", {"bf": "2"}), ("a.avi", "mpeg4", {}),
     ("b.ts", "mpeg2video", {"bf": "2"}), ("a.gif", "gif", {}), ("a.mov", "mjpeg", {}), ("a.wmv", "wmv2", {}),
     ("a.ivf", "libvpx", {}),
     ("b.264", "libx264", B_FRAMES), ("a.h264", "libx264", {"sc_threshold": "0"}), ("a.mxf", "mpeg2video", {}),
     ("b.mxf", "mpeg2video", {"bf": "2"}), ("a.rm", "rv20", {}),
     ("a.265", "libx265", {"x265-params": "log-level=none:bframes=3"})],
)  # fmt: skip
def test_every_frame_alone_and_in_order(tmp_path: Path, name: str, codec: str, options: dict[str, str]) -> None:
    count = 48
    path = write(tmp_path / name, range(count), codec, second=25, **options)
    times = [(i + 0.5) / 25 for i in range(count)]
    with VideoReader(path) as reader:
        assert [number_of(p) for p in reader.frames_at(times)] == list(range(count))
        # Each in a request of its own, with a seek from the start.
        alone = range(1, count, 4)
        assert [number_of(reader.frames_at([times[i]])[0]) for i in alone] == list(alone)
        fast, expected = [number_of(p) for p in reader.frames_at(times, mode="fast")], _keyframes(path, count + 3)
        if name == "a.265":  # a raw keyframe has the time of its packet, which stands before up to 3 frames
            assert all(frame in expected[i : i + 4] for i, frame in enumerate(fast))
        else:
            assert fast == expected[:count]


def _keyframes(path: Path, count: int) -> list[int]:
    """The last keyframe up to each frame, by a plain decode."""
    with av.open(str(path)) as container:
        keys = [number for number, frame in enumerate(container.decode(video=0)) if frame.key_frame]
    return [max((key for key in keys if key <= i), default=0) for i in range(count)]


@pytest.mark.parametrize(("aspect", "shown"), [(Fraction(2), (64, 128)), (Fraction(1, 2), (64, 32)),
                                                (Fraction(16, 15), (64, 68)), (Fraction(200), (64, 64))])  # fmt: skip
def test_pixels_that_are_not_square(tmp_path: Path, aspect: Fraction, shown: tuple[int, int]) -> None:
    path = write(tmp_path / "a.mp4", range(10), second=25, aspect=aspect)
    with VideoReader(path) as reader:
        assert reader.frames_at([0.2]).shape[1:3] == shown
        assert number_of(reader.frames_at([0.22])[0]) == 5
        assert number_of(reader.frames_at([0.22], size=32, fit="squash")[0]) == 5


def test_crop_of_wide_pixels_is_taken_as_displayed(tmp_path: Path) -> None:
    # Displayed twice as wide as high. The crop keeps the middle half, bars 2 to 5 of 8, which are white for 60.
    path = write(tmp_path / "a.mp4", range(61), second=25, aspect=Fraction(2))
    with VideoReader(path) as reader:
        crop = reader.frames_at([60.5 / 25], size=64)[0]
        whole = reader.frames_at([60.5 / 25], size=64, fit="squash")[0]
    assert crop.min() > 128
    assert number_of(whole) == 60


def test_frame_that_is_shown_for_a_minute(tmp_path: Path) -> None:
    stamps = [0, 10, 6000, 6010]  # hundredths: a minute of one picture
    path = write(tmp_path / "a.mp4", stamps, gop=1)
    with VideoReader(path) as reader:
        assert [number_of(p) for p in reader.frames_at([0.05, 0.1, 30.0, 59.99, 60.0, 60.1])] == [0, 1, 1, 1, 2, 3]


def test_reading_a_segment_decodes_only_its_groups_of_frames(tmp_path: Path) -> None:
    """For times late in a video, at most one group of frames before them is decoded."""
    path = write(tmp_path / "a.mp4", range(1000), second=25, gop=25, bf="0")
    with VideoReader(path) as reader:
        decoded = 0
        original = reader._decode

        def counting():
            nonlocal decoded
            for picture in original():
                decoded += 1
                yield picture

        reader._decode = counting
        numbers = [number_of(p) for p in reader.frames_at(np.array([900.5, 910.5, 930.5]) / 25)]
        assert numbers == [900 % 256, 910 % 256, 930 % 256]
        assert decoded <= 2 * 25 + 2
