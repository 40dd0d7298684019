"""A teacher's embeddings: computed once, found again, never mixed with those of another teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import pytest

from evilm.data.teacher_targets import TeacherTargets
from evilm.data.video import read_clip
from evilm.errors import DataError, OutputError
from evilm.types import Clip

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


class Colours:
    """A teacher whose embedding is the mean colour of a clip; counts the clips it encodes."""

    num_frames, image_size, embed_dim = 2, 16, 3
    resize_mode: Literal["crop", "squash"] = "squash"

    def __init__(self, fingerprint: str = "one") -> None:
        self.fingerprint, self.seen = fingerprint, 0

    def embed_frames(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        assert frames.shape[1:] == (2, 16, 16, 3)
        self.seen += len(frames)
        return frames.mean((1, 2, 3)).astype(np.float32)


@pytest.fixture
def clips(small_world: Path) -> list[Clip]:
    return [Clip(path) for path in sorted((small_world / "videos").glob("*.mp4"))[:40]]


def test_each_clip_is_encoded_once(clips: list[Clip], tmp_path: Path) -> None:
    first = Colours()
    calls: list[int] = []
    assert TeacherTargets(first, tmp_path).fill([*clips[:33], clips[0]], 2, calls.append) == []
    assert first.seen == 33
    assert calls == [32, 33]
    again = Colours()
    store = TeacherTargets(again, tmp_path)
    assert [clip.id for clip in store.missing(clips)] == [clip.id for clip in clips[33:]]
    store.fill(clips)
    assert again.seen == 7
    vectors, known = store.read([clips[5], clips[39]])
    assert known.all()
    for vector, clip in zip(vectors, (clips[5], clips[39]), strict=True):
        np.testing.assert_allclose(vector, read_clip(clip, 2, 16, fit="squash").mean((0, 1, 2)), atol=1e-4)
    assert again.seen == 7


def test_another_teacher_or_number_of_frames_starts_again(clips: list[Clip], tmp_path: Path) -> None:
    TeacherTargets(Colours(), tmp_path).fill(clips[:3])
    longer = Colours()
    longer.num_frames = 4
    for other in (Colours("two"), longer):
        assert len(TeacherTargets(other, tmp_path).missing(clips[:3])) == 3


def test_parts_of_a_file_are_separate_clips(clips: list[Clip]) -> None:
    store = TeacherTargets(Colours(), None)
    part = Clip(clips[0].path, 0.5, 1.0)
    store.fill(clips[:1])
    assert store.missing([clips[0], part]) == [part]
    assert store.read([part])[1].all()  # encoded now
    assert store.missing([part]) == []


def test_an_unreadable_clip_is_reported_once(clips: list[Clip], tmp_path: Path) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    store = TeacherTargets(Colours(), tmp_path / "kept")
    [problem] = store.fill([clips[0], Clip(bad)])
    assert "bad.mp4" in problem
    vectors, known = store.read([Clip(bad), clips[0]])
    assert known.tolist() == [False, True]
    assert not vectors[0].any()
    assert store.fill([clips[0], Clip(bad)]) == []


def test_errors_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot store the teacher's embeddings"):
        TeacherTargets(Colours(), tmp_path / "file")
    store = TeacherTargets(Colours(), tmp_path)
    assert store.path is not None
    store.close()
    store.path.write_bytes(b"something else, longer than a header of sqlite would be" * 20)
    with pytest.raises(DataError, match="is damaged"):
        TeacherTargets(Colours(), tmp_path)
