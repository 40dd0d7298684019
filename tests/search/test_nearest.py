from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from evilm.errors import ConfigError
from evilm.search import nearest
from evilm.search.nearest import Exact, Faiss, Lance, check_backend, resolve_backend, top_k
from evilm.search.qdrant import Qdrant
from evilm.search.vectors import Vectors

if TYPE_CHECKING:
    from pathlib import Path


def unit_vectors(rows: int, width: int = 32, seed: int = 0) -> Vectors:
    vectors = np.random.default_rng(seed).standard_normal((rows, width), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    numbers = np.arange(rows, dtype=np.int64)
    return Vectors(1, numbers + 1, numbers // 3, vectors)


def oracle(vectors: Any, query: Any, k: int, allowed: Any = None) -> list[int]:
    """One by one, in Python's own floats."""
    scores = [(-sum(float(a) * float(b) for a, b in zip(row, query, strict=True)), i) for i, row in enumerate(vectors)]
    return [i for _, i in sorted(scores) if allowed is None or allowed[i]][:k]


@pytest.mark.parametrize(("rows", "k"), [(0, 3), (1, 3), (63, 10), (640, 1), (3000, 10), (3000, 200)])
def test_exact_equals_a_comparison_in_python(rows: int, k: int) -> None:
    found = unit_vectors(rows)
    query = unit_vectors(1, seed=9).matrix[0]
    allowed = np.arange(rows) % 3 == 1
    assert Exact(found.matrix).nearest(query, k)[0].tolist() == oracle(found.matrix, query, k)
    assert Exact(found.matrix).nearest(query, k, allowed)[0].tolist() == oracle(found.matrix, query, k, allowed)


def test_ties_come_in_order_of_rows() -> None:
    scores = np.zeros(1000, np.float32)
    scores[[700, 200]] = 1
    assert top_k(scores, 4).tolist() == [200, 700, 0, 1]
    assert top_k(scores, 0).tolist() == []


@pytest.mark.parametrize("name", ["faiss", pytest.param("lance", marks=pytest.mark.slow), "qdrant"])
def test_other_backends_agree_with_exact(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec({"faiss": "faiss", "lance": "lancedb", "qdrant": "qdrant_client"}[name]) is None:
        pytest.skip(f"the extra [{name}] is not installed")
    kind = {"faiss": Faiss, "lance": Lance, "qdrant": Qdrant}[name]
    found = unit_vectors(2000)
    exact = Exact(found.matrix)
    monkeypatch.delenv("EVILM_QDRANT_URL", raising=False)
    allowed, most = np.arange(2000) % 7 == 0, np.arange(2000) % 3 > 0
    if name != "faiss":
        monkeypatch.setattr(importlib.import_module(kind.__module__), "LISTED", 1000)  # `most` is filtered afterwards
    for _ in range(2):  # built, then read from its cache
        other = kind.open(found, tmp_path, "identity")
        for seed in range(3):
            query = unit_vectors(1, seed=100 + seed).matrix[0]
            for only in (None, allowed, most, np.zeros(2000, np.bool_)):
                rows, cosines = exact.nearest(query, 10, only)
                theirs, their_cosines = other.nearest(query, 10, only)
                assert theirs.tolist() == rows.tolist()
                assert their_cosines == pytest.approx(cosines, abs=1e-5)
    grown = unit_vectors(2100, seed=5)
    query = grown.matrix[2050]
    assert kind.open(Vectors(2, *list(vars(grown).values())[1:]), tmp_path, "identity").nearest(query, 1)[0][0] == 2050


def test_a_damaged_faiss_cache_is_rebuilt(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    found = unit_vectors(500)
    Faiss.open(found, tmp_path, "identity")
    path = tmp_path / "faiss.cache"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    again = Faiss.open(found, tmp_path, "identity")
    assert again.nearest(found.matrix[7], 1)[0].tolist() == [7]
    assert path.read_bytes() != data


def test_auto_takes_faiss_for_many_vectors_if_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    there = importlib.util.find_spec("json")
    monkeypatch.setattr(nearest.importlib.util, "find_spec", lambda _: there)
    rows = nearest.EXACT_LIMIT // 256
    assert resolve_backend("auto", rows, 256) == "exact"
    assert resolve_backend("auto", rows + 1, 256) == "faiss"
    assert resolve_backend("auto", 0, 256) == "exact"
    assert resolve_backend("exact", 10 * rows, 256) == "exact"
    assert resolve_backend("lance", 1, 256) == "lance"
    monkeypatch.setattr(nearest.importlib.util, "find_spec", lambda _: None)
    assert resolve_backend("auto", 10 * rows, 256) == "exact"


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(ConfigError, match="choose one of auto, exact, faiss, lance"):
        check_backend("pinecone")
