"""Packs: equal frames, equal bytes after an interruption, stored reasons of unreadable clips."""

from __future__ import annotations

import json
import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from evilm.data import readers
from evilm.data.frame_cache import FrameCache
from evilm.data.loader import Loader
from evilm.data.pack import PackResult, jpeg, pack, write_shard
from evilm.data.packed_frames import PackConfig, PackedFrames, packed_for
from evilm.data.pixels import FilePixels, Job, StoredPixels
from evilm.data.video.container import tar_members
from evilm.data.video.pictures import read_members
from evilm.errors import ConfigError, DataError, OutputError, TooManyBadSamplesError, VideoError
from evilm.types import Clip, Example

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SIZE = 24


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    """Ten clips of six still frames, smooth so that JPEG keeps them; rows 3 and 7 share one, row 5 has none."""
    path = tmp_path_factory.mktemp("clips") / "all.tar"
    y, x = np.mgrid[:SIZE, :SIZE]
    frames = {
        f"{i}.{t:02d}": jpeg(np.stack([y * 4 + 10 * i, x * 4 + 15 * t, y + x + 20], -1).clip(0, 255).astype(np.uint8))
        for i in range(10)
        for t in range(6)
    }
    write_shard(path, [(str(i), {f"{t:02d}.jpg": frames[f"{i}.{t:02d}"] for t in range(6)}) for i in range(10)])
    rows = []
    for i in range(10):
        name = {7: 3, 5: "gone"}.get(i, i)
        clip = Clip(path, frames=tuple(f"{name}.{t:02d}.jpg" for t in range(6)))
        rows.append(Example(str(i), f"v{name}", clip, (f"caption {i}",), label=i % 2))
    return rows


def packed(clips: list[Example], out: Path, frames: str = "raw", **rest: Any) -> PackResult:
    config = PackConfig(size=SIZE, cached_frames=4, frames=frames, per_shard=4)
    return pack(clips, out, "train", config, **rest)


def test_packed_frames_equal_decoded_frames(clips: list[Example], tmp_path: Path) -> None:
    done = packed(clips, tmp_path)
    assert (done.clips, done.unreadable, done.written, done.shards) == (9, 1, 3, 3)
    store = PackedFrames(done.folder)
    small = packed(clips, tmp_path / "small", "jpeg")
    lossy = PackedFrames(small.folder)
    for i, row in enumerate(clips):
        if i == 5:
            continue
        expected = FilePixels(SIZE).read(Job(row.clip), 4)
        assert np.array_equal(store.read(row.clip), expected)
        assert np.abs(lossy.read(row.clip).astype(int) - expected).mean() < 4
        chosen = np.array([0, 2, 2])
        assert np.array_equal(store.read(row.clip, chosen), expected[chosen])
        assert np.array_equal(lossy.read(row.clip, chosen), lossy.read(row.clip)[chosen])
        assert store.clip_id(store.row(row.clip)) == row.clip.id
    assert not packed(clips, tmp_path).written


def test_all_pixel_sources_give_the_same_error(clips: list[Example], tmp_path: Path) -> None:
    said = []
    fresh = FilePixels(SIZE)
    store = FrameCache(tmp_path, [row.clip for row in clips], size=SIZE, cached_frames=4)
    assert len(store.fill()) == 1
    again = FrameCache(tmp_path, [row.clip for row in clips], size=SIZE, cached_frames=4)
    folder = packed(clips, tmp_path / "packed").folder
    for pixels in (fresh, StoredPixels(store), StoredPixels(again), StoredPixels(PackedFrames(folder))):
        with pytest.raises(VideoError) as caught:
            pixels.read(Job(clips[5].clip), 4)
        said.append((caught.value.status, str(caught.value)))
        loader = Loader(clips, pixels, 4, SIZE, 5)
        assert [bool(ok) for batch in loader for ok in batch.readable] == [i != 5 for i in range(10)]
        assert loader.unreadable == {clips[5].clip.id: said[0][1]}
    assert set(said) == {("not_a_file", said[0][1])}
    assert "holds no picture 'gone.00.jpg'" in said[0][1]


class PowerCutError(Exception):
    """A simulated power failure."""


@pytest.mark.parametrize("at", [1, 4, 6, 9])
def test_an_interrupted_pack_ends_with_equal_bytes(clips: list[Example], tmp_path: Path, at: int) -> None:
    whole = packed(clips, tmp_path / "whole", "jpeg").folder

    def blow(done: int, _: int) -> None:
        if done == at:
            raise PowerCutError

    with pytest.raises(PowerCutError):
        packed(clips, tmp_path / "cut", "jpeg", progress=blow)
    with pytest.raises(DataError, match=r"is not a finished pack of frames"):
        PackedFrames(tmp_path / "cut" / "train")
    done = packed(clips, tmp_path / "cut", "jpeg")
    assert done.written == 3 - (at - 1) // 4
    assert files(done.folder) == files(whole)


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".tmp"
    }


def test_workers_read_equal_packed_frames(clips: list[Example], tmp_path: Path) -> None:
    rows = [row for row in clips if row.key != "5"]
    store = PackedFrames(packed(clips, tmp_path, "jpeg").folder)
    assert store.encoded
    assert len(pickle.loads(pickle.dumps(store))) == 9  # noqa: S301 - it goes to processes of our own

    def shown(workers: int) -> list[bytes]:
        loader = Loader(rows, StoredPixels(store), 3, SIZE, 3, train=True, workers=workers)
        found = [batch.frames.numpy().tobytes() for batch in loader.epoch(1)]
        loader.close()
        return found

    assert shown(2) == shown(0)


def test_readers_frames_and_shards_read_packs(clips: list[Example], tmp_path: Path) -> None:
    folder = packed(clips, tmp_path, "jpeg").folder
    found = readers.read("frames", folder)
    assert [(row.captions, row.label) for row in readers.read("shards", folder)] == [
        (r.captions, r.label) for r in found
    ]
    assert [row.captions for row in found[3:5]] == [("caption 3", "caption 7"), ("caption 4",)]
    assert [row.label for row in found[:3]] == [0, 1, 0]
    assert len(found) == 8
    for path in sorted(folder.glob("*.tar")):
        names = list(tar_members(path))
        assert {name.partition(".")[2] for name in names} == {"json", "00.jpg", "01.jpg", "02.jpg", "03.jpg"}
        assert all(json.loads(data)["clip"] for data in read_members(path, names[::5]))


def test_the_split_that_contains_a_clip_is_found(clips: list[Example], tmp_path: Path) -> None:
    config = PackConfig(size=SIZE, cached_frames=2, per_shard=4)
    pack(clips[:4], tmp_path, "train", config)
    pack(clips[8:], tmp_path, "val", config)
    assert packed_for(tmp_path, clips[9].clip, SIZE, "crop").split == "val"
    assert packed_for(tmp_path / "train", clips[0].clip, SIZE, "crop").split == "train"
    for place, clip, size, fit, error, complaint in (
        (tmp_path, clips[6].clip, SIZE, "crop", DataError, r"has no frames of .*all\.tar.* \(in train, val\)"),
        (tmp_path, clips[0].clip, 32, "crop", ConfigError, r"this run needs 32x32, crop: pack with --size 32"),
        (tmp_path, clips[0].clip, SIZE, "squash", ConfigError, "--resize-mode squash"),
        (tmp_path / "none", clips[0].clip, SIZE, "crop", DataError, "`evilm data pack` writes one"),
    ):
        with pytest.raises(error, match=complaint):
            packed_for(place, clip, size, fit)  # pyright: ignore[reportArgumentType]
    with pytest.raises(DataError, match="is not among the clips packed"):
        PackedFrames(tmp_path / "train").row(clips[6].clip)


def test_folders_with_other_content_are_refused(clips: list[Example], tmp_path: Path) -> None:
    packed(clips, tmp_path)
    for change in (lambda: packed(clips[:5], tmp_path), lambda: packed(clips, tmp_path, "jpeg")):
        with pytest.raises(OutputError, match="holds frames of other clips, or packed with other settings"):
            change()
    (tmp_path / "photos" / "train").mkdir(parents=True)
    (tmp_path / "photos" / "train" / "cat.jpg").touch()
    with pytest.raises(OutputError, match=r"holds other files \(cat\.jpg\)"):
        packed(clips, tmp_path / "photos")


def test_a_damaged_shard_loses_only_its_samples(clips: list[Example], tmp_path: Path) -> None:
    folder = packed(clips, tmp_path).folder
    shard = folder / "train-000001.tar"
    shard.write_bytes(shard.read_bytes()[:3000])
    loader = Loader(clips, StoredPixels(PackedFrames(folder)), 2, SIZE, 2, train=True, max_bad_ratio=0.9)
    assert all(bool(batch.readable.all()) for batch in loader.epoch(0))
    assert any("the shard is shorter than its index says" in reason for reason in loader.unreadable.values())
    with pytest.raises(TooManyBadSamplesError):
        list(Loader(clips, StoredPixels(PackedFrames(folder)), 2, SIZE, 2, train=True).epoch(0))


def test_a_recipe_gets_equal_batches_from_packs_and_files(
    make_recipe: Callable[..., Any], small_world: Path, tmp_path: Path
) -> None:
    """Raw packed frames and files give equal batches for equal frame times."""
    from evilm.training import build

    rows = readers.read("msrvtt_retrieval", small_world, split="val")
    pack(rows, tmp_path, "val", PackConfig(size=64, cached_frames=4, frames="raw"))
    found = []
    for data in ({"packed": str(tmp_path)}, {}):
        made = make_recipe(tmp_path / "run", {"name": "retrieval"}, data=data, optim={"batch_size": 4})
        task, _ = build.new_task(made, rows)
        loader = build.make_loader(made, task, rows, train=True)
        found.append([batch.frames.numpy().tobytes() for batch in loader.epoch(2)])
    assert found[0] == found[1]
