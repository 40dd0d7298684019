"""Retrieval in blocks equals retrieval of the whole matrix to the last bit, ties and unreadable videos included."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from evilm import metrics
from evilm.tasks import ranking

BLOCKS = [(1024, 8192), (1, 1), (3, 5), (7, 2), (16, 64)]


def embedded(seed: int, count: int, width: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors in float32, with equal rows and equal columns among them."""
    rng = np.random.default_rng(seed)
    texts, videos = rng.standard_normal((2, count, width)).astype(np.float32)
    videos = videos * 0.5 + texts
    videos[rng.integers(0, count, count // 3)] = videos[0]
    texts[rng.integers(0, count, count // 3)] = texts[1]
    length = np.linalg.norm
    return texts / length(texts, axis=1, keepdims=True), videos / length(videos, axis=1, keepdims=True)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("seed", range(4))
def test_blocks_change_no_bit(seed: int, block: tuple[int, int]) -> None:
    rng = np.random.default_rng(seed)
    texts, videos = embedded(seed, 37)
    labels = rng.integers(0, 20, 37)  # several right videos for some texts
    readable = rng.random(37) < 0.9
    scores, every = ranking.cosines(texts, videos), np.arange(37)
    whole = np.where(readable, scores(every, every), -np.inf)
    right = (labels[:, None] == labels) & readable
    found = ranking.rank(scores, ranking.SameLabel(labels, labels), (37, 37), readable, block=block)
    for counts, reference in (
        (found.rows, metrics.count(whole, right)),
        (found.columns, metrics.count(whole.T, right.T)),
    ):
        assert counts.retrieval() == reference.retrieval()
        assert counts.ranks.tolist() == reference.ranks.tolist()
        assert all(counts.hits(k).tolist() == reference.hits(k).tolist() for k in (1, 5, 10))
    order = np.argsort(-whole, axis=1, kind="stable")[:, :10]
    assert found.first.tolist() == order.tolist()
    assert metrics.chance_counts(found.relevant_columns, 37).retrieval() == metrics.chance_retrieval(
        labels[:, None] == labels
    )
    same = ranking.rank(scores, ranking.Matrix(labels[:, None] == labels), (37, 37), readable, block=block)
    assert same.rows.ranks.tolist() == found.rows.ranks.tolist()


@pytest.mark.parametrize("block", BLOCKS)
def test_constant_scores_are_chance_in_blocks(block: tuple[int, int]) -> None:
    ones = np.full((20, 4), 0.5)
    every = np.arange(20)
    found = ranking.rank(ranking.cosines(ones, ones), ranking.SameLabel(every, every), (20, 20), block=block)
    assert found.rows.retrieval() == found.columns.retrieval() == metrics.chance_retrieval(np.eye(20, dtype=bool))
    assert found.first.tolist() == [list(range(10))] * 20


def test_a_cosine_is_the_same_number_in_every_block() -> None:
    texts, videos = embedded(0, 70, 512)
    scores, every = ranking.cosines(texts, videos), np.arange(70)
    whole = scores(every, every)
    assert all(scores(every[i : i + 1], every[j : j + 1])[0, 0] == whole[i, j] for i in range(70) for j in range(70))
    assert np.abs(whole - texts.astype(np.float64) @ videos.T.astype(np.float64)).max() < 3e-7


def test_a_score_that_is_no_number_ranks_last() -> None:
    values = np.array([[np.nan, 0.1, 0.2], [0.3, 0.1, np.nan], [0.1, 0.2, 0.3]])
    found = ranking.rank(ranking.of_matrix(values), ranking.Matrix(np.eye(3, dtype=bool)), (3, 3))
    assert found.rows.ranks.tolist() == metrics.ranks(values, np.eye(3, dtype=bool)).tolist() == [3, 2, 1]
    assert found.first.tolist() == [[2, 1, -1], [0, 1, -1], [2, 1, 0]]


def test_dual_softmax_equals_its_definition() -> None:
    texts, videos = embedded(3, 600, 16)
    scores, every = ranking.cosines(texts, videos), np.arange(600)
    plain = scores(every, every)
    shares = np.exp(plain / 0.05) / np.exp(plain / 0.05).sum(0)
    found = ranking.dual_softmax(scores, 600, 600, 0.05)
    assert np.allclose(found(every, every), plain * shares, rtol=1e-9)
    assert found(every[5:9], every[7:8]).tolist() == found(every, every)[5:9, 7:8].tolist()


@pytest.mark.parametrize("seed", range(5))
def test_recalls_equal_torchmetrics(seed: int) -> None:
    oracle = pytest.importorskip("torchmetrics.functional.retrieval").retrieval_hit_rate
    import torch

    rng = np.random.default_rng(seed)
    scores, relevant = rng.random((30, 25)), rng.random((30, 25)) < 0.1
    relevant[:, 0] |= ~relevant.any(1)
    for k in (1, 5, 10):
        rows = [float(oracle(torch.tensor(s), torch.tensor(r), top_k=k)) for s, r in zip(scores, relevant, strict=True)]
        assert metrics.hits(scores, relevant, k).tolist() == rows


def test_tied_recalls_are_the_mean_of_torchmetrics_over_all_orders() -> None:
    oracle = pytest.importorskip("torchmetrics.functional.retrieval").retrieval_hit_rate
    import torch

    rng = np.random.default_rng(7)
    for _ in range(3):
        scores, relevant = rng.integers(0, 2, 5).astype(float), np.eye(5, dtype=bool)[rng.integers(5)]
        for k in (1, 2):
            rows = [
                float(oracle(torch.tensor(scores) + 1e-6 * torch.tensor(order), torch.tensor(relevant), top_k=k))
                for order in permutations(range(5))
            ]
            assert metrics.hits(scores[None], relevant[None], k)[0] == pytest.approx(np.mean(rows), abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_accuracies_equal_scikit_learn(seed: int) -> None:
    oracle = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(seed)
    scores, classes = rng.random((200, 7)), rng.integers(0, 7, 200)
    accuracy, balanced = metrics.class_accuracy(scores, classes)
    assert accuracy == 100 * oracle.accuracy_score(classes, scores.argmax(1))
    assert balanced == pytest.approx(100 * oracle.balanced_accuracy_score(classes, scores.argmax(1)), abs=1e-12)
    assert metrics.accuracy(scores.argmax(1) == classes) == accuracy
    top5 = metrics.hits(scores, np.eye(7, dtype=bool)[classes], 5).mean()
    assert top5 == oracle.top_k_accuracy_score(classes, scores, k=5)


def test_perplexity_equals_scipy() -> None:
    entropy = pytest.importorskip("scipy.stats").entropy
    counts = np.random.default_rng(0).integers(0, 9, 64)
    assert metrics.perplexity(counts) == pytest.approx(np.exp(entropy(counts)), rel=1e-12)
