"""Several processes do what one does: the same order, the same losses, the same counts."""

from __future__ import annotations

import copy
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from evilm import distributed
from evilm.data import sampling
from evilm.data.loader import Loader
from evilm.data.pixels import FilePixels, Job
from evilm.errors import ConfigError
from evilm.model.layers import GlobalBatchNorm, sync_batch_norms
from evilm.types import Clip, Example


class Blank(FilePixels):
    """Grey pixels for every clip."""

    def read(self, job: Job, count: int) -> np.ndarray:
        return np.full((count, self.size, self.size, 3), 128, dtype=np.uint8)


def loader(rank: int, ranks: int, *, train: bool, batch: int = 4, rows: int = 10) -> Loader:
    examples = [Example(str(i), f"v{i}", Clip(Path(f"{i}.mp4"))) for i in range(rows)]
    return Loader(examples, Blank(8), 2, 8, batch, seed=3, train=train, rank=rank, world_size=ranks)


def keys(made: Loader, epoch: int = 0, first: int = 0) -> list[list[str]]:
    return [[example.key for example in batch.examples] for batch in made.epoch(epoch, first)]


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("first", [0, 1])
def test_ranks_share_every_training_batch(ranks: int, first: int) -> None:
    whole = [[str(i) for i in sampling.epoch_order(3, 1, 10)[n : n + 4]] for n in (0, 4)][first:]
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
    with pytest.raises(ConfigError, match=r"optim\.batch_size = 4 .* must be a multiple of 3: for example 3"):
        loader(0, 3, train=True)


def test_one_process_is_left_as_it_is() -> None:
    tensor = torch.arange(6.0).view(3, 2)
    for found in (
        distributed.all_gather(tensor),
        distributed.all_reduce_sum(tensor),
        distributed.all_reduce_mean(tensor),
    ):
        assert found is tensor
    assert distributed.all_gather_objects("a") == ["a"]
    assert distributed.run_on_rank0(lambda: 3) == 3
    assert (distributed.all_reduce_max(5), distributed.rank(), distributed.world_size()) == (5, 0, 1)
    norm = nn.Sequential(nn.BatchNorm1d(2))
    sync_batch_norms(norm)
    assert isinstance(norm[0], nn.BatchNorm1d)


@pytest.mark.parametrize("affine", [True, False])
def test_the_global_batch_norm_is_torchs(affine: bool) -> None:
    torch.manual_seed(0)
    theirs = nn.BatchNorm2d(3, affine=affine)
    if affine:
        nn.init.normal_(theirs.weight)
    ours = GlobalBatchNorm(copy.deepcopy(theirs))
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    x = torch.randn(4, 3, 5, 5, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    for _ in range(2):
        a, b = theirs(x), ours(y)
        torch.testing.assert_close(b, a)
    a.pow(3).sum().backward()
    b.pow(3).sum().backward()
    torch.testing.assert_close(y.grad, x.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    torch.testing.assert_close(ours.eval()(y), theirs.eval()(x))


def test_a_published_norm_keeps_what_follows_it() -> None:
    from timm.layers import BatchNormAct2d

    torch.manual_seed(0)
    theirs = BatchNormAct2d(3)
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(GlobalBatchNorm(copy.deepcopy(theirs))(x), theirs(x))
