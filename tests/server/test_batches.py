"""Work in batches, and the bounds of what the server keeps in memory."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from evilm.search.query import Filter
from evilm.server import library as library_module
from evilm.server import schemas
from evilm.server import videos as videos_module
from evilm.server.batches import Batches, BusyError
from evilm.server.catalog import Catalog

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class Gate:
    """Doubles numbers once it is open; negative numbers fail."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.batches: list[list[int]] = []

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.open.wait(20)
        self.batches.append(list(items))
        if min(items) < 0:
            raise ValueError("negative")
        return [2 * item for item in items]


def held(waiting: int = 8, size: int = 4) -> tuple[Gate, Batches[int, int], Any]:
    """Batches whose thread is held up by a first item."""
    gate = Gate()
    batches = Batches(gate, "test", size, waiting)
    first = batches.submit(0)
    end = time.monotonic() + 20
    while not batches.batches and time.monotonic() < end:
        time.sleep(0.005)
    return gate, batches, first


def test_what_waits_is_done_together_and_in_order() -> None:
    gate, batches, first = held()
    futures = [batches.submit(number) for number in range(1, 7)]
    gate.open.set()
    assert [future.result(20) for future in (first, *futures)] == [0, 2, 4, 6, 8, 10, 12]
    assert gate.batches == [[0], [1, 2, 3, 4], [5, 6]]
    batches.close()
    assert (batches.items, batches.batches) == (7, 3)


def test_a_wrong_item_fails_alone_and_a_cancelled_one_is_not_done() -> None:
    gate, batches, _ = held()
    futures = [batches.submit(number) for number in (1, -1, 3, 4)]
    futures[3].cancel()
    gate.open.set()
    assert [futures[0].result(20), futures[2].result(20)] == [2, 6]
    with pytest.raises(ValueError, match="negative"):
        futures[1].result(20)
    batches.close()
    assert all(4 not in batch for batch in gate.batches)


def test_more_than_the_queue_holds_is_refused_and_closing_it_does_not_block() -> None:
    gate, batches, _ = held(waiting=3)
    futures = [batches.submit(number) for number in (1, 2, 3)]
    with pytest.raises(BusyError):
        batches.submit(4)
    began = time.monotonic()
    batches.close(0.1)  # the queue is full and the thread is held up
    assert time.monotonic() - began < 5
    with pytest.raises(BusyError):
        batches.submit(5)
    gate.open.set()
    assert [future.result(20) for future in futures] == [2, 4, 6], "what waits is still done"
    batches.close()
    batches.close()


@pytest.fixture
def catalog(world_index: Path) -> Iterator[Catalog]:
    opened = Catalog(world_index, None)
    yield opened
    opened.close()


def test_caches_are_bounded(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(videos_module, "KEPT", 5)
    monkeypatch.setattr(library_module, "VECTORS", 6)
    ids = [video.id for video in catalog.library.need().videos()]
    assert len(ids) > 20
    assert catalog.videos.get(ids).keys() == {*ids}, "also more than are kept"
    for number in ids:
        assert catalog.videos[number].video.id == number
        assert len(catalog.videos._shown) <= 5
    for words in ("red square", "blue circle moves left", "green ring", "white heart jumps twice"):
        body = schemas.SearchBody(text=words, limit=5)
        assert catalog.searches.submit((body, time.perf_counter())).result(30)
        assert len(catalog.library._vectors) <= 6
    for seconds in range(20):
        assert len(catalog.videos.listing(Filter(min_duration=seconds / 100), "date").ids)
    assert len(catalog.videos._listings) == videos_module.LISTINGS


@pytest.mark.slow
def test_the_load_of_the_benchmark_is_answered() -> None:
    """``benchmarks/serve.py``, short: 100,000 segments, more clients than the server answers at once."""
    program = Path(__file__).resolve().parents[2] / "benchmarks" / "serve.py"
    found: dict[int, Any] = {}
    for clients in (8, 256):
        words = [sys.executable, str(program), "--segments", "100000", "--clients", str(clients), "--seconds", "4"]
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True, timeout=200)
        found[clients] = json.loads(done.stdout)
    assert min(each["start_to_first_answer_s"] for each in found.values()) < 3
    assert [each["broken_connections"] for each in found.values()] == [0, 0]
    assert found[8]["statuses"].keys() == {"200"}
    assert found[256]["statuses"].keys() == {"200", "503"}
    assert found[256]["503_with_retry_after"] == found[256]["statuses"]["503"] > 0


def test_a_video_that_was_removed_is_left_out(catalog: Catalog) -> None:
    assert catalog.videos.get([10**9]) == {}
    with pytest.raises(videos_module.MissingError, match="no such video"):
        catalog.videos[10**9]


@pytest.mark.parametrize("body", [{"text": "red square"}, {"text": "red", "sort": "date"}, {}, {"sort": "name"}])
def test_answers_are_as_documented(site: Any, body: dict[str, Any]) -> None:
    answer = site.search(**body, limit=3)
    assert schemas.SearchOut.model_validate(answer, strict=True).model_dump() == answer
    assert answer.keys() == schemas.SearchOut.model_fields.keys()
    assert all(row.keys() == schemas.SegmentOut.model_fields.keys() for row in answer["hits"])
