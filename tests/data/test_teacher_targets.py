"""What a teacher says is computed once, is found again, and is never another teacher's."""

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
    """A teacher that says the mean colour of a clip, and counts how many it saw."""

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


def test_each_clip_is_looked_at_once(clips: list[Clip], tmp_path: Path) -> None:
    first = Colours()
    told: list[int] = []
    assert TeacherTargets(first, tmp_path).fill([*clips[:33], clips[0]], 2, told.append) == []
    assert first.seen == 33
    assert told == [32, 33]
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


def test_another_teacher_or_another_look_starts_anew(clips: list[Clip], tmp_path: Path) -> None:
    TeacherTargets(Colours(), tmp_path).fill(clips[:3])
    longer = Colours()
    longer.num_frames = 4
    for other in (Colours("two"), longer):
        assert len(TeacherTargets(other, tmp_path).missing(clips[:3])) == 3


def test_parts_of_a_file_are_clips_of_their_own(clips: list[Clip]) -> None:
    store = TeacherTargets(Colours(), None)
    part = Clip(clips[0].path, 0.5, 1.0)
    store.fill(clips[:1])
    assert store.missing([clips[0], part]) == [part]
    assert store.read([part])[1].all()  # looked at now
    assert store.missing([part]) == []


def test_what_cannot_be_read_is_told_once(clips: list[Clip], tmp_path: Path) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    store = TeacherTargets(Colours(), tmp_path / "kept")
    [problem] = store.fill([clips[0], Clip(bad)])
    assert "bad.mp4" in problem
    vectors, known = store.read([Clip(bad), clips[0]])
    assert known.tolist() == [False, True]
    assert not vectors[0].any()
    assert store.fill([clips[0], Clip(bad)]) == []


def test_a_place_that_cannot_hold_them_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot store the teacher's embeddings"):
        TeacherTargets(Colours(), tmp_path / "file")
    store = TeacherTargets(Colours(), tmp_path)
    assert store.path is not None
    store.close()
    store.path.write_bytes(b"something else, longer than a header of sqlite would be" * 20)
    with pytest.raises(DataError, match="is damaged"):
        TeacherTargets(Colours(), tmp_path)
