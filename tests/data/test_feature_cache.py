"""Feature cache: each output is computed once, always in the same batch, and for one backbone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from evilm.data.feature_cache import FeatureCache
from evilm.data.frame_cache import FrameCache
from evilm.data.pack import jpeg, write_shard
from evilm.errors import DataError
from evilm.types import Clip, Grid

if TYPE_CHECKING:
    from pathlib import Path

    import torch

GRID, CHANNELS = Grid(1, 2, 2), 3


@pytest.fixture
def frames(tmp_path: Path) -> FrameCache:
    """Seven clips of two frames; the third cannot be read."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (7, 2, 16, 16, 3), dtype=np.uint8)
    write_shard(
        tmp_path / "all.tar", [(str(i), {f"{t}.jpg": jpeg(pictures[i, t]) for t in range(2)}) for i in range(7)]
    )
    names = ["2gone" if i == 2 else str(i) for i in range(7)]
    clips = [Clip(tmp_path / "all.tar", frames=(f"{name}.0.jpg", f"{name}.1.jpg")) for name in names]
    store = FrameCache(tmp_path / "cache", clips, size=16, cached_frames=2)
    store.fill()
    return store


class Backbone:
    """Means of patches that also depend on the batch size; records its calls."""

    def __init__(self, stops: int = 0) -> None:
        self.calls: list[int] = []
        self.stops = stops

    def __call__(self, frames: torch.Tensor) -> torch.Tensor:
        self.calls.append(len(frames))
        if len(self.calls) == self.stops:
            raise KeyboardInterrupt
        cells = frames.float().unflatten(-1, (2, 8)).unflatten(-3, (2, 8)).mean((-1, -3))  # (B, T, 3, 2, 2)
        return cells.permute(0, 1, 3, 4, 2) / 255 + 1e-3 * len(frames)


def store(frames: FrameCache, name: str = "abc") -> FeatureCache:
    return FeatureCache.features(frames, name, GRID, CHANNELS)


def test_an_interrupted_cache_ends_with_equal_bytes(frames: FrameCache) -> None:
    whole, unbroken = store(frames, "def"), Backbone()
    whole.fill(unbroken, batch=3)
    assert sorted(unbroken.calls) == [1, 2, 3]  # one clip of seven cannot be read
    broken = store(frames)
    with pytest.raises(KeyboardInterrupt):
        broken.fill(Backbone(stops=3), batch=3)
    broken.raw[1] = np.iinfo(np.uint16).max  # as after a kill within a block
    again = Backbone()
    broken.fill(again, batch=3)
    assert again.calls == [unbroken.calls[0], unbroken.calls[2]], "blocks that were done are not computed again"
    assert np.array_equal(broken.raw, whole.raw)
    done = Backbone()
    broken.fill(done, batch=3)
    assert not done.calls


def test_the_features_of_a_frame(frames: FrameCache) -> None:
    made = store(frames)
    made.fill(Backbone(), batch=100)
    clip = frames.clips[frames.ids[0]]
    found = made.read(clip, np.array([1, 1, 0]))
    assert found.shape == (3, 2, 2, CHANNELS)
    assert found.dtype == np.float16
    pixels = frames.read(clip)[1].astype(float) / 255
    assert found[0, 1, 0] == pytest.approx(pixels[8:, :8].mean((0, 1)) + 1e-3 * 6, abs=1e-3)
    assert made.path.stat().st_size == 2 * 7 * 2 * 4 * CHANNELS


def test_features_of_another_backbone_are_refused(frames: FrameCache) -> None:
    made = store(frames)
    made.path.rename(frames.folder / "features-0123.f16")
    made.path.with_suffix(".json").rename(frames.folder / "features-0123.json")
    with pytest.raises(DataError, match=r"features-0123\.f16: was computed for another backbone \(abc, and 0123"):
        store(frames, "0123")
