"""The loader: equal batches with any number of workers and after resuming; unreadable samples are replaced."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from evilm.data import sampling
from evilm.data.loader import Loader
from evilm.data.transforms import AugmentConfig
from evilm.data.workers import Background
from evilm.errors import DataError, TooManyBadSamplesError, VideoError
from evilm.types import Clip, Example

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from evilm.types import Batch

AUGMENT = AugmentConfig(crop_scale=0.5, shift=1, hflip=True)


def rows(count: int, **odd: str) -> list[Example]:
    """Clips named by their number, with a prefix from ``odd``: ``_3="hang"``."""
    names = [f"{odd.get(f'_{i}', '')}{i}" for i in range(count)]
    return [Example(str(i), f"v{i}", Clip(Path(f"{name}.mp4")), ("a cat",)) for i, name in enumerate(names)]


@pytest.fixture
def make(odd: Any) -> Iterator[Callable[..., Loader]]:
    made: list[Loader] = []

    def build(examples: list[Example], batch: int = 4, *, train: bool = True, **rest: Any) -> Loader:
        pixels = rest.pop("pixels", odd.OddPixels(16))
        made.append(Loader(examples, pixels, 2, 16, batch, seed=7, train=train, **rest))
        return made[-1]

    yield build
    for loader in made:
        loader.close()


def shown(loader: Loader, epoch: int = 0, first: int = 0) -> list[tuple[list[str], bytes, list[int]]]:
    """Keys, pixels and seeds of every batch."""
    return [
        ([example.key for example in batch.examples], batch.frames.numpy().tobytes(), batch.own_seeds)
        for batch in loader.epoch(epoch, first)
    ]


def test_workers_and_prefetching_change_nothing(make: Callable[..., Loader]) -> None:
    examples = rows(22, _3="bad", _9="slow")
    plain = make(examples, augment=AUGMENT, max_bad_ratio=0.2)
    expected = [shown(plain, epoch) for epoch in (0, 1)]
    assert expected[0] != expected[1]
    for workers, prefetch in ((0, 2), (1, 0), (3, 2)):
        loader = make(examples, augment=AUGMENT, workers=workers, prefetch=prefetch, max_bad_ratio=0.2)
        assert [shown(loader, epoch) for epoch in (0, 1)] == expected
        assert loader.unreadable == plain.unreadable


def test_workers_do_not_change_randaugment(make: Callable[..., Loader]) -> None:
    """Decoder processes cannot load torch, which RandAugment needs."""
    augment = AUGMENT.model_copy(update={"randaugment_ops": 2})
    plain, workers = make(rows(12), augment=augment), make(rows(12), augment=augment, workers=2)
    assert shown(plain) == shown(workers) != shown(make(rows(12), augment=AUGMENT))


def test_resume_within_an_epoch_gives_equal_batches(make: Callable[..., Loader]) -> None:
    examples = rows(21, _2="bad")
    whole = make(examples, augment=AUGMENT, max_bad_ratio=0.2)
    expected = shown(whole, 3)
    for first in (0, 1, 4, 5):
        again = make(examples, augment=AUGMENT, prefetch=2, max_bad_ratio=0.2)
        again.restore(whole.state())
        assert shown(again, 3, first) == expected[first:]


def test_resume_and_ranks_with_shards_give_equal_batches(make: Callable[..., Loader]) -> None:
    examples = rows(90, _2="bad")
    numbers = np.repeat(np.arange(30, dtype=np.int32), 3)
    whole = make(examples, 6, augment=AUGMENT, shards=numbers)
    expected = shown(whole, 3)
    assert expected != shown(make(examples, 6, augment=AUGMENT), 3)
    for first, workers in ((0, 2), (1, 0), (7, 0), (14, 2)):
        again = make(examples, 6, augment=AUGMENT, prefetch=2, shards=numbers, workers=workers)
        again.restore(whole.state())
        assert shown(again, 3, first) == expected[first:]
    halves = [shown(make(examples, 6, augment=AUGMENT, shards=numbers, rank=rank, world_size=2), 3) for rank in (0, 1)]
    assert [[*a[0], *b[0]] for a, b in zip(*halves, strict=True)] == [batch[0] for batch in expected]


def test_an_unreadable_sample_is_replaced_and_counted(make: Callable[..., Loader]) -> None:
    examples = rows(20, _5="bad")
    loader = make(examples, max_bad_ratio=0.1)
    plain = [str(row) for row in sampling.epoch_order(7, 0, 20)]
    found = list(loader.epoch(0))
    keys = [example.key for batch in found for example in batch.examples]
    assert "5" not in keys
    assert [a for a, b in zip(plain, keys, strict=True) if a != b] == ["5"]
    assert all(bool(batch.readable.all()) for batch in found)
    for batch in found:  # no black frames; each row has its own pixels
        assert [int(f[0, 1, 1, 1]) for f in batch.frames] == [int(example.key) for example in batch.examples]
        assert batch.own_seeds == [sampling.derive_seed(7, "sample", 0, int(example.key)) for example in batch.examples]
    assert loader.unreadable == {"bad5.mp4": "bad5.mp4: encrypted: is locked"}


def test_prefetched_samples_are_not_yet_counted(make: Callable[..., Loader]) -> None:
    order = sampling.epoch_order(7, 0, 40)
    loader = make(rows(40, **{f"_{order[6]}": "bad"}), prefetch=3)
    source = loader.epoch(0)
    next(source)
    time.sleep(0.2)
    assert loader.state() == {"bad": {}}
    next(source)
    assert len(loader.unreadable) == 1
    source.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "evilm-prefetch"]


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_unreadable_samples_stop_the_run(make: Callable[..., Loader], workers: int) -> None:
    examples = rows(40, _3="bad", _17="bad", _31="bad")
    loader = make(examples, workers=workers, prefetch=2)
    with pytest.raises(
        TooManyBadSamplesError, match=r"3 of 40 videos cannot be read, more than data\.max_bad_ratio = 0\.05"
    ):
        list(loader.epoch(0))
    assert len(list(make(examples, workers=workers, max_bad_ratio=0.1).epoch(0))) == 10


def test_a_large_data_set_is_not_read_to_the_end_before_stopping(make: Callable[..., Loader]) -> None:
    loader = make(rows(6000, **{f"_{i}": "bad" for i in range(0, 6000, 3)}), 50)
    with pytest.raises(TooManyBadSamplesError, match=r"5\d of 1000 videos"):
        list(loader.epoch(0))


def test_only_unreadable_samples(make: Callable[..., Loader]) -> None:
    loader = make(rows(30, **{f"_{i}": "bad" for i in range(30)}), max_bad_ratio=1)
    with pytest.raises(TooManyBadSamplesError, match="20 videos in a row cannot be read"):
        next(loader.epoch(0))


def test_evaluation_keeps_and_lists_unreadable_videos(make: Callable[..., Loader]) -> None:
    for workers in (0, 2):
        loader = make(rows(10, _4="bad"), train=False, workers=workers)
        batches: list[Batch] = list(loader)
        assert [e.key for batch in batches for e in batch.examples] == [str(i) for i in range(10)]
        assert torch.cat([batch.readable for batch in batches]).tolist() == [i != 4 for i in range(10)]
        assert loader.unreadable == {"bad4.mp4": "bad4.mp4: encrypted: is locked"}


def test_hanging_or_killed_workers_cost_one_sample_within_ten_seconds(
    make: Callable[..., Loader],
) -> None:
    loader = make(rows(40, _7="hang", _11="die"), workers=2, prefetch=1, timeout=1.0, max_bad_ratio=0.1)
    waits, began = [], time.monotonic()
    for batch in loader.epoch(0):
        waits.append(time.monotonic() - began)
        assert bool(batch.readable.all())
        began = time.monotonic()
    assert len(waits) == 10
    assert max(waits) < 10
    assert {key: text.split(": ")[1] for key, text in loader.unreadable.items()} == {
        "hang7.mp4": "timeout",
        "die11.mp4": "crashed",
    }
    began = time.monotonic()
    list(loader.epoch(1))  # the hanging clip is not tried again
    assert time.monotonic() - began < 2


def test_fixed_frames_are_equal_in_every_epoch(make: Callable[..., Loader]) -> None:
    loader = make(rows(8), fixed_frames=True, augment=AUGMENT)
    for epoch in (0, 1):
        for batch in loader.epoch(epoch):
            for frame, example in zip(batch.frames, batch.examples, strict=True):
                expected = np.full((2, 3, 16, 16), int(example.key), dtype=np.uint8)
                expected[:, 0, 0, 0] = 0
                assert np.array_equal(frame.numpy(), expected)


def test_an_empty_split_is_refused(make: Callable[..., Loader]) -> None:
    with pytest.raises(DataError, match="the split is empty"):
        make([])


def test_background_passes_items_and_errors_on_and_closes_its_source() -> None:
    closed: list[bool] = []

    def source(fails: bool) -> Iterator[int]:
        try:
            yield from range(5)
            if fails:
                raise VideoError("x.mp4", "corrupt", "broken")
        finally:
            closed.append(True)

    assert list(Background(source(False), 2)) == list(range(5))
    with pytest.raises(VideoError, match="broken"):
        list(Background(source(True), 2))
    early = Background(source(False), 1)
    assert next(early) == 0
    early.close()
    early.close()
    assert closed == [True] * 3
