"""Golden values: equal seeds give the batches and annotations of earlier versions."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from evilm.data import synthetic
from evilm.data.loader import Loader
from evilm.data.pixels import FilePixels
from evilm.data.transforms import AugmentConfig
from evilm.types import Clip, Example

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from evilm.data.pixels import Job


class Recorder(FilePixels):
    """Records what would be decoded, and how it would be augmented."""

    jobs: list[Any]

    def read(self, job: Job, count: int) -> NDArray[np.uint8]:
        plan, rng = job.plan, job.rng
        assert rng is not None
        drawn = np.round(rng.random(count), 9).tolist()
        self.jobs.append((job.clip.id, drawn, plan.box, plan.shift, plan.flip, plan.changes, plan.crop))
        return np.zeros((count, self.size, self.size, 3), np.uint8)


@pytest.mark.parametrize(
    ("augment", "digest"),
    [
        (AugmentConfig(crop_scale=0.5, shift=3, hflip=True), "e6592f13455b14e0"),
        (AugmentConfig(crop_scale=0.5, shift=2, hflip=True, cached_crops=3), "c8b8e07cc5fb979c"),
        (AugmentConfig(hflip=True, randaugment_ops=2), "b31c120a24973455"),
    ],
    ids=["crops", "cached crops", "randaugment"],
)
def test_equal_seeds_give_equal_batches(augment: AugmentConfig, digest: str) -> None:
    rows = [Example(str(i), f"v{i // 2}", Clip(Path(f"{i}.mp4"), end=2.0 + i), (f"a cat {i}",)) for i in range(25)]
    pixels = Recorder(32)
    object.__setattr__(pixels, "jobs", [])
    loader = Loader(rows, pixels, 4, 32, 4, seed=7, train=True, augment=augment)
    batches = [(e, [x.key for x in batch.examples], batch.own_seeds) for e in (0, 1) for batch in loader.epoch(e)]
    assert hashlib.sha256(repr((pixels.jobs, batches)).encode()).hexdigest()[:16] == digest


def test_equal_seeds_give_equal_annotations(tmp_path: Path) -> None:
    synthetic.build(tmp_path / "data", 40, 5, workers=1)
    digests = {
        name: hashlib.sha256((tmp_path / "data" / name).read_bytes()).hexdigest()[:16]
        for name in ("world.jsonl", "MSRVTT_data.json", "mc_train.jsonl")
    }
    assert digests == {
        "world.jsonl": "e714360d6d27a2da",
        "MSRVTT_data.json": "c4118438551ee374",
        "mc_train.jsonl": "0a6ef51863955b12",
    }
