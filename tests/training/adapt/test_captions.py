"""What a user's clips are called, wherever it is written."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from evilm.errors import AnnotationError, DataError
from evilm.training.adapt.captions import own_clips, said_by

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a_dog-runs_003", "a dog runs"),
        ("IMG_20240512_101112", ""),
        ("VID-20240512-WA0001", ""),
        ("TwoCatsPlay.final", "two cats play"),
        ("GX010042", ""),
        ("clip 12 - birthday (copy)", "birthday"),
        ("Müll wird geholt", "müll wird geholt"),
        ("7f3a9c", ""),
    ],
)
def test_words_of_a_file_name(name: str, said: str) -> None:
    assert said_by(name) == said


def test_a_list_gives_one_row_a_clip_with_all_its_captions(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    table = tmp_path / "mine.csv"
    table.write_text("path,caption,start,end\na.mp4,one,,\nb.mp4,two,0,5\na.mp4,three,,\na.mp4,one,,\nb.mp4,four,5,9\n")
    own = own_clips(table)
    assert [(row.video, row.clip.start, row.clip.end, row.captions) for row in own.examples] == [
        ("a.mp4", 0.0, None, ("one", "three")), ("b.mp4", 0.0, 5.0, ("two",)), ("b.mp4", 5.0, 9.0, ("four",)),
    ]  # fmt: skip
    assert own.root == tmp_path / "videos"
    assert own.origin == "mine.csv"
    assert own_clips(table, tmp_path).examples[0].clip.path == tmp_path / "a.mp4"


def test_a_folder_gives_its_list_else_the_texts_else_the_names(tmp_path: Path) -> None:
    for name in ("a red disc.mp4", "deep/IMG_0001.mp4", "IMG_0002.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    named = own_clips(tmp_path)
    assert {row.video: row.captions for row in named.examples} == {
        "a red disc.mp4": ("a red disc",), "deep/IMG_0001.mp4": ("deep",),
    }  # fmt: skip
    assert named.nameless == ("IMG_0002.mp4",)
    for path in tmp_path.rglob("*.mp4"):
        path.with_suffix(".txt").write_text("it rains\nwater falls\n")
    beside = own_clips(tmp_path)
    assert {row.captions for row in beside.examples} == {("it rains", "water falls")}
    assert len(beside.examples) == 3
    (tmp_path / "captions.csv").write_text("file,text\nIMG_0002.mp4,snow\n")
    assert [row.captions for row in own_clips(tmp_path).examples] == [("snow",)]


def test_nothing_said_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds neither a list of captions \(captions.csv\) nor a video"):
        own_clips(tmp_path)
    (tmp_path / "IMG_0001.mp4").touch()
    with pytest.raises(DataError, match=r"no captions: .* names such as IMG_0001.mp4 say nothing"):
        own_clips(tmp_path)
    (tmp_path / "b.mp4").touch()
    (tmp_path / "b.txt").write_text("a boat")
    with pytest.raises(AnnotationError, match=r"has no IMG_0001.txt"):  # not left out in silence
        own_clips(tmp_path)
    with pytest.raises(AnnotationError, match="no such annotation file"):
        own_clips(tmp_path / "none.csv")
    (tmp_path / "list.csv").write_text("a,b\n1,2\n")
    with pytest.raises(AnnotationError, match=r"list.csv:2: has no column for the video"):
        own_clips(tmp_path / "list.csv")
