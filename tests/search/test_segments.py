from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
import pytest

from evilm.search.segments import SegmentConfig, cut, distance, histograms, windows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


class Scenes:
    """A video that shows one grey after another; ``fast`` sees only what a keyframe shows."""

    def __init__(self, ends: Sequence[float], keyframes: float = 0.0) -> None:
        self.ends, self.keyframes, self.asked = list(ends), keyframes, 0

    @property
    def duration(self) -> float:
        return self.ends[-1]

    def frames_at(
        self, times: Sequence[float] | NDArray[np.float64], mode: str = "exact", size: int | None = None, fit: str = "",
    ) -> NDArray[np.uint8]:  # fmt: skip
        moments = np.asarray(times, dtype=float)
        self.asked += len(moments)
        if mode == "fast" and self.keyframes:
            moments = np.floor(moments / self.keyframes) * self.keyframes
        shots = np.searchsorted(self.ends, moments, side="right").clip(max=len(self.ends) - 1)
        assert size is not None
        return np.broadcast_to((shots * 100 % 256).astype(np.uint8)[:, None, None, None], (len(shots), size, size, 3))


def covers(spans: list[tuple[float, float]], whole: float) -> None:
    assert spans[0][0] == 0
    assert spans[-1][1] == whole
    assert all(end == start for (_, end), (start, _) in itertools.pairwise(spans))


def test_windows_by_hand() -> None:
    assert windows(0, 20, 8) == [(0, 20 / 3), (20 / 3, 40 / 3), (40 / 3, 20)]
    assert windows(5, 13, 8) == [(5, 13)]
    assert windows(0, 0, 8) == [(0, 0)]


def test_a_short_video_is_one_segment_and_is_not_decoded() -> None:
    video = Scenes([3, 6])
    assert cut(video, SegmentConfig()) == [(0.0, 6.0)]
    assert video.asked == 0


def test_cuts_are_where_the_picture_changes() -> None:
    spans = cut(Scenes([5.25, 9.75, 16]), SegmentConfig())
    assert [end for _, end in spans] == pytest.approx([5.25, 9.75, 16], abs=0.05)
    covers(spans, 16)


def test_cuts_between_keyframes_are_found_exactly() -> None:
    spans = cut(Scenes([7.3, 19], keyframes=5), SegmentConfig(max_seconds=10))
    assert min(abs(end - 7.3) for _, end in spans) < 0.1


def test_long_shots_are_cut_evenly_and_short_ones_joined() -> None:
    spans = cut(Scenes([0.5, 20, 41]), SegmentConfig())
    covers(spans, 41)
    assert all(1.5 <= end - start <= 8 for start, end in spans)


def test_equal_windows_decode_nothing() -> None:
    video = Scenes([10, 20])
    assert len(cut(video, SegmentConfig(method="windows", max_seconds=5))) == 4
    assert video.asked == 0


def test_a_file_that_claims_a_year_stays_bounded() -> None:
    video = Scenes([365 * 86400.0])
    spans = cut(video, SegmentConfig(max_segments=50))
    assert len(spans) <= 50
    assert video.asked <= 60
    covers(spans, 365 * 86400.0)


def test_histograms_by_hand() -> None:
    black, white = np.zeros((1, 4, 4, 3), np.uint8), np.full((1, 4, 4, 3), 255, np.uint8)
    half = np.concatenate([black[:, :2], white[:, :2]], 1)
    assert distance(histograms(black)[0], histograms(white)[0]) == 1.0
    assert distance(histograms(black)[0], histograms(half)[0]) == 0.5
    assert distance(histograms(half)[0], histograms(half)[0]) == 0.0
