from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from evilm.data import frame_cache
from evilm.data.frame_cache import FrameCache
from evilm.types import Clip

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


@pytest.fixture
def clips(tmp_path: Path) -> list[Clip]:
    """Six clips of one picture each; the last is missing."""
    rng = np.random.default_rng(0)
    made: list[Clip] = []
    for i in range(6):
        folder = tmp_path / f"clip{i}"
        folder.mkdir()
        if i < 5:
            Image.fromarray(rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(folder / "0.png")
        made.append(Clip(folder, frames=("0.png",)))
    return made


def store(folder: Path, clips: Sequence[Clip], cached_frames: int = 2) -> FrameCache:
    return FrameCache(folder / "cache", clips, size=16, cached_frames=cached_frames)


def test_a_finished_cache_is_used_for_fewer_clips(
    clips: list[Clip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = store(tmp_path, clips)
    assert len(whole.fill()) == 1
    monkeypatch.setattr(frame_cache, "decode_all", lambda jobs, *_: iter(list(jobs)))  # decoding now would fail
    some = store(tmp_path, [clips[4], clips[1]])
    assert some.folder == whole.folder
    assert some.fill() == []  # the missing clip was not requested
    for clip in (clips[4], clips[1]):
        assert np.array_equal(some.read(clip), whole.read(clip))
        assert some.clip_id(some.row(clip)) == clip.id


def test_a_cache_with_other_settings_or_clips_is_not_used(clips: list[Clip], tmp_path: Path) -> None:
    whole = store(tmp_path, clips[:4])
    whole.fill()
    assert store(tmp_path, clips[:2], cached_frames=1).folder != whole.folder  # other frames
    assert store(tmp_path, clips[3:5]).folder != whole.folder  # one more clip
    Image.new("RGB", (40, 40)).save(clips[0].path / "0.png")
    clips[0].path.touch()
    assert store(tmp_path, clips[:2]).folder != whole.folder  # a changed clip


def test_an_unfinished_cache_is_not_used_for_fewer_clips(clips: list[Clip], tmp_path: Path) -> None:
    whole = store(tmp_path, clips[:4])
    assert store(tmp_path, clips[:2]).folder != whole.folder
    assert store(tmp_path, clips[:4]).folder == whole.folder
