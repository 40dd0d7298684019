"""What a cosine is worth: a score between 0 and 1, of which one half is the line to "no good match".

Cosines of one model say nothing beside those of another, and the best of many wrong ones is high. So the question is:
is this hit better than the best that a wrong search would bring?

* With labels (``labelled``), hits that are right stand against the best hits of sentences about unlike things, by their
  cosines or by how far they stand out, whichever tells them apart better; a logistic curve between them is the
  probability that a hit was not found by chance.
* Without (``background``), sentences about unlike things are searched for. Half is where a hit beats the best hits of
  nearly all of them: far above their median, measured in their spread, so that a few that really occur do no harm. It
  may beat them by its cosine, or by how far it stands out among the cosines of its own search: a small model's cosines
  are alike for all texts, and in a folder full of what is asked for nothing stands out. The better of the two counts.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

GOOD = 0.5  # the score below which a best hit is no good match
_ROWS = 100_000  # of an index that backgrounds are searched in
_SPREADS = 3.0  # above the median cosine of unrelated searches lies one half
_LIFT_SPREADS = 2.0  # the same of how far their best hits stand out
_BEYOND = 2.0  # a cosine that there is none of
_SAMPLE = 1024  # vectors that tell what a search's cosines are like
_STEEP = math.pi / math.sqrt(3)  # slope of the logistic curve whose standard deviation is one
_FEWEST = 8  # moments without which a background says nothing

# Things that seldom occur together: whatever a folder holds, most of these are not in it.
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
    """Logistic curves over cosines and over lifts (see ``lifts``); the higher of the two counts.

    Attributes:
        centre: the cosine that is worth one half; one that none reaches where only lifts count.
        slope: how fast worth grows with the cosine.
        origin: ``labels``, ``background`` or ``none`` (too few moments to tell).
        samples: how many texts it was made from.
        right: with labels, the share of right hits and of unrelated searches that the line decides rightly, in equal
            weights, on those that it was made from.
        lift_centre, lift_slope: the same for lifts; None where they do not count.
    """

    centre: float
    slope: float
    origin: Literal["labels", "background", "none"]
    samples: int = 0
    right: float | None = None
    lift_centre: float | None = None
    lift_slope: float | None = None

    def score(self, cosines: NDArray[np.floating], lifts: NDArray[np.floating] | None = None) -> NDArray[np.float64]:
        """(n,) cosines and lifts of one search to scores in [0, 1]; without lifts by the cosines alone."""
        scores = _logistic(cosines, self.centre, self.slope)
        if lifts is None or self.lift_centre is None or self.lift_slope is None:
            return scores
        return np.maximum(scores, _logistic(lifts, self.lift_centre, self.lift_slope))

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        return cls(**value)


def _logistic(values: NDArray[np.floating], centre: float, slope: float) -> NDArray[np.float64]:
    return 0.5 * (1 + np.tanh(0.5 * slope * (np.asarray(values, dtype=np.float64) - centre)))


def sample(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """At most ``_SAMPLE`` of some vectors (n, D), evenly spaced, in memory: what ``lifts`` are taken from."""
    return np.array(vectors[np.linspace(0, len(vectors) - 1, min(len(vectors), _SAMPLE)).astype(np.int64)])


def lifts(
    cosines: NDArray[np.floating], queries: NDArray[np.float32], among: NDArray[np.float32]
) -> NDArray[np.float64]:
    """How many standard deviations cosines lie above those of their own search.

    Args:
        cosines: (..., m) of m queries, or (n,) of one.
        queries: (m, D), or (D,).
        among: (s, D), see ``sample``; without any there are no lifts: 0.
    """
    if not len(among):
        return np.zeros(np.shape(cosines))
    own = (among @ queries.T).astype(np.float64)
    return (np.asarray(cosines, dtype=np.float64) - own.mean(0)) / np.maximum(own.std(0), 1e-6)


UNKNOWN = Calibration(0.25, 12.0, "none")  # what cosines of contrastive models are like; a guess that says so


def labelled(
    right: tuple[NDArray[np.floating], NDArray[np.floating]], wrong: tuple[NDArray[np.floating], NDArray[np.floating]]
) -> Calibration:
    """The curve that tells right hits from the best ones of unrelated searches better: by cosines or by lifts.

    Args:
        right, wrong: cosines and lifts, (n,) each.
    """
    by_cosine, by_lift = (fit(*pair) for pair in zip(right, wrong, strict=True))
    if (by_lift.right or 0.0) <= (by_cosine.right or 0.0):
        return by_cosine
    return replace(by_lift, centre=_BEYOND, lift_centre=by_lift.centre, lift_slope=by_lift.slope)


def fit(right: NDArray[np.floating], wrong: NDArray[np.floating]) -> Calibration:
    """The curve between values of right hits and the highest of wrong searches, (n,) and (m,).

    Logistic regression of balanced classes by Newton's method, with Platt's targets, which keep it finite where the two
    do not overlap.
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
    slope = max(theta[0] / scale, 1e-3)  # right hits with lower cosines than wrong ones: nothing can be told
    centre = mean - float(theta[1]) / slope
    decided = 0.5 * (float((right >= centre).mean()) + float((wrong < centre).mean()))
    return Calibration(centre, float(slope), "labels", len(right), decided)


def background(queries: NDArray[np.float32], vectors: NDArray[np.float32]) -> Calibration:
    """The curve from the best cosines that unrelated queries (m, D) find among an index's vectors (n, D)."""
    if len(vectors) < _FEWEST or len(queries) < 2:
        return UNKNOWN
    rows = vectors if len(vectors) <= _ROWS else vectors[np.linspace(0, len(vectors) - 1, _ROWS).astype(np.int64)]
    parts = np.array_split(rows, max(1, len(rows) // 16384))
    highest: NDArray[np.float64] = np.stack([(some @ queries.T).max(0) for some in parts]).max(0).astype(np.float64)
    middle, spread = _middle(highest, 1e-3)
    # Half lies _SPREADS above the middle, though never beyond what a good hit can reach.
    centre = min(middle + _SPREADS * spread, (middle + 1) / 2)
    lifted, apart = _middle(lifts(highest, queries, sample(vectors)), 1e-2)
    return Calibration(
        centre, _STEEP / spread, "background", len(queries), None, lifted + _LIFT_SPREADS * apart, _STEEP / apart
    )


def _middle(values: NDArray[np.float64], least: float) -> tuple[float, float]:
    """Median and robust standard deviation."""
    middle = float(np.median(values))
    return middle, max(1.4826 * float(np.median(np.abs(values - middle))), least)
