"""What a model in use gives back: vectors with a status each, and answers with what was looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from evilm.errors import VideoStatus


@dataclass(frozen=True, slots=True)
class VideoEmbeddings:
    """What became of some videos.

    Attributes:
        vectors: (n, d) float32, l2-normalised; a row of zeros where the video could not be read.
        statuses: (n,) ``ok``, or why not: one of ``errors.VideoStatus``.
        problems: (n,) one line of explanation where the status is not ``ok``, else empty.
    """

    vectors: NDArray[np.float32]
    statuses: tuple[VideoStatus, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer, how sure it is, and what was looked at.

    Attributes:
        answer: the most probable one.
        probability: of it, among all candidates.
        known: False when the probability is below the threshold that validation data set: "cannot tell".
        threshold: that threshold; None where none was set, and every answer is then ``known``.
        candidates: the most probable answers with their probabilities, best first.
        times: (T,) seconds of the frames that were looked at; their numbers, for a clip of stills.
        looked: (T, h, w) share of the attention on each region, sums to 1.
    """

    answer: str
    probability: float
    confident: bool
    threshold: float | None
    candidates: tuple[tuple[str, float], ...]
    times: tuple[float, ...]
    attention: NDArray[np.float32]

    def attended_frames(self) -> list[tuple[float, float, tuple[float, float]]]:
        """For each frame: when it is, its share of the attention, and where that is strongest (of height and width)."""
        found: list[tuple[float, float, tuple[float, float]]] = []
        for moment, cells in zip(self.times, self.attention, strict=True):
            row, column = divmod(int(cells.argmax()), cells.shape[1])
            place = ((row + 0.5) / cells.shape[0], (column + 0.5) / cells.shape[1])
            found.append((moment, float(cells.sum()), place))
        return found

    def as_json(self) -> dict[str, Any]:
        """The answer as plain values; ``answer`` is None where the model cannot tell."""
        return {
            "answer": self.answer if self.confident else None,
            "best_guess": self.answer,
            "probability": self.probability,
            "threshold": self.threshold,
            "candidates": [{"answer": name, "probability": share} for name, share in self.candidates],
            "frames": [
                {"time": moment, "attention": share, "row": row, "column": column}
                for moment, share, (row, column) in self.attended_frames()
            ],
        }


def join_question(question: str | None, option: str) -> str:
    """A choice as one text, as ``multiple_choice`` is trained: the question, where there is one, then the option."""
    return f"{question} {option}" if question else option


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits (K,) to probabilities."""
    shares = np.exp(logits.astype(np.float64) - float(logits.max()))
    return (shares / shares.sum()).astype(np.float32)


def rank_names(names: Sequence[str], shares: NDArray[np.float32]) -> tuple[tuple[str, float], ...]:
    """Names with their shares, largest first."""
    return tuple((names[int(k)], float(shares[k])) for k in np.argsort(-shares, kind="stable"))
