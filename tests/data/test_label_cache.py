"""Cached labels equal the labels computed during training, for every frame, crop and flip."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from evilm.data.feature_cache import FeatureCache
from evilm.data.frame_cache import FrameCache
from evilm.data.loader import Loader
from evilm.data.pack import jpeg, pack, write_shard
from evilm.data.packed_frames import PackConfig, PackedFrames
from evilm.data.pixels import StoredPixels
from evilm.data.transforms import AugmentConfig
from evilm.errors import ConfigError, DataError
from evilm.model.tokenizer import Tokenizer
from evilm.types import Clip, Example

if TYPE_CHECKING:
    from pathlib import Path

    from evilm.data.pixels import Store
    from evilm.model.tokenizer import TokenizerConfig

AUGMENTS = {
    "none": AugmentConfig(),
    "flip": AugmentConfig(hflip=True),
    "crop": AugmentConfig(crop_scale=0.3, cached_crops=3),
    "all": AugmentConfig(crop_scale=0.3, shift=5, hflip=True, cached_crops=2),
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    """Eight clips of four noisy frames; the fourth cannot be read, the captions of two contain "left"."""
    path = tmp_path_factory.mktemp("clips") / "all.tar"
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (8, 4, 8, 8, 3), dtype=np.uint8).repeat(8, 2).repeat(8, 3)
    write_shard(path, [(str(i), {f"{t}.jpg": jpeg(pictures[i, t]) for t in range(4)}) for i in range(8)])
    names = ["gone" if i == 3 else str(i) for i in range(8)]
    captions = ["moves left" if i in (1, 6) else "moves" for i in range(8)]
    return [
        Example(str(i), str(i), Clip(path, frames=tuple(f"{names[i]}.{t}.jpg" for t in range(4))), (captions[i],))
        for i in range(8)
    ]


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer: TokenizerConfig) -> Tokenizer:
    torch.manual_seed(1)
    made = Tokenizer(tiny_tokenizer, 10)
    made.train()
    made.encode(torch.randint(0, 256, (16, 2, 3, 64, 64), dtype=torch.uint8))  # sets the statistics of the centring
    return made.eval()


@pytest.fixture(scope="module", params=["cache", "packed jpeg", "packed raw"])
def store(request: Any, rows: list[Example], tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("store")
    if request.param == "cache":
        made = FrameCache(folder, [row.clip for row in rows], size=64, cached_frames=4)
        made.fill()
        return made
    config = PackConfig(size=64, cached_frames=4, frames=request.param.split()[1], per_shard=3)
    return PackedFrames(pack(rows, folder, "train", config).folder)


@pytest.mark.parametrize("name", AUGMENTS)
def test_cached_labels_equal_online_ones(store: Store, rows: list[Example], tokenizer: Tokenizer, name: str) -> None:
    augment, calls = AUGMENTS[name], [0]

    def label(frames: torch.Tensor) -> torch.Tensor:
        calls[0] += 1
        return tokenizer.labels(frames)

    grid = tokenizer.grid(1, 64, 64)
    cached = FeatureCache.labels(store, tokenizer.fingerprint(), grid, augment, seed=7)
    cached.fill(label, batch=3)
    seen: set[bytes] = set()
    loader = Loader(
        rows, StoredPixels(store), 2, 64, 4, seed=7, train=True, augment=augment, label_cache=cached, max_bad_ratio=0.5
    )
    for epoch in range(3):
        for batch in loader.epoch(epoch):
            assert batch.labels is not None
            assert torch.equal(batch.labels, tokenizer.labels(batch.frames))
            seen |= {frame.numpy().tobytes() for frame in batch.frames.flatten(0, 1)}
    if augment.active:
        kept = [store.frames_of(row) for row in range(len(store))]
        plain = {frame.transpose(2, 0, 1).tobytes() for frames in kept if frames is not None for frame in frames}
        assert seen - plain, "no frame was augmented"
    done = calls[0]
    FeatureCache.labels(store, tokenizer.fingerprint(), grid, augment, seed=7).fill(label)
    assert calls[0] == done, "cached labels are not computed again"


def test_labels_of_another_tokenizer_or_crop_are_refused(
    rows: list[Example], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    store = FrameCache(tmp_path, [row.clip for row in rows], size=64, cached_frames=4)
    store.fill()
    grid, own = tokenizer.grid(1, 64, 64), tokenizer.fingerprint()
    mine = FeatureCache.labels(store, own, grid)
    mine.fill(tokenizer.labels)
    mine.path.rename(store.folder / "labels-0123.u16")
    mine.path.with_suffix(".json").rename(store.folder / "labels-0123.json")
    with pytest.raises(DataError, match=rf"labels-0123\.u16: was computed for another tokenizer \({own}, and 0123"):
        FeatureCache.labels(store, "0123", grid)
    (store.folder / "labels-0123.json").write_text("{")
    with pytest.raises(DataError, match="is damaged; delete it"):
        FeatureCache.labels(store, "0123", grid)
    names = {
        FeatureCache.labels(store, own, grid, augment, seed).path.name
        for augment in AUGMENTS.values()
        for seed in (0, 1)
    }
    assert len(names) == 1 + 1 + 2 + 2  # flips need no seed
    about = json.loads(FeatureCache.labels(store, own, grid).path.with_suffix(".json").read_text())
    assert about == {"tokenizer": own, "grid": [4, 4], "clips": 8}


def test_an_unlimited_number_of_crops_is_refused(rows: list[Example], tmp_path: Path, tokenizer: Tokenizer) -> None:
    store = FrameCache(tmp_path, [row.clip for row in rows], size=64, cached_frames=4)
    with pytest.raises(ConfigError, match=r"needs a limited number of crops: set data\.augment\.cached_crops"):
        FeatureCache.labels(store, "f", tokenizer.grid(1, 64, 64), AugmentConfig(shift=1))


def test_two_bytes_for_each_patch(rows: list[Example], tmp_path: Path, tokenizer: Tokenizer) -> None:
    store = FrameCache(tmp_path, [row.clip for row in rows], size=64, cached_frames=4)
    made = FeatureCache.labels(store, "f", tokenizer.grid(1, 64, 64), AUGMENTS["all"])
    assert made.path.stat().st_size == 2 * 8 * 4 * (2 * 2) * 16
