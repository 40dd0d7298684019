"""Several processes do what one does: the same order, the same losses, the same counts."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from evilm import seeds
from evilm.data.loader import Loader
from evilm.data.pixels import FilePixels, Job
from evilm.errors import ConfigError
from evilm.types import Clip, Example


class Blank(FilePixels):
    """Grey pixels for every clip."""

    def read(self, job: Job, count: int) -> np.ndarray:
        return np.full((count, self.size, self.size, 3), 128, dtype=np.uint8)


def loader(rank: int, ranks: int, *, train: bool, batch: int = 4, rows: int = 10) -> Loader:
    examples = [Example(str(i), f"v{i}", Clip(Path(f"{i}.mp4"))) for i in range(rows)]
    return Loader(examples, Blank(8), 2, 8, batch, seed=3, train=train, rank=rank, ranks=ranks)


def keys(made: Loader, epoch: int = 0, first: int = 0) -> list[list[str]]:
    return [[example.key for example in batch.examples] for batch in made.epoch(epoch, first)]


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("first", [0, 1])
def test_ranks_share_every_training_batch(ranks: int, first: int) -> None:
    whole = [[str(i) for i in seeds.permutation(3, 1, 10)[n : n + 4]] for n in (0, 4)][first:]
    parts = [keys(loader(rank, ranks, train=True), 1, first) for rank in range(ranks)]
    assert [list(chain(*slices)) for slices in zip(*parts, strict=True)] == whole
    assert len(loader(0, ranks, train=True)) == 2


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 5])
def test_an_evaluation_over_uneven_shards_takes_every_row_once_and_batches_as_one_process_does(ranks: int) -> None:
    whole = keys(loader(0, 1, train=False))
    parts = [keys(loader(rank, ranks, train=False)) for rank in range(ranks)]
    assert sorted(chain(*parts)) == sorted(whole)
    assert [parts[number % ranks][number // ranks] for number in range(len(whole))] == whole


def test_a_batch_that_cannot_be_shared_evenly_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"optim\.batch_size = 4 .* no multiple of 3: take 3"):
        loader(0, 3, train=True)
