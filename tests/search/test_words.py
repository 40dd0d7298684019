"""Words of a segment: those that it has more than other segments, the query's first, computed once for a model."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from evilm import cli
from evilm.search import words
from evilm.search.index import VideoIndex
from evilm.search.words import Words

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def unit(*values: float) -> np.ndarray:
    vector = np.array(values, np.float32)
    return vector / np.linalg.norm(vector)


def test_words_that_fit_every_segment_count_less_and_those_of_the_query_come_first() -> None:
    """Worked out by hand: 'room' has the highest cosine, and has it everywhere."""
    known = Words(("room", "sofa", "dog", "doggy", "lamp"), np.eye(5, dtype=np.float32))
    segment, query = unit(5, 4, 3.9, 3.8, 0), unit(0, 0, 1, 0, 0)
    means = np.array([0.6, 0.1, 0.1, 0.1, 0.1], np.float32)
    assert known.explain(segment[None], unit(1, 1, 1, 1, 1), means) == [("sofa", "dog")], "doggy is like dog"
    assert known.explain(segment[None], query, np.zeros(5, np.float32))[0][0] == "room", "one word is not yet far"
    many = Words(("dog", *(f"w{i}" for i in range(9)), "sofa"), np.eye(11, dtype=np.float32))
    looked_for = many.explain(unit(3.5, *[0] * 9, 4)[None], unit(1, *[0] * 10), np.zeros(11, np.float32))
    assert looked_for == [("dog", "sofa")]
    assert many.explain(unit(1, *[0] * 9, 4)[None], unit(1, *[0] * 10), np.zeros(11, np.float32)) == [("sofa",)]


def test_a_small_index_has_no_means() -> None:
    known = Words(("red", "blue"), np.eye(2, dtype=np.float32))
    assert known.means(np.ones((7, 2), np.float32)).tolist() == [0, 0]
    assert known.means(np.ones((8, 2), np.float32)).tolist() == [1, 1]
    assert Words((), np.zeros((0, 1), np.float32)).explain(np.ones((2, 3), np.float32), unit(1, 1, 1), np.zeros(0)) == [
        (), (),
    ]  # fmt: skip


def test_hits_tell_words_which_are_embedded_once(clips: Path, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "_known", lambda _: ["red", "green", "blue", "yellow", "house"])
    index = VideoIndex.build(clips, model)
    assert (index.folder / words.NAME).is_file(), "written when the index is made"
    asked = list[str]()
    embed = model.embed_texts
    monkeypatch.setattr(model, "embed_texts", lambda texts: asked.extend(texts) or embed(texts))
    for hit in index.search("red", 4):
        assert hit.words[0] == hit.path.name.split(".")[0]
    assert asked == ["red"], "only the query was embedded"
    assert index.search_many(["blue", clips / "red.mp4"], 1)[1][0].words[0] == "red"
    (index.folder / words.NAME).write_bytes(b"damaged")
    assert VideoIndex.open(index.folder, model).search("green", 1)[0].words[0] == "green"


def test_a_model_of_another_world_has_its_own_words(tmp_path: Path) -> None:
    import evilm

    found = words.of_model(evilm.load("world-tiny", threads=1), tmp_path)
    assert {"red", "circle", "spins"} <= set(found.names)
    assert not {"kitchen", "the", "##s"} & set(found.names)
    assert len(found.names) == len(found.vectors)
    again = words.of_model(evilm.load("world-tiny", threads=1), tmp_path)
    assert np.allclose(again.vectors, found.vectors, atol=1e-3)


def test_the_command_shows_them(clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = clips.parent / "index"
    assert cli.run(["index", str(clips), str(index), "--model", "world-tiny"]) == 0
    capsys.readouterr()
    assert cli.run(["search", str(index), "a red circle", "-k", "1"]) == 0
    printed = capsys.readouterr().out.strip().splitlines()[-1]
    assert cli.run(["search", str(index), "a red circle", "-k", "1", "--json"]) == 0
    [hit] = json.loads(capsys.readouterr().out)["hits"]
    assert hit["why"]
    assert printed.endswith(f"({', '.join(hit['why'])})")
