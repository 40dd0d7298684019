"""Bad luck is tried once more; what stays unreadable is listed with its status."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from evilm.data.config import DataConfig, SourceConfig
from evilm.data.frame_cache import FrameCache
from evilm.data.video import DecoderPool
from evilm.data.video.check import Finding
from evilm.errors import DataError, VideoError
from evilm.training.adapt.readable import decodable, readable
from evilm.types import Clip, Example

if TYPE_CHECKING:
    from pathlib import Path

    from evilm.data.pixels import Job


def rows(folder: Path, *names: str) -> list[Example]:
    return [Example(key=name, video=name, clip=Clip(folder / name), captions=("a disc",)) for name in names]


def test_a_file_that_timed_out_or_crashed_is_asked_once_more(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = Counter[str]()

    def check(_: DecoderPool, path: Path) -> Finding:
        asked[path.name] += 1
        if path.name == "stopped.mp4" and asked[path.name] == 1:
            return Finding("timeout", "not decoded within 8 s")
        if path.name == "hangs.mp4":
            return Finding("crashed", "the decoder died")
        return Finding("corrupt", "no frames") if path.name == "broken.mp4" else Finding("ok")

    monkeypatch.setattr(DecoderPool, "check", check)
    given, bad = readable(rows(tmp_path, "good.mp4", "stopped.mp4", "hangs.mp4", "broken.mp4"))
    assert [row.key for row in given] == ["good.mp4", "stopped.mp4"]
    assert {line["path"].rpartition("/")[2]: line["status"] for line in bad} == {
        "hangs.mp4": "crashed", "broken.mp4": "corrupt",
    }  # fmt: skip
    assert asked == {"good.mp4": 1, "stopped.mp4": 2, "hangs.mp4": 2, "broken.mp4": 1}
    with pytest.raises(DataError, match=r"none of 1 videos can be read; the first: .*broken\.mp4: no frames"):
        readable(rows(tmp_path, "broken.mp4"))


def test_frames_that_were_not_decoded_in_time_are_decoded_once_more(
    monkeypatch: pytest.MonkeyPatch, small_world: Path, tmp_path: Path
) -> None:
    from evilm.data.pixels import FilePixels

    whole, asked = FilePixels.read, Counter[str]()

    def read(self: FilePixels, job: Job, count: int) -> Any:
        name = job.clip.path.name
        asked[name] += 1
        if name == "video1.mp4" or (name == "video0.mp4" and asked[name] == 1):
            raise VideoError(job.clip.path, "timeout", "not decoded within 9 s")
        return whole(self, job, count)

    monkeypatch.setattr(FilePixels, "read", read)
    given = rows(small_world / "videos", "video0.mp4", "video1.mp4", "video2.mp4")
    source = SourceConfig(reader="captions", annotations=tmp_path / "train.jsonl")
    data = DataConfig(train=source, cache=tmp_path / "cache", cached_frames=2, workers=0)
    kept, lost = decodable(given, data, 32)
    assert [row.key for row in kept] == ["video0.mp4", "video2.mp4"]
    [line] = lost
    assert (line["path"].rpartition("/")[2], line["status"]) == ("video1.mp4", "timeout")
    assert asked == {"video0.mp4": 2, "video1.mp4": 2, "video2.mp4": 1}
    store = FrameCache(tmp_path / "cache", [row.clip for row in given], size=32, cached_frames=2)
    assert store.frames_of(store.row(given[0].clip)) is not None
    assert decodable(given, data.model_copy(update={"cache": None}), 32) == (tuple(given), [])
