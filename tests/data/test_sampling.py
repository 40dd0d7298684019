"""Random streams, the order of an epoch and the times of frames are functions of their arguments alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from evilm.data import sampling
from evilm.data.config import DataConfig
from evilm.data.loader import row_shards
from evilm.data.sampling import frame_times, pick_frames
from evilm.errors import ConfigError
from evilm.types import Clip, Example

SHARDS = np.repeat(np.arange(50, dtype=np.int32), 7)


# Seeds


def test_known_seeds() -> None:
    """Other values would change the crops, masks and captions of every run of every recipe."""
    assert sampling.derive_seed(0, "sample", 0, 0) == 2454421176976838069
    assert sampling.derive_seed(0) == 4246866556266386882


def test_a_seed_is_a_63_bit_number() -> None:
    seeds = [sampling.derive_seed(0, i) for i in range(5000)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**62
    assert len(set(seeds)) == len(seeds)


def test_each_part_of_a_path_matters() -> None:
    assert sampling.derive_seed(1, 23) != sampling.derive_seed(12, 3)
    assert sampling.derive_seed(1, 2) != sampling.derive_seed(2, 1)
    assert sampling.derive_seed(0, "words") != sampling.derive_seed(0, "regions")


def test_equal_in_another_process() -> None:
    code = "from evilm.data import sampling; print(sampling.derive_seed(3, 'x', 4), *sampling.epoch_order(3, 4, 8))"
    command = [sys.executable, "-c", code]
    output = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": "7"}
    ).stdout
    assert output.split() == [str(sampling.derive_seed(3, "x", 4)), *map(str, sampling.epoch_order(3, 4, 8))]


def test_streams_of_neighbouring_samples_are_unrelated() -> None:
    draws = np.stack([sampling.generator(0, "sample", i).random(64) for i in range(200)])
    assert abs(draws.mean() - 0.5) < 0.01
    correlation = np.corrcoef(draws)[~np.eye(200, dtype=bool)]
    assert np.abs(correlation).max() < 0.6  # of 64 numbers each; 0.125 is one standard deviation
    assert abs(correlation.mean()) < 0.01


# Order of the rows


def test_an_order_has_every_row_once_and_changes_with_epoch_and_seed() -> None:
    first = sampling.epoch_order(0, 0, 1000)
    assert sorted(first) == list(range(1000))
    assert (first == sampling.epoch_order(0, 0, 1000)).all()
    assert (first != sampling.epoch_order(0, 1, 1000)).any()
    assert (first != sampling.epoch_order(1, 0, 1000)).any()


def test_a_few_shards_are_read_at_a_time() -> None:
    order = sampling.epoch_order(3, 1, len(SHARDS), SHARDS)
    assert sorted(order.tolist()) == list(range(len(SHARDS)))
    for group in np.split(SHARDS[order], [112, 224, 336]):  # 16 shards of 7 rows
        assert len(set(group.tolist())) in (sampling.MIXED_SHARDS, 50 % sampling.MIXED_SHARDS)
    first = SHARDS[order][:20].tolist()
    assert first != sorted(first), "the rows of the shards are shuffled together"
    assert not np.array_equal(SHARDS[order[:112]], SHARDS[sampling.epoch_order(3, 2, len(SHARDS), SHARDS)[:112]])
    assert np.array_equal(order, sampling.epoch_order(3, 1, len(SHARDS), SHARDS))
    assert not np.array_equal(order, sampling.epoch_order(4, 1, len(SHARDS), SHARDS))


def test_ranks_share_each_training_batch_and_alternate_in_evaluation() -> None:
    rows = np.arange(22)
    whole = dict(sampling.batch_rows(rows, 6, range(3), 0, 1, train=True))
    halves = [dict(sampling.batch_rows(rows, 6, range(3), rank, 2, train=True)) for rank in (0, 1)]
    for number, batch in whole.items():
        assert [*halves[0][number], *halves[1][number]] == batch.tolist()
    turns = [dict(sampling.batch_rows(rows, 6, range(1, 4), rank, 2, train=False)) for rank in (0, 1)]
    assert [sorted(each) for each in turns] == [[2], [1, 3]]
    assert turns[1][3].tolist() == [18, 19, 20, 21]


def data(shuffle: str) -> DataConfig:
    return DataConfig.model_validate({"train": {"reader": "shards", "annotations": "x"}, "shuffle": shuffle})


def test_when_rows_are_read_by_shards() -> None:
    many = [Example(f"{i}", "", Clip(Path(f"t-{i // 2}.tar"), frames=("a.mp4",))) for i in range(40)]
    shards = row_shards(data("auto"), many, None)
    assert shards is not None
    assert shards.tolist() == [i // 2 for i in range(40)]
    assert row_shards(data("auto"), many[:30], None) is None, "few shards are shuffled all together"
    assert row_shards(data("shards"), many[:30], None) is not None
    assert row_shards(data("rows"), many, None) is None
    files = [Example("1", "", Clip(Path("a.mp4")))]
    assert row_shards(data("auto"), files, None) is None
    with pytest.raises(ConfigError, match=r"data\.shuffle = 'shards' needs tar files"):
        row_shards(data("shards"), files, None)


# Times of the frames


def test_evaluation_takes_the_middle_of_each_segment() -> None:
    # 8 s in 4 segments of 2 s: middles 1, 3, 5, 7.
    np.testing.assert_array_equal(frame_times(4, 8.0), [1.0, 3.0, 5.0, 7.0])
    np.testing.assert_array_equal(frame_times(4, 8.0, start=10.0), [11.0, 13.0, 15.0, 17.0])
    np.testing.assert_array_equal(frame_times(1, 5.0), [2.5])
    np.testing.assert_array_equal(frame_times(3, 0.0, start=2.0), [2.0, 2.0, 2.0])


def test_training_draws_one_time_in_each_segment_evenly() -> None:
    rng = np.random.default_rng(0)
    drawn = np.array([frame_times(4, 8.0, rng, 1.0) for _ in range(2000)])
    for i in range(4):
        low, high = 1.0 + 2 * i, 3.0 + 2 * i
        assert drawn[:, i].min() >= low
        assert drawn[:, i].max() < high
        quarters = np.histogram(drawn[:, i], bins=4, range=(low, high))[0]
        assert quarters.min() > 400  # 500 expected
    assert abs(np.corrcoef(drawn.T)[0, 1]) < 0.1  # segments are drawn independently


def test_equal_seeds_draw_equal_times() -> None:
    one, two = (frame_times(4, 8.0, np.random.default_rng(7)) for _ in range(2))
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    ("available", "count", "expected"),
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
def test_pick_takes_the_frame_at_each_middle(available: int, count: int, expected: list[int]) -> None:
    assert pick_frames(available, count).tolist() == expected


def test_random_pick_covers_its_segment() -> None:
    rng = np.random.default_rng(1)
    drawn = np.array([pick_frames(12, 4, rng) for _ in range(300)])
    for i in range(4):
        assert set(drawn[:, i].tolist()) == {3 * i, 3 * i + 1, 3 * i + 2}


@pytest.mark.parametrize("bad", [(0, 4.0), (4, -1.0), (4, float("nan")), (4, float("inf"))])
def test_invalid_durations_and_counts_are_refused(bad: tuple[int, float]) -> None:
    with pytest.raises(ValueError, match=r"requested|not a length"):
        frame_times(*bad)


def test_zero_frames_are_refused() -> None:
    with pytest.raises(ValueError, match="0 frames"):
        pick_frames(0, 4)
