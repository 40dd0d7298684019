"""Accuracy, ranks, recalls, average precision, codebook use: the metrics of every table.

Pure functions of NumPy arrays. Ranks and recalls break ties at random, in expectation: constant scores give exactly the
metrics of a random ranking.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

RECALLS = (1, 5, 10)
_DRAWN = 4_000_000  # numbers that a bootstrap draws at a time


def accuracy(right: NDArray[np.bool_] | Sequence[bool]) -> float:
    """Percentage of right answers; 0 if there are none."""
    return 100.0 * float(np.mean(right)) if len(right) else 0.0


class Counts(NamedTuple):
    """What the ranks of Q queries among ``candidates`` candidates follow from, (Q,) each.

    Attributes:
        ahead: candidates that score above the best relevant one.
        tied: candidates that score as much as it does, itself included.
        right: the relevant ones among ``tied``; 0 for a query without a relevant candidate.
        candidates: number of candidates.
    """

    ahead: NDArray[np.float64]
    tied: NDArray[np.float64]
    right: NDArray[np.float64]
    candidates: int

    @property
    def ranks(self) -> NDArray[np.float64]:
        """The expected 1-based rank of the best relevant candidate; C + 1 where there is none.

        A tie of one relevant with t other candidates has the rank 1 + ahead + t / 2.
        """
        found = 1 + self.ahead + (self.tied - self.right) / (self.right + 1)
        return np.where(self.right > 0, found, self.candidates + 1.0)

    def hits(self, k: int) -> NDArray[np.float64]:
        """The probability that a relevant candidate is among the first ``k``, with ties broken at random.

        The distribution is hypergeometric: ``tied`` candidates with ``right`` relevant ones fill the places left.
        """
        places = np.clip(k - self.ahead, 0, self.tied)
        missed = np.ones_like(self.ahead)
        for taken in range(k):
            wrong_left, left = np.maximum(self.tied - self.right - taken, 0), np.maximum(self.tied - taken, 1)
            missed = np.where(taken < places, missed * wrong_left / left, missed)
        return np.where(self.right > 0, 1 - missed, 0.0)

    def retrieval(self) -> dict[str, float]:
        """Recall at 1, 5, 10 (percent) and the median rank; a query without a relevant candidate counts as missed."""
        return {f"R@{k}": 100.0 * float(np.mean(self.hits(k))) for k in RECALLS} | {"MdR": float(np.median(self.ranks))}


def count(scores: NDArray[np.floating], relevant: NDArray[np.bool_]) -> Counts:
    """``Counts`` of a whole matrix; ``evilm.tasks.ranking`` computes the same in blocks.

    Args:
        scores: (Q, C), higher is better; NaN ranks last.
        relevant: (Q, C), True where the candidate is a right answer.
    """
    scores = np.nan_to_num(scores.astype(np.float64), nan=-np.inf, posinf=np.inf, neginf=-np.inf)
    best = np.where(relevant, scores, -np.inf).max(axis=1, keepdims=True)
    level = scores == best
    right = (level & relevant).sum(axis=1)
    return Counts((scores > best).sum(axis=1) * 1.0, level.sum(axis=1) * 1.0, right * 1.0, scores.shape[1])


def retrieval(scores: NDArray[np.floating], relevant: NDArray[np.bool_]) -> dict[str, float]:
    """Recall at 1, 5, 10 (percent) and the median rank of (Q, C) scores; see ``count``."""
    return count(scores, relevant).retrieval()


def ranks(scores: NDArray[np.floating], relevant: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The expected 1-based rank of the best relevant candidate of each query, (Q,); see ``Counts.ranks``."""
    return count(scores, relevant).ranks


def hits(scores: NDArray[np.floating], relevant: NDArray[np.bool_], k: int) -> NDArray[np.float64]:
    """(Q,) probability that a relevant candidate is among the first ``k``; see ``Counts.hits``."""
    return count(scores, relevant).hits(k)


def class_accuracy(scores: NDArray[np.floating], classes: NDArray[np.integer]) -> tuple[float, float]:
    """Accuracy and balanced accuracy (the mean over classes of their recall) in percent.

    Args:
        scores: (Q, K), higher is better. The highest score of a row is its answer, with ties broken at random, in
            expectation; a row without a finite score is wrong.
        classes: (Q,) the right class of each row.
    """
    return mean_credit(class_credit(scores, classes), classes)


def mean_credit(right: NDArray[np.float64], classes: NDArray[np.integer]) -> tuple[float, float]:
    """Accuracy and balanced accuracy of rows whose credits (Q,) are known."""
    recalls = [right[classes == k].mean() for k in np.unique(classes)]
    return 100 * float(right.mean()), 100 * float(np.mean(recalls))


def class_credit(scores: NDArray[np.floating], classes: NDArray[np.integer]) -> NDArray[np.float64]:
    """(Q,) the part of each row that ``class_accuracy`` counts as right."""
    scores = np.nan_to_num(scores.astype(np.float64), nan=-np.inf, neginf=-np.inf)
    highest = scores.max(axis=1, keepdims=True)
    best = (scores == highest) & np.isfinite(highest)
    return best[np.arange(len(classes)), classes] / np.maximum(best.sum(axis=1), 1)


def chance_retrieval(relevant: NDArray[np.bool_]) -> dict[str, float]:
    """The metrics of a random ranking of the same candidates; (Q, C), True where a candidate is a right answer."""
    return chance_counts(relevant.sum(axis=1), relevant.shape[1]).retrieval()


def chance_counts(relevant: NDArray[np.integer], candidates: int) -> Counts:
    """``Counts`` of constant scores, with (Q,) relevant candidates."""
    every = np.full(len(relevant), float(candidates))
    return Counts(np.zeros(len(relevant)), every, relevant.astype(np.float64), candidates)


def usage(counts: NDArray[np.integer]) -> float:
    """VOC. RATE of Table 6: the fraction of codes that occur at least once; (M,) counts."""
    return float(np.mean(counts > 0))


def perplexity(counts: NDArray[np.integer]) -> float:
    """exp(entropy) of the use of codes: M if all are used equally, 1 if only one is used; 0 for no counts."""
    total = counts.sum()
    if total == 0:
        return 0.0
    share = counts[counts > 0] / total
    return float(np.exp(-(share * np.log(share)).sum()))


def mean_average_precision(scores: NDArray[np.floating], present: NDArray[np.bool_]) -> float:
    """Mean over words of the average precision of ranking clips by a word's score, in [0, 1].

    Tied clips share the precision at the end of their tie, as in scikit-learn's ``average_precision_score``. The order
    of the rows has no influence.

    Args:
        scores: (B, K).
        present: (B, K); words that occur in no clip are left out.
    """
    values: list[float] = []
    for k in np.flatnonzero(present.any(axis=0)):
        order = np.argsort(-scores[:, k], kind="stable")
        ranked, hit = scores[order, k], present[order, k]
        last: NDArray[np.intp] = np.searchsorted(
            -ranked, -ranked, side="right"
        )  # number of clips that score at least as high
        precision = np.cumsum(hit)[last - 1] / last
        values.append(float(precision[hit].mean()))
    return float(np.mean(values)) if values else 0.0


def interval(values: NDArray[np.floating] | Sequence[float], seed: int = 0, draws: int = 1000) -> tuple[float, float]:
    """Bootstrap 95 % interval of the mean of per-sample ``values``."""
    sample = np.asarray(values, dtype=np.float64)
    if not len(sample):
        return (0.0, 0.0)
    rng = np.random.default_rng(seed)
    step = max(1, _DRAWN // len(sample))  # a few draws at a time: 1,000 draws of 100,000 samples would take 1.6 GB
    means = np.concatenate([
        sample[rng.integers(0, len(sample), size=(min(step, draws - first), len(sample)))].mean(axis=1)
        for first in range(0, draws, step)
    ])  # fmt: skip
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


# Student's t at 97.5 %, for 1 to 9 degrees of freedom.
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def interval_of_seeds(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the mean of runs with different seeds, by Student's t; at least 2 runs.

    Few runs give a wide interval: 2 of a standard deviation of 1 give the mean plus or minus 9.0, and 5 give 1.2.
    """
    freedom, z = len(values) - 1, 1.959964
    # Beyond the table, the expansion of t around the normal distribution, to three digits.
    t = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    t = _STUDENT[freedom - 1] if freedom <= len(_STUDENT) else t
    half = t * float(np.std(values, ddof=1)) / len(values) ** 0.5
    return float(np.mean(values)) - half, float(np.mean(values)) + half


def abstention(shares: NDArray[np.floating], right: NDArray[np.bool_]) -> tuple[float, float, float]:
    """The probability below which answers should be withheld, if a wrong one costs as much as a right one gains.

    Args:
        shares: (n,) the probability of each answer, at least one.
        right: (n,) whether it was right.

    Returns:
        the threshold (answers at or above it are given; it lies midway between the last given and the first withheld);
        the percentage of rows then answered, and the percentage of those that are right.
    """
    order = np.argsort(-shares, kind="stable")
    sorted_shares = shares[order].astype(np.float64)
    gain = np.cumsum(np.where(right[order], 1, -1))
    last = np.append(sorted_shares[1:] < sorted_shares[:-1], True)  # equal probabilities are given together
    best = int(np.argmax(np.where(last, gain, np.iinfo(np.int64).min)))
    below = sorted_shares[best + 1] if best + 1 < len(shares) else 0.0
    answered = best + 1
    threshold = float(sorted_shares[best] + below) / 2 if best + 1 < len(shares) else 0.0
    return threshold, 100 * answered / len(shares), accuracy(right[order][:answered])
