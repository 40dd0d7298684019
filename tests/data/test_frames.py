from __future__ import annotations

import numpy as np
import pytest

from evilm.data.frames import pick, segments


def test_evaluation_takes_the_middle_of_each_segment() -> None:
    # 8 s in 4 segments of 2 s: middles 1, 3, 5, 7.
    np.testing.assert_array_equal(segments(4, 8.0), [1.0, 3.0, 5.0, 7.0])
    np.testing.assert_array_equal(segments(4, 8.0, start=10.0), [11.0, 13.0, 15.0, 17.0])
    np.testing.assert_array_equal(segments(1, 5.0), [2.5])
    np.testing.assert_array_equal(segments(3, 0.0, start=2.0), [2.0, 2.0, 2.0])


def test_training_draws_one_moment_in_each_segment_and_fills_it_evenly() -> None:
    rng = np.random.default_rng(0)
    drawn = np.array([segments(4, 8.0, rng, 1.0) for _ in range(2000)])
    for i in range(4):
        low, high = 1.0 + 2 * i, 3.0 + 2 * i
        assert drawn[:, i].min() >= low
        assert drawn[:, i].max() < high
        quarters = np.histogram(drawn[:, i], bins=4, range=(low, high))[0]
        assert quarters.min() > 400  # 500 expected
    assert abs(np.corrcoef(drawn.T)[0, 1]) < 0.1  # segments are drawn apart


def test_the_same_seed_draws_the_same_moments() -> None:
    one, two = (segments(4, 8.0, np.random.default_rng(7)) for _ in range(2))
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    ("candidates", "count", "expected"),
    [
        (8, 4, [1, 3, 5, 7]),  # middles at 1, 3, 5, 7 of [0, 8)
        (12, 4, [1, 4, 7, 10]),  # 1.5, 4.5, 7.5, 10.5
        (4, 4, [0, 1, 2, 3]),
        (5, 4, [0, 1, 3, 4]),  # 0.625, 1.875, 3.125, 4.375
        (2, 4, [0, 0, 1, 1]),  # 0.25, 0.75, 1.25, 1.75: frames repeat
        (1, 4, [0, 0, 0, 0]),
        (3, 1, [1]),
    ],
)
def test_pick_takes_the_candidate_at_each_middle(candidates: int, count: int, expected: list[int]) -> None:
    assert pick(candidates, count).tolist() == expected


def test_random_pick_stays_in_its_segment_and_reaches_all_of_it() -> None:
    rng = np.random.default_rng(1)
    drawn = np.array([pick(12, 4, rng) for _ in range(300)])
    for i in range(4):
        assert set(drawn[:, i].tolist()) == {3 * i, 3 * i + 1, 3 * i + 2}


@pytest.mark.parametrize("bad", [(0, 4.0), (4, -1.0), (4, float("nan")), (4, float("inf"))])
def test_nonsense_is_refused(bad: tuple[int, float]) -> None:
    with pytest.raises(ValueError, match=r"asked for|no length"):
        segments(*bad)


def test_there_is_nothing_to_pick_from_no_frames() -> None:
    with pytest.raises(ValueError, match="0 frames"):
        pick(0, 4)
