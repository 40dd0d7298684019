"""Several searches at once, queries as vectors, and the counts of a result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from evilm.errors import QueryError
from evilm.search.index import VideoIndex
from evilm.search.query import Filter, QueryVector

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def index(clips: Path, model: Any, tmp_path: Path) -> Iterator[VideoIndex]:
    with VideoIndex.build(clips, model, tmp_path / "index") as built:
        yield built


def test_many_searches_equal_single_ones(index: VideoIndex, clips: Path) -> None:
    queries = ["red", "something green", 1, "blue"]
    where = [None, Filter(name="green*"), Filter(folder=clips / "deep"), None]
    together = index.search_many(queries, [4, 2, 3, 1], where)
    for query, k, condition, hits in zip(queries, (4, 2, 3, 1), where, together, strict=True):
        alone = index.search(query, k, condition)
        assert [hit.segment_id for hit in hits] == [hit.segment_id for hit in alone]
        assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in alone], abs=1e-5)
        assert (hits.total, hits.good, hits.no_good_match) == (alone.total, alone.good, alone.no_good_match)
    assert [hits.total for hits in together] == [4, 1, 1, 4]
    assert index.search_many([]) == []
    with pytest.raises(QueryError, match="empty"):
        index.search_many(["red", " "])


def test_a_vector_is_a_query(index: VideoIndex) -> None:
    red, blue = index.embed_texts(["red", "blue"])
    assert index.search(red).hits == index.search("red").hits
    mixed = red.vector + blue.vector
    hits = index.search(QueryVector(mixed / np.linalg.norm(mixed), True), k=2)
    assert {hit.path.name for hit in hits} == {"red.mp4", "blue.mkv"}
    video = hits[0].video_id
    assert index.scores_of(video, red)[0].score == pytest.approx(index.scores_of(video, "red")[0].score)


def test_good_counts_all_segments_and_not_only_the_hits(index: VideoIndex) -> None:
    every = index.search("red", k=10)
    assert every.good == sum(hit.score >= 0.5 for hit in every)
    assert index.search("red", k=1).good == every.good


def test_files_and_segments_are_found_by_id(index: VideoIndex, clips: Path) -> None:
    hit = index.search("red", k=1)[0]
    segment, video = index.segment(hit.segment_id), index.videos_by_id([hit.video_id])[0]
    assert segment is not None
    assert video is not None
    assert (segment.start, segment.end, video.path) == (hit.start, hit.end, hit.path)
    assert (video.size, int(video.modified.timestamp())) == (hit.path.stat().st_size, int(hit.path.stat().st_mtime))
    assert index.segment(999) is None
    assert index.videos_by_id([999]) == []
    assert index.scanned_folder == clips.resolve()
    lifts = index.lifts([hit.segment_id, 999], index.embed_texts(["red", "blue"]))
    assert lifts.shape == (2, 2)
    assert lifts[0, 0] > lifts[0, 1]
    assert lifts[1].tolist() == [0, 0]
