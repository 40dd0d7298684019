from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from evilm.errors import ConfigError
from evilm.search import cache, nearest, nearest_codes
from evilm.search.nearest import Exact, best, store_named
from evilm.search.vectors import Vectors

if TYPE_CHECKING:
    from pathlib import Path


def matrix(rows: int, width: int = 32, seed: int = 0) -> Vectors:
    vectors = np.random.default_rng(seed).standard_normal((rows, width), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    numbers = np.arange(rows, dtype=np.int64)
    return Vectors(1, numbers + 1, numbers // 3, vectors)


def oracle(vectors: Any, query: Any, k: int, allowed: Any = None) -> list[int]:
    """One by one, in Python's own floats."""
    scores = [(-sum(float(a) * float(b) for a, b in zip(row, query, strict=True)), i) for i, row in enumerate(vectors)]
    return [i for _, i in sorted(scores) if allowed is None or allowed[i]][:k]


@pytest.mark.parametrize(("rows", "k"), [(0, 3), (1, 3), (63, 10), (640, 1), (3000, 10), (3000, 200)])
def test_exact_is_the_oracle(rows: int, k: int) -> None:
    found = matrix(rows)
    query = matrix(1, seed=9).vectors[0]
    allowed = np.arange(rows) % 3 == 1
    assert Exact(found.vectors).nearest(query, k)[0].tolist() == oracle(found.vectors, query, k)
    assert Exact(found.vectors).nearest(query, k, allowed)[0].tolist() == oracle(found.vectors, query, k, allowed)


def test_ties_come_in_order_of_rows() -> None:
    scores = np.zeros(1000, np.float32)
    scores[[700, 200]] = 1
    assert best(scores, 4).tolist() == [200, 700, 0, 1]
    assert best(scores, 0).tolist() == []


@pytest.mark.parametrize("store", ["faiss", pytest.param("lance", marks=pytest.mark.slow)])
def test_other_stores_agree_with_exact(store: str, tmp_path: Path) -> None:
    if importlib.util.find_spec({"faiss": "faiss", "lance": "lancedb"}[store]) is None:
        pytest.skip(f"the extra [{store}] is not installed")
    module = importlib.import_module(f"evilm.search.ranking_{store}")
    kind = module.Faiss if store == "faiss" else module.Lance
    found = matrix(2000)
    exact = Exact(found.vectors)
    allowed = np.arange(2000) % 7 == 0
    for _ in range(2):  # made, then from its cache
        other = kind.over(found, tmp_path, "identity")
        for seed in range(3):
            query = matrix(1, seed=100 + seed).vectors[0]
            for only in (None, allowed):
                rows, cosines = exact.nearest(query, 10, only)
                theirs, their_cosines = other.nearest(query, 10, only)
                assert theirs.tolist() == rows.tolist()
                assert their_cosines == pytest.approx(cosines, abs=1e-5)
    grown = matrix(2100, seed=5)
    query = grown.vectors[2050]
    assert kind.over(Vectors(2, *list(vars(grown).values())[1:]), tmp_path, "identity").nearest(query, 1)[0][0] == 2050


def alike(rows: int, width: int, spread: float) -> Vectors:
    """Vectors close to one another, some of them equal: where 8 bits tell least."""
    random = np.random.default_rng(3)
    vectors = random.standard_normal(width) + spread * random.standard_normal((rows, width))
    vectors[rows // 2 : rows // 2 + 20] = vectors[5]
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return Vectors(4, *np.arange(2 * rows, dtype=np.int64).reshape(2, rows), vectors)


@pytest.mark.parametrize(
    "found", [matrix(3001, 48), matrix(700, 7), alike(3000, 64, 0.3), alike(3000, 64, 1e-3), matrix(3, 5), matrix(0)],
    ids=["random", "narrow", "alike", "hardly different", "three", "none"],
)  # fmt: skip
def test_codes_leave_out_none_of_the_nearest(found: Vectors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By their bound alone, whatever the vectors; in memory and from the file."""
    monkeypatch.setattr(nearest_codes, "_BLOCK", 1024)
    monkeypatch.setattr(nearest_codes, "_PIECE", 100)
    vectors, width = found.vectors, found.vectors.shape[1]
    assert nearest_codes.Coded.over(found, tmp_path, "identity") is None
    assert nearest_codes.save(tmp_path, "identity", found)
    kept = nearest_codes.Coded.over(found, tmp_path, "identity")
    assert kept is not None
    made, exact, rows = nearest_codes.Coded.of(vectors), Exact(vectors), np.arange(len(vectors))
    for seed in range(12):
        query = vectors[5] if seed == 0 and len(vectors) > 5 else matrix(1, width, 50 + seed).vectors[0]
        if seed == 1:
            query = np.eye(width, dtype=np.float32)[0]
        for k in (1, 10, 200):
            for allowed in (None, rows % 3 == 1):
                wanted, cosines = exact.nearest(query, k, allowed)
                for coded in (kept, made):
                    theirs, their_cosines = coded.nearest(query, k, allowed)
                    assert their_cosines == pytest.approx(cosines, abs=1e-6)
                    np.testing.assert_allclose((vectors @ query)[theirs], cosines, atol=1e-6)
                    assert {*wanted[cosines > cosines[-1:] + 1e-6]} <= {*theirs}


def test_codes_leave_out_nearly_all_others() -> None:
    """Else they would gain nothing: of random vectors, less than a hundredth are looked at again."""
    found = matrix(50_000, 256)
    coded = nearest_codes.Coded.of(found.vectors)
    assert all(len(coded.candidates(matrix(1, 256, seed).vectors[0], 10)) < 500 for seed in range(20, 25))


def test_codes_of_other_rows_and_damaged_ones_are_not_taken(tmp_path: Path) -> None:
    found = matrix(500)
    nearest_codes.save(tmp_path, "identity", found)
    path, other = tmp_path / nearest_codes.NAME, matrix(500, seed=1)
    assert nearest_codes.Coded.over(found, tmp_path, "another") is None
    assert nearest_codes.Coded.over(Vectors(2, *list(vars(other).values())[1:]), tmp_path, "identity") is None
    data = bytearray(path.read_bytes())
    for at in (100, len(data) // 2, len(data) - 4096, len(data) - 1):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        assert nearest_codes.Coded.over(found, tmp_path, "identity") is None, at
    for size in (0, 10, 4096, len(data) - 1):
        path.write_bytes(data[:size])
        assert nearest_codes.Coded.over(found, tmp_path, "identity") is None, size


def test_the_graph_is_what_onnx_reads() -> None:
    onnx = pytest.importorskip("onnx")
    graph = onnx.load_model_from_string(nearest_codes._graph())
    onnx.checker.check_model(graph)
    assert [node.op_type for node in graph.graph.node] == ["MatMulInteger"]


def test_a_damaged_faiss_cache_is_made_anew(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    from evilm.search import nearest_faiss

    found = matrix(500)
    nearest_faiss.Faiss.over(found, tmp_path, "identity")
    path = tmp_path / nearest_faiss.NAME
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    again = nearest_faiss.Faiss.over(found, tmp_path, "identity")
    assert again.nearest(found.vectors[7], 1)[0].tolist() == [7]
    assert path.read_bytes() != data


def test_many_vectors_are_faiss_matter_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    there = importlib.util.find_spec("json")
    monkeypatch.setattr(nearest.importlib.util, "find_spec", lambda _: there)
    rows = nearest.LARGE // 256
    assert nearest.chosen("auto", rows, 256) == "exact"
    assert nearest.chosen("auto", rows + 1, 256) == "faiss"
    assert nearest.chosen("auto", 0, 256) == "exact"
    assert nearest.chosen("exact", 10 * rows, 256) == "exact"
    assert nearest.chosen("lance", 1, 256) == "lance"
    monkeypatch.setattr(nearest.importlib.util, "find_spec", lambda _: None)
    assert nearest.chosen("auto", 10 * rows, 256) == "exact"


def test_a_file_is_whole_or_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "some.cache"
    assert cache.write(path, [b"one", memoryview(b" two")])
    assert path.read_bytes() == b"one two"

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.os, "fsync", full)
    assert not cache.write(path, [b"three"])
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("some.cache", b"one two")]


def test_an_unknown_store_is_named() -> None:
    with pytest.raises(ConfigError, match="there are auto, exact, faiss, lance"):
        store_named("pinecone")
