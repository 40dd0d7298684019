from __future__ import annotations

import numpy as np
import pytest

from evilm.search.calibration import (
    UNKNOWN,
    UNRELATED,
    Calibration,
    fit,
    from_background,
    from_labels,
    lifts,
    sample_rows,
)


def test_labels_put_half_between_right_and_wrong() -> None:
    rng = np.random.default_rng(0)
    right, wrong = rng.normal(0.7, 0.05, 200), rng.normal(0.4, 0.05, 200)
    found = fit(right, wrong)
    assert found.centre == pytest.approx(0.55, abs=0.02)
    assert found.right is not None
    assert found.right > 0.98
    assert found.origin == "labels"


def test_scores_are_probabilities() -> None:
    """Cosines of two normal distributions: of the hits with a score near p, a share p is right."""
    rng = np.random.default_rng(1)
    right, wrong = rng.normal(0.5, 0.1, 20_000), rng.normal(0.4, 0.1, 20_000)
    found = fit(right[:10_000], wrong[:10_000])
    held_out, truth = np.concatenate([right[10_000:], wrong[10_000:]]), np.repeat([1.0, 0.0], 10_000)
    scores = found.score(held_out)
    for low in (0.2, 0.4, 0.6, 0.8):
        some = (scores >= low) & (scores < low + 0.1)
        assert truth[some].mean() == pytest.approx(scores[some].mean(), abs=0.04)


def test_labels_that_do_not_overlap_stay_finite() -> None:
    found = fit(np.full(3, 0.9), np.full(3, 0.1))
    assert np.isfinite([found.centre, found.slope]).all()
    assert 0.1 < found.centre < 0.9


def test_labels_that_do_not_separate_give_a_flat_curve() -> None:
    rng = np.random.default_rng(2)
    found = fit(rng.normal(0.3, 0.1, 500), rng.normal(0.6, 0.1, 500))
    assert found.slope == pytest.approx(1e-3)


def test_labels_choose_cosines_or_lifts_by_which_separates_better() -> None:
    rng = np.random.default_rng(6)
    apart, alike = (rng.normal(3.0, 0.2, 50), rng.normal(2.0, 0.2, 40)), (np.full(50, 0.8), np.full(40, 0.8))
    by_lift = from_labels((alike[0], apart[0]), (alike[1], apart[1]))
    assert by_lift.lift_centre == pytest.approx(2.5, abs=0.1)
    assert by_lift.right is not None
    assert by_lift.right > 0.95
    # A query whose cosines with the sample have mean 0.1 and standard deviation 0.1: cosines 0.4, 0.3 are lifts 3, 2.
    sample, query = np.array([[0.2, 0.0], [0.0, 0.2]], dtype=np.float32), np.array([1.0, 0.0], dtype=np.float32)
    assert by_lift.score(np.array([0.4, 0.3]), query, sample) == pytest.approx([1.0, 0.0], abs=0.05)
    by_cosine = from_labels((apart[0] / 10, alike[0]), (apart[1] / 10, alike[1]))
    assert by_cosine.centre == pytest.approx(0.25, abs=0.01)
    assert by_cosine.lift_centre is None


def test_unrelated_sentences_that_do_occur_change_little() -> None:
    """Queries in their own directions find little; a tenth of them that really occur move the line hardly at all."""
    rng = np.random.default_rng(3)
    vectors, queries = rng.standard_normal((2000, 64)), rng.standard_normal((40, 64))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    plain = from_background(queries.astype(np.float32), vectors.astype(np.float32))
    vectors[:4] = queries[:4]
    mixed = from_background(queries.astype(np.float32), vectors.astype(np.float32))
    assert mixed.centre == pytest.approx(plain.centre, abs=0.05)
    assert plain.score(np.array([1.0]))[0] > 0.99  # one that is there
    assert plain.score((vectors[4:] @ queries[5]).max(keepdims=True))[0] < 0.5  # the best of what is not


def test_lifts_by_hand() -> None:
    among = np.array([[1.0, 0.0], [0.0, 1.0]], dtype=np.float32)
    query = np.array([0.6, 0.2], dtype=np.float32)  # cosines 0.6 and 0.2: mean 0.4, standard deviation 0.2
    assert lifts(np.array([0.8, 0.4, 0.2]), query, among) == pytest.approx([2.0, 0.0, -1.0], abs=1e-5)
    both = lifts(np.array([0.8, 1.0]), np.stack([query, among[0]]), among)  # 1 and 0: mean 0.5, deviation 0.5
    assert both == pytest.approx([2.0, 1.0], abs=1e-5)


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def test_high_lifts_are_good_though_all_cosines_are_similar() -> None:
    """A small model: how high a search's cosines are depends on its words more than on what is there."""
    rng = np.random.default_rng(4)
    common = 3.0 * np.eye(64)[0]

    def texts(count: int) -> np.ndarray:
        return unit(common * rng.uniform(0.2, 1.5, (count, 1)) + 0.2 * rng.standard_normal((count, 64)))

    unrelated, asked = texts(40), texts(50)
    own = asked - asked[:, :1] * np.eye(64)[0]  # what is particular to each text
    there = unit(common + 0.1 * rng.standard_normal((50, 64)) + 0.7 * unit(own))
    vectors = np.concatenate([unit(common + 0.2 * rng.standard_normal((500, 64))), there])
    line = from_background(unrelated, vectors)
    few = sample_rows(vectors)

    def good(queries: np.ndarray) -> tuple[float, float]:
        best = (vectors @ queries.T).max(0)
        scores = [line.score(np.array([c]), q, few)[0] for c, q in zip(best, queries, strict=True)]
        return float((line.score(best) >= 0.5).mean()), float((np.array(scores) >= 0.5).mean())

    by_cosine, by_both = good(asked)
    assert by_both > 0.8
    assert by_cosine < 0.5
    assert good(texts(200))[1] < 0.2  # what is not there


def test_a_folder_where_everything_matches_is_good() -> None:
    """Nothing stands out there, but the cosines are higher than any unrelated search finds."""
    rng = np.random.default_rng(5)
    theme = unit(rng.standard_normal(64))
    vectors = unit(theme + 0.05 * rng.standard_normal((500, 64)))
    line = from_background(unit(rng.standard_normal((40, 64))), vectors)
    best = (vectors @ theme).max(keepdims=True)
    assert line.score(best, theme, sample_rows(vectors))[0] > 0.5


def test_too_few_vectors_give_the_guess() -> None:
    assert from_background(np.eye(4, dtype=np.float32), np.eye(4, dtype=np.float32)) == UNKNOWN
    assert UNKNOWN.origin == "none"


def test_unrelated_sentences_are_many_and_different() -> None:
    assert len(set(UNRELATED)) == len(UNRELATED) == 40
    assert all(len(each.split()) >= 3 for each in UNRELATED)


@pytest.mark.parametrize(
    "curve",
    [Calibration(0.975, 90.0, "background", 40, None, 3.0, 2.0), Calibration(0.25, 12.0, "none"),
     Calibration(2.0, 5.0, "labels", 9, 0.9, 4.0, 0.5), Calibration(0.99, 1e-3, "labels", 9, 0.5)],
)  # fmt: skip
def test_an_identical_vector_scores_one(curve: Calibration) -> None:
    """Scores grow with the cosine up to 1 for cosine 1; 0.5 stays where it is."""
    rng = np.random.default_rng(7)
    query, sample = unit(rng.standard_normal(8)), unit(rng.standard_normal((100, 8)))
    cosines = np.linspace(-1, 1, 2001)
    for scores in (curve.score(cosines), curve.score(cosines, query, sample)):
        assert scores[-1] == 1.0
        assert (np.diff(scores) >= 0).all()
        assert scores.min() >= 0.0
    assert curve.score(np.array([1.0000001, 0.9999999])).tolist() == [1.0, 1.0]
    if curve.centre < 1:
        assert curve.score(np.array([curve.centre]))[0] == pytest.approx(0.5)
