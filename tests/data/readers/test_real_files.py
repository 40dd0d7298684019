"""Published annotation files, unchanged: rows, videos, captions. Skipped if the files are absent."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from evilm.data.readers import READERS, read

if TYPE_CHECKING:
    from pathlib import Path

COUNTS = [  # format, file or folder, split, rows, different videos, captions
    ("msrvtt_retrieval", "msrvtt/MSRVTT_JSFUSION_test.csv", "test", 1000, 1000, 1000),
    ("msrvtt_retrieval", "msrvtt/MSRVTT_train.7k.csv", "train", 7010, 7010, 0),
    ("msrvtt_retrieval", "msrvtt/MSRVTT_train.9k.csv", "train", 9000, 9000, 0),
    ("msrvtt_retrieval", "msrvtt/msrvtt_caption_test.json", "test", 2990, 2990, 59800),
    ("msrvtt_retrieval", "msrvtt", "test", 1000, 1000, 1000),
    ("msvd_retrieval", "msvd/captions_msvd.json", "train", 1970, 1970, 80827),
    ("msvd_retrieval", "msvd", "train", 1200, 1200, 48774),
    ("msvd_retrieval", "msvd", "val", 100, 100, 4290),
    ("msvd_retrieval", "msvd", "test", 670, 670, 27763),
    ("tgif_action", "tgif-qa", "train", 20471, 20471, 0),
    ("tgif_action", "tgif-qa", "test", 2274, 2274, 0),
    ("tgif_frame", "tgif-qa", "test", 13691, 7132, 0),
    ("didemo", "didemo", "val", 1065, 1065, 1065),
    ("hmdb51", "hmdb51", "train", 3570, 3570, 0),
    ("hmdb51", "hmdb51", "test", 1530, 1530, 0),
    ("hmdb51", "hmdb51", "val", 1666, 1666, 0),
    ("hmdb51", "hmdb51", "train.2", 3570, 3570, 0),
    ("hmdb51", "hmdb51", "test.3", 1530, 1530, 0),
    ("kinetics400", "kinetics400", "val", 19906, 19906, 0),
    ("coco_captions", "coco", "val", 5000, 5000, 25014),
]


@pytest.mark.parametrize(("name", "place", "split", "rows", "videos", "captions"), COUNTS)
def test_published(shared_data: Path, name: str, place: str, split: str, rows: int, videos: int, captions: int) -> None:
    examples = list(READERS[name](shared_data / "annotations" / place, None, split))
    assert len(examples) == rows
    assert len({e.video for e in examples}) == videos
    assert sum(len(e.captions) for e in examples) == captions
    if name == "hmdb51":
        assert {e.label for e in examples} == set(range(51))
        assert not any(e.video.endswith(" ") for e in examples)  # each line of these files does
    if name == "kinetics400":
        assert {e.label for e in examples} == set(range(400))
    if name == "tgif_action":
        assert all(len(e.choices) == 5 and e.label is not None and e.question for e in examples)
    if name == "tgif_frame":
        assert {e.kind for e in examples} == {"object", "number", "color", "location"}


@pytest.mark.parametrize(
    ("name", "place", "split", "rows", "videos"),
    [("frames", "msrvtt-frames", "train", 956, 956), ("frames", "msrvtt-frames", "test", 476, 476),
     ("captions", "clips/captions.csv", "train", 355, 165), ("captions", "droid", "train", 560, 560),
     ("captions", "droid", "test", 140, 140), ("frames", "flickr8k", "train", 6091, 6091),
     ("frames", "flickr8k", "val", 1000, 1000), ("frames_qa", "msrvtt-qa", "train", 4734, 184),
     ("frames_qa", "msrvtt-qa", "test", 1483, 60), ("frames_qa", "daquar", "train", 6795, 794),
     ("frames_qa", "daquar", "test", 5673, 653)],
)  # fmt: skip
def test_real_videos(shared_data: Path, name: str, place: str, split: str, rows: int, videos: int) -> None:
    examples = read(name, shared_data / place, None, split)
    assert len(examples) == rows
    assert len({e.video for e in examples}) == videos
    assert all(e.clip.path.is_file() for e in examples)
