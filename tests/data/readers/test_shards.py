"""WebDataset shards: samples, and pixels of a video within a tar."""

from __future__ import annotations

import io
import json
import tarfile
from typing import TYPE_CHECKING

import numpy as np
import pytest

from evilm.data.readers import read
from evilm.data.video import read_clip
from evilm.errors import SplitError, VideoError
from evilm.types import Clip

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def tar(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def test_samples(tmp_path: Path, complaint: Callable[..., str]) -> None:
    choice = {"question": "what?", "options": ["a", "b"], "answer": 1}
    first = tar(tmp_path / "train-000.tar", {
        "a/one.mp4": b"x", "a/one.txt": "\ufeffa dog\nruns\r\n".encode(), "two.10.jpg": b"x", "two.9.jpg": b"x",
        "two.json": json.dumps({"caption": "a cat", "label": 3, "kind": "cat"}).encode(),
    })  # fmt: skip
    tar(
        tmp_path / "train-001.tar", {"q.webm": b"x", "q.json": json.dumps(choice).encode(), "c.gif": b"", "c.cls": b"7"}
    )
    one, two, asked, classed = read("shards", tmp_path)
    assert (one.key, one.captions, one.clip) == ("a/one", ("a dog", "runs"), Clip(first, frames=("a/one.mp4",)))
    assert (two.captions, two.label, two.kind, two.clip.frames) == (("a cat",), 3, "cat", ("two.9.jpg", "two.10.jpg"))
    assert (asked.question, asked.choices, asked.label, asked.answer) == ("what?", ("a", "b"), 1, None)
    assert (classed.label, classed.captions) == (7, ())
    assert read("shards", first) == [one, two]
    with pytest.raises(SplitError, match=r"holds none of val.tar"):
        read("shards", tmp_path, None, "val")
    for name, members, said in (
        ("lone", {"a.txt": b"a"}, ":1: sample 'a' has no video and no pictures; it has txt"),
        ("json", {"a.mp4": b"", "a.json": b"{"}, ":1: a.json is not a json object"),
        ("text", {"a.mp4": b"", "a.txt": b"\xff"}, ":1: the texts of sample 'a' cannot be read"),
        ("class", {"a.mp4": b"", "a.cls": b"dog"}, ":1: 'label' is 'dog', a whole number is needed"),
        ("none", {}, ": holds no samples"),
    ):
        path = tar(tmp_path / f"{name}.tar", members)
        assert complaint("shards", path).startswith(f"{path}{said}")
    path.write_bytes(b"no tar at all" * 100)
    assert "cannot be read as an uncompressed tar" in complaint("shards", path)


def test_a_video_in_a_shard_gives_equal_pixels(small_world: Path, tmp_path: Path) -> None:
    films = sorted((small_world / "videos").rglob("*.*"))[:3]
    path = tar(tmp_path / "s.tar", {f"v{i}{film.suffix}": film.read_bytes() for i, film in enumerate(films)})
    for i, film in enumerate(films):
        inside = read_clip(Clip(path, frames=(f"v{i}{film.suffix}",)), 3, 64)
        assert np.array_equal(inside, read_clip(Clip(film), 3, 64))
    with pytest.raises(VideoError, match=r"holds no video 'v9.mp4'"):
        read_clip(Clip(path, frames=("v9.mp4",)), 2, 64)
    hostile = tar(tmp_path / "h.tar", {
        "a.mp4": b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n/etc/passwd\n", "b.mp4": b"", "c.mp4": b"x" * 5000,
    })  # fmt: skip
    for name, status in (("a", "refused"), ("b", "corrupt"), ("c", "corrupt")):
        with pytest.raises(VideoError) as caught:
            read_clip(Clip(hostile, frames=(f"{name}.mp4",)), 2, 64)
        assert caught.value.status == status, name


def test_an_encrypted_video_in_a_shard_is_refused(small_world: Path, tmp_path: Path) -> None:
    """FFmpeg would decode it to noise."""
    film = next((small_world / "videos").rglob("*.mp4")).read_bytes()
    before, stsd, rest = film.partition(b"stsd")
    locked = before + stsd + rest[:12] + b"encv" + rest[16:]
    assert len(locked) == len(film)
    assert locked != film
    path = tar(tmp_path / "s.tar", {"a.mp4": film, "b.mp4": locked, "c.mp4": film})
    for name in ("a", "c"):
        assert read_clip(Clip(path, frames=(f"{name}.mp4",)), 2, 32).any()
    with pytest.raises(VideoError) as caught:
        read_clip(Clip(path, frames=("b.mp4",)), 2, 32)
    assert caught.value.status == "encrypted"
