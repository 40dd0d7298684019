"""Ranks, recalls, codebook use and precision, against numbers by hand and against every order a tie could take."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest

from evilm import metrics


def enumerated(scores: np.ndarray, relevant: np.ndarray, k: int) -> tuple[float, float]:
    """Mean rank of the first relevant candidate, and share with one in the first ``k``, over all orders of ties."""
    ranks = []
    for order in permutations(range(len(scores))):
        ranked = sorted(order, key=lambda j: -scores[j])  # stable: ties stay in the order that is being tried
        ranks.append(next(i for i, j in enumerate(ranked, 1) if relevant[j]))
    return float(np.mean(ranks)), float(np.mean([rank <= k for rank in ranks]))


@pytest.mark.parametrize("seed", range(40))
def test_ranks_and_hits_are_the_mean_over_all_orders_of_ties(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 3, size=(1, 6)).astype(float)
    relevant = rng.random((1, 6)) < 0.4
    relevant[0, rng.integers(6)] = True
    for k in (1, 2, 5):
        rank, hit = enumerated(scores[0], relevant[0], k)
        assert metrics.ranks(scores, relevant)[0] == pytest.approx(rank)
        assert metrics.hits(scores, relevant, k)[0] == pytest.approx(hit)


def test_ranks_by_hand() -> None:
    scores = np.array([[0.9, 0.5, 0.1], [0.9, 0.5, 0.1], [0.1, 0.5, 0.9], [0.5, 0.5, 0.1]])
    assert metrics.ranks(scores, np.tile([True, False, False], (4, 1))).tolist() == [1, 1, 3, 1.5]
    found = metrics.retrieval(scores, np.tile([True, False, False], (4, 1)))
    assert found == {"R@1": 62.5, "R@5": 100.0, "R@10": 100.0, "MdR": 1.25}


def test_several_relevant_candidates_count_by_the_best() -> None:
    scores = np.array([[0.1, 0.2, 0.3, 0.4]])
    assert metrics.ranks(scores, np.array([[True, False, True, False]])).tolist() == [2]


def test_a_query_without_an_answer_is_missed_and_ranks_behind_all() -> None:
    scores, relevant = np.array([[0.3, 0.2, 0.1]]), np.zeros((1, 3), dtype=bool)
    assert metrics.ranks(scores, relevant).tolist() == [4]
    assert metrics.retrieval(scores, relevant)["R@10"] == 0


def test_constant_scores_are_chance_and_not_perfect() -> None:
    relevant = np.eye(100, dtype=bool)
    found = metrics.retrieval(np.full((100, 100), 0.7), relevant)
    assert found["R@1"] == pytest.approx(1.0)
    assert found["R@5"] == pytest.approx(5.0)
    assert found["R@10"] == pytest.approx(10.0)
    assert found["MdR"] == pytest.approx(50.5)
    assert metrics.chance_retrieval(relevant) == pytest.approx(found)


def test_chance_with_several_relevant_is_hypergeometric() -> None:
    relevant = np.zeros((1, 20), dtype=bool)
    relevant[0, :4] = True
    found = metrics.chance_retrieval(relevant)
    assert found["R@1"] == pytest.approx(100 * 4 / 20)
    assert found["R@5"] == pytest.approx(100 * (1 - math.comb(16, 5) / math.comb(20, 5)))
    assert found["R@10"] == pytest.approx(100 * (1 - math.comb(16, 10) / math.comb(20, 10)))


def test_chance_is_what_random_scores_get() -> None:
    rng = np.random.default_rng(0)
    relevant = rng.random((30, 30)) < 0.07
    drawn = np.mean([metrics.retrieval(rng.random((30, 30)), relevant)["R@5"] for _ in range(400)])
    assert drawn == pytest.approx(metrics.chance_retrieval(relevant)["R@5"], abs=1.5)


def test_a_score_that_is_no_number_ranks_last() -> None:
    scores = np.array([[float("nan"), 0.1, 0.2], [0.3, float("nan"), 0.2]])
    assert metrics.ranks(scores, np.tile([True, False, False], (2, 1))).tolist() == [3, 1]


def test_accuracy() -> None:
    assert metrics.accuracy([True, False, True, True]) == 75
    assert metrics.accuracy([]) == 0


def test_usage_and_perplexity_by_hand() -> None:
    assert metrics.usage(np.array([3, 0, 1, 0])) == 0.5
    assert metrics.perplexity(np.array([5, 5, 5, 5])) == pytest.approx(4)
    assert metrics.perplexity(np.array([7, 0, 0, 0])) == pytest.approx(1)
    # Shares 1/2, 1/4, 1/4: entropy 1.5 log 2.
    assert metrics.perplexity(np.array([2, 1, 1, 0])) == pytest.approx(2**1.5)
    assert metrics.perplexity(np.array([0, 0])) == 0


def test_mean_average_precision_by_hand() -> None:
    scores = np.array([[0.9, 0.1, 5.0], [0.8, 0.2, 5.0], [0.7, 0.3, 5.0], [0.6, 0.4, 5.0]])
    present = np.array([[1, 0, 0], [0, 0, 0], [1, 1, 0], [0, 0, 0]], dtype=bool)
    # First word: right at 1 and 3, so (1/1 + 2/3) / 2. Second: right at 2, so 1/2. The third occurs nowhere.
    assert metrics.mean_average_precision(scores, present) == pytest.approx(((1 + 2 / 3) / 2 + 1 / 2) / 2)
    assert metrics.mean_average_precision(scores, np.zeros((4, 3), dtype=bool)) == 0


def test_mean_average_precision_does_not_depend_on_the_order_of_tied_rows() -> None:
    rng = np.random.default_rng(0)
    scores, present = rng.integers(0, 4, (50, 6)).astype(float), rng.random((50, 6)) < 0.2
    value = metrics.mean_average_precision(scores, present)
    for _ in range(5):
        order = rng.permutation(50)
        assert metrics.mean_average_precision(scores[order], present[order]) == pytest.approx(value, abs=1e-12)
    constant = np.zeros((50, 6))
    assert metrics.mean_average_precision(constant, present) == pytest.approx(present.mean(0)[present.any(0)].mean())


def test_mean_average_precision_equals_scikit_learn() -> None:
    oracle = pytest.importorskip("sklearn.metrics").average_precision_score
    rng = np.random.default_rng(3)
    for levels in (2, 5, 1000):
        scores, present = rng.integers(0, levels, (80, 12)) / levels, rng.random((80, 12)) < 0.15
        words = np.flatnonzero(present.any(0))
        wanted = np.mean([oracle(present[:, k], scores[:, k]) for k in words])
        assert metrics.mean_average_precision(scores, present) == pytest.approx(wanted, abs=1e-12)


def test_an_interval_holds_the_mean_and_narrows_with_the_sample() -> None:
    rng = np.random.default_rng(1)
    few, many = rng.random(40) < 0.3, rng.random(4000) < 0.3
    low, high = metrics.interval(few.astype(float))
    assert low < few.mean() < high
    narrow = metrics.interval(many.astype(float))
    assert narrow[1] - narrow[0] == pytest.approx(2 * 1.96 * math.sqrt(0.3 * 0.7 / 4000), rel=0.15)
    assert metrics.interval(few.astype(float)) == (low, high)
    assert metrics.interval([1.0, 1.0]) == (1.0, 1.0)
    assert metrics.interval([]) == (0.0, 0.0)


def test_an_interval_covers_the_truth_19_times_of_20() -> None:
    rng = np.random.default_rng(2)
    inside = 0
    for _ in range(200):
        low, high = metrics.interval((rng.random(200) < 0.4).astype(float), draws=300)
        inside += low <= 0.4 <= high
    assert 0.90 <= inside / 200 <= 0.99


def test_abstention_stops_where_wrong_answers_begin_to_outweigh_right_ones() -> None:
    shares, right = np.array([0.5, 0.9, 0.3, 0.8, 0.6]), np.array([False, True, False, True, False])
    assert metrics.abstention(shares, right) == (pytest.approx(0.7), 40.0, 100.0)
    assert metrics.abstention(shares, np.ones(5, bool)) == (0.0, 100.0, 100.0)
    equal, told = np.array([0.9, 0.5, 0.5, 0.5]), np.array([False, True, True, True])
    assert metrics.abstention(equal, told) == (0.0, 100.0, 75.0), "equal shares are given or withheld together"


def test_class_accuracy_by_hand() -> None:
    """Three clips of class 0, two right; one of class 1, wrong: accuracy 2/4, balanced (2/3 + 0) / 2."""
    scores = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.7, 0.3]])
    classes = np.array([0, 0, 0, 1])
    assert metrics.class_accuracy(scores, classes) == (pytest.approx(50), pytest.approx(100 / 3))
    assert metrics.class_accuracy(np.zeros((4, 2)), classes) == (50, 50), "ties are broken at random"
    assert metrics.class_accuracy(np.full((4, 2), -np.inf), classes) == (0, 0), "an unreadable clip is wrong"


@pytest.mark.parametrize("count", [2, 3, 5, 10, 11, 20, 60])
def test_the_interval_of_seeds_is_that_of_students_t(count: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(count).normal(30, 2, count)
    low, high = metrics.interval_of_seeds(values.tolist())
    wanted = stats.t.interval(0.95, count - 1, loc=values.mean(), scale=stats.sem(values))
    assert (low, high) == pytest.approx(wanted, abs=3e-3)
