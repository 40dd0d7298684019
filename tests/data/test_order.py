"""Orders: every row once, by (seed, epoch) alone, and through a few shards at a time where there are many."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from evilm.data import order
from evilm.data.sources import DataConfig, shards
from evilm.errors import ConfigError
from evilm.types import Clip, Example

SHARDS = np.repeat(np.arange(50, dtype=np.int32), 7)


def test_every_row_comes_once_and_few_shards_at_a_time() -> None:
    found = order.mixed(3, 1, len(SHARDS), SHARDS)
    assert sorted(found.tolist()) == list(range(len(SHARDS)))
    for group in np.split(SHARDS[found], [112, 224, 336]):  # 16 shards of 7 rows
        assert len(set(group.tolist())) in (order.MIXED, 50 % order.MIXED)
    first = SHARDS[found][:20].tolist()
    assert first != sorted(first), "the rows of the shards are mixed"
    assert not np.array_equal(SHARDS[found[:112]], SHARDS[order.mixed(3, 2, len(SHARDS), SHARDS)[:112]])
    assert np.array_equal(found, order.mixed(3, 1, len(SHARDS), SHARDS))
    assert not np.array_equal(found, order.mixed(4, 1, len(SHARDS), SHARDS))


def test_ranks_share_each_batch_in_training_and_take_turns_in_evaluation() -> None:
    rows = np.arange(22)
    whole = dict(order.parts(rows, 6, range(3), 0, 1, train=True))
    halves = [dict(order.parts(rows, 6, range(3), rank, 2, train=True)) for rank in (0, 1)]
    for number, batch in whole.items():
        assert [*halves[0][number], *halves[1][number]] == batch.tolist()
    turns = [dict(order.parts(rows, 6, range(1, 4), rank, 2, train=False)) for rank in (0, 1)]
    assert [sorted(each) for each in turns] == [[2], [1, 3]]
    assert turns[1][3].tolist() == [18, 19, 20, 21]


def data(shuffle: str) -> DataConfig:
    source = {"reader": "shards", "annotations": "x"}
    return DataConfig.model_validate({"train": source, "shuffle": shuffle})


def test_who_goes_through_shards() -> None:
    many = [Example(f"{i}", "", Clip(Path(f"t-{i // 2}.tar"), frames=("a.mp4",))) for i in range(40)]
    found = shards(data("auto"), many, None)
    assert found is not None
    assert found.tolist() == [i // 2 for i in range(40)]
    assert shards(data("auto"), many[:30], None) is None, "few shards are mixed as a whole"
    assert shards(data("shards"), many[:30], None) is not None
    assert shards(data("rows"), many, None) is None
    files = [Example("1", "", Clip(Path("a.mp4")))]
    assert shards(data("auto"), files, None) is None
    with pytest.raises(ConfigError, match=r"data\.shuffle = 'shards' needs tar files"):
        shards(data("shards"), files, None)
