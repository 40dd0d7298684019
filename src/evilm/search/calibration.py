"""Calibration: turn a cosine into a score between 0 and 1. Scores below 0.5 are reported as "no good match".

Cosines of two models cannot be compared, and the best of many wrong segments has a high cosine. So a score says whether
a hit is better than the best hit of a search for something that is not there.

* With labels (``from_labels``): right hits are compared with the best hits of unrelated sentences, by their cosines or
  by their lifts, whichever separates them better. A logistic curve gives the probability that a hit was not found by
  chance.
* Without labels (``from_background``): unrelated sentences are searched for. A hit scores 0.5 where it exceeds nearly
  all of their best hits: far above the median, in units of their spread, so that a few sentences that do occur in the
  videos change little. It may exceed them by its cosine or by its lift, the number of standard deviations above the
  cosines of its own search: a small model's cosines are similar for all texts, and in a folder where everything matches
  the query no lift is high. The higher of the two scores counts.

A cosine of 1 (an identical vector) scores 1.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from evilm.search.vectors import Vectors

GOOD = 0.5  # a best hit with a lower score is no good match
_MAX_ROWS = 100_000  # vectors of an index that unrelated sentences are compared with
_SPREADS = 1.25  # a cosine so many spreads above the median of unrelated best hits scores 0.5
_LIFT_SPREADS = 2.5  # the same for lifts
_UNREACHABLE = 2.0  # a centre that no cosine reaches
_SAMPLE = 1024  # vectors from which the distribution of a search's cosines is estimated
_UNIT_SLOPE = math.pi / math.sqrt(3)  # slope of the logistic curve with standard deviation 1
_MIN_ROWS = 8  # vectors below which unrelated searches are not informative
_IDENTICAL = 1 - 1e-5  # a cosine from here on is that of an identical vector, up to rounding

# Scenes that seldom occur together: most of them are absent from any folder.
UNRELATED = tuple(
    (
        "a man plays the piano; a cat sleeps on a sofa; snow falls on a mountain; two women cook in a kitchen; a red "
        "car drives down the street; a child blows out candles on a cake; a surfer rides a big wave; people dance at "
        "a wedding; a plane lands on a runway; a dog runs through a field; a doctor speaks to a patient; fish swim "
        "around a coral reef; a football player scores a goal; a chef slices onions; a band plays on a stage; a horse "
        "jumps over a fence; a man fixes a bicycle; a woman paints a picture; fireworks over a city at night; a baby "
        "laughs in a high chair; a train crosses a bridge; a boxer hits a heavy bag; a teacher writes on a board; a "
        "close up of a flower; a cartoon character sings; a girl plays a video game; soldiers march in a parade; a "
        "potter shapes clay on a wheel; a skateboarder does a trick; an old man reads a newspaper; a rocket lifts "
        "off; a monkey eats a banana; a news anchor talks about the weather; a boat on a calm lake; a barber cuts "
        "hair; bees fly around a hive; a robot arm moves a box; a judge speaks in a court room; an empty corridor; a "
        "crowd cheers in a stadium"
    ).split("; ")
)


@dataclass(frozen=True)
class Calibration:
    """Logistic curves of cosines and of lifts (see ``lifts``); the higher score counts.

    Attributes:
        centre: cosine that scores 0.5; above 1 if only lifts count.
        slope: of the curve.
        origin: ``labels``, ``background``, or ``none`` (too few segments).
        samples: number of texts that it was fitted to.
        right: with labels, the fraction of right hits and of unrelated searches on the right side of 0.5, with equal
            weights, among those that it was fitted to.
        lift_centre, lift_slope: the same for lifts; None if they do not count.
    """

    centre: float
    slope: float
    origin: Literal["labels", "background", "none"]
    samples: int = 0
    right: float | None = None
    lift_centre: float | None = None
    lift_slope: float | None = None

    def score(
        self, cosines: NDArray[np.floating], query: NDArray[np.float32] | None = None,
        sample: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float64]:  # fmt: skip
        """Scores in [0, 1] of the cosines of one search, growing with the cosine; a cosine of 1 scores 1.

        Args:
            cosines: (n,).
            query: (D,) unit vector, and
            sample: (s, D), see ``sample_rows``: lifts are computed from both; without them only cosines count.
        """
        values = np.append(np.asarray(cosines, dtype=np.float64), 1.0)
        scores = _logistic(values, self.centre, self.slope)
        if query is not None and sample is not None and self.lift_centre is not None and self.lift_slope is not None:
            scores = np.maximum(scores, _logistic(lifts(values, query, sample), self.lift_centre, self.lift_slope))
        scores, highest = scores[:-1], scores[-1]
        if highest > GOOD:  # stretch the upper half of the curve so that it ends at 1
            scores = np.where(scores > GOOD, GOOD + (1 - GOOD) * (scores - GOOD) / (highest - GOOD), scores)
        return np.where(values[:-1] >= _IDENTICAL, 1.0, np.minimum(scores, 1.0))

    def good_cosine(self, query: NDArray[np.float32], sample: NDArray[np.float32]) -> float:
        """The lowest cosine that scores 0.5; arguments are those of ``score``."""
        if self.lift_centre is None or self.lift_slope is None or not len(sample):
            return self.centre
        own = (sample @ query).astype(np.float64)
        return min(self.centre, float(own.mean() + self.lift_centre * max(float(own.std()), 1e-6)))

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        return cls(**value)


def _logistic(values: NDArray[np.floating], centre: float, slope: float) -> NDArray[np.float64]:
    return 0.5 * (1 + np.tanh(0.5 * slope * (np.asarray(values, dtype=np.float64) - centre)))


def sample_rows(matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """At most ``_SAMPLE`` evenly spaced rows of (n, D), in memory: the distribution that ``lifts`` refer to."""
    return np.array(matrix[np.linspace(0, len(matrix) - 1, min(len(matrix), _SAMPLE)).astype(np.int64)])


def lifts(
    cosines: NDArray[np.floating], queries: NDArray[np.float32], sample: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Standard deviations by which cosines exceed the mean cosine of their own search.

    Args:
        cosines: (..., m) of m queries, or (n,) of one.
        queries: (m, D), or (D,).
        sample: (s, D), see ``sample_rows``; if it is empty, all lifts are 0.
    """
    if not len(sample):
        return np.zeros(np.shape(cosines))
    own = (sample @ queries.T).astype(np.float64)
    return (np.asarray(cosines, dtype=np.float64) - own.mean(0)) / np.maximum(own.std(0), 1e-6)


UNKNOWN = Calibration(0.25, 12.0, "none")  # a guess that fits cosines of contrastive models


def from_labels(
    right: tuple[NDArray[np.floating], NDArray[np.floating]], wrong: tuple[NDArray[np.floating], NDArray[np.floating]]
) -> Calibration:
    """Fit cosines and lifts, and return the curve that separates right hits from unrelated best hits better.

    Args:
        right, wrong: cosines and lifts, (n,) each.
    """
    by_cosine, by_lift = (fit(*pair) for pair in zip(right, wrong, strict=True))
    if (by_lift.right or 0.0) <= (by_cosine.right or 0.0):
        return by_cosine
    return replace(by_lift, centre=_UNREACHABLE, lift_centre=by_lift.centre, lift_slope=by_lift.slope)


def from_texts(
    queries: NDArray[np.float32], videos: Sequence[set[int]], unrelated: NDArray[np.float32], vectors: Vectors,
    sample: NDArray[np.float32],
) -> Calibration:  # fmt: skip
    """Calibrate with texts and the videos of an index that they describe.

    Args:
        queries: (m, D) unit vectors of the texts.
        videos: file ids that each text describes.
        unrelated: (u, D) unit vectors of ``UNRELATED``.
        vectors: of the index.
        sample: see ``sample_rows``.
    """
    right = np.array([
        (vectors.matrix[np.isin(vectors.file_ids, list(own))] @ query).max()
        for query, own in zip(queries, videos, strict=True)
    ])  # fmt: skip
    wrong = (vectors.matrix @ unrelated.T).max(0)
    return from_labels((right, lifts(right, queries, sample)), (wrong, lifts(wrong, unrelated, sample)))


def fit(right: NDArray[np.floating], wrong: NDArray[np.floating]) -> Calibration:
    """Logistic curve between values of right hits (n,) and the highest values of wrong searches (m,).

    Logistic regression with balanced classes by Newton's method. Platt's targets keep it finite if the two do not
    overlap.
    """
    values = np.concatenate([right.astype(np.float64), wrong.astype(np.float64)])
    targets = np.concatenate([
        np.full(len(right), (len(right) + 1) / (len(right) + 2)), np.full(len(wrong), 1 / (len(wrong) + 2)),
    ])  # fmt: skip
    weights = np.concatenate([np.full(len(right), 0.5 / len(right)), np.full(len(wrong), 0.5 / len(wrong))])
    mean, scale = float(values.mean()), float(values.std()) or 1.0
    design = np.stack([(values - mean) / scale, np.ones_like(values)], 1)
    theta = np.zeros(2)
    for _ in range(50):
        p: NDArray[np.float64] = 0.5 * (1 + np.tanh(0.5 * (design @ theta)))
        gradient = design.T @ (weights * (p - targets)) + 1e-6 * theta
        hessian = (design * (weights * p * (1 - p))[:, None]).T @ design + 1e-6 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        theta -= step
        if np.abs(step).max() < 1e-9:
            break
    slope = max(theta[0] / scale, 1e-3)  # flat if right hits have lower values than wrong ones
    centre = mean - float(theta[1]) / slope
    decided = 0.5 * (float((right >= centre).mean()) + float((wrong < centre).mean()))
    return Calibration(centre, float(slope), "labels", len(right), decided)


def from_background(queries: NDArray[np.float32], matrix: NDArray[np.float32]) -> Calibration:
    """Curve from the best cosines of unrelated queries (m, D) among the vectors of an index (n, D)."""
    if len(matrix) < _MIN_ROWS or len(queries) < 2:
        return UNKNOWN
    rows = matrix
    if len(matrix) > _MAX_ROWS:
        rows = matrix[np.linspace(0, len(matrix) - 1, _MAX_ROWS).astype(np.int64)]
    parts = np.array_split(rows, max(1, len(rows) // 16384))
    highest: NDArray[np.float64] = np.stack([(some @ queries.T).max(0) for some in parts]).max(0).astype(np.float64)
    middle, spread = _robust_spread(highest, 1e-3)
    centre = min(middle + _SPREADS * spread, (middle + 1) / 2)  # never beyond what a good hit can reach
    lift_middle, lift_spread = _robust_spread(lifts(highest, queries, sample_rows(matrix)), 1e-2)
    return Calibration(
        centre, _UNIT_SLOPE / spread, "background", len(queries), None,
        lift_middle + _LIFT_SPREADS * lift_spread, _UNIT_SLOPE / lift_spread,
    )  # fmt: skip


def _robust_spread(values: NDArray[np.float64], least: float) -> tuple[float, float]:
    """Median, and a standard deviation from the median absolute deviation, at least ``least``."""
    middle = float(np.median(values))
    return middle, max(1.4826 * float(np.median(np.abs(values - middle))), least)
