"""Predictions of a task, and the helpers that turn them into metrics and rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from evilm import metrics

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from evilm.types import Example


@dataclass(slots=True)
class Prediction:
    """The outcome of one row.

    Attributes:
        example: the row.
        readable: False if the video gave no frames; the row then counts as wrong.
        values: what the task's ``compute_metrics`` needs, as NumPy arrays or plain values.
    """

    example: Example
    readable: bool
    values: dict[str, Any]


@dataclass(slots=True)
class Metrics:
    """The metrics of a split.

    Attributes:
        metrics: names to numbers, in percent where they are fractions.
        chance: the same metrics for random answers.
        rule: how the numbers were computed, printed beside them.
        rows: one JSON-able row per prediction, with at least ``key``, ``readable`` and ``score`` in [0, 1].
        details: further JSON-able results.
    """

    metrics: dict[str, float]
    chance: dict[str, float]
    rule: str
    rows: list[dict[str, Any]]
    details: dict[str, Any] = field(default_factory=lambda: {})


def own_video(predictions: Sequence[Prediction]) -> NDArray[np.bool_]:
    """(texts, videos) bool: a text is relevant for its own video only."""
    videos = np.array([p.example.video for p in predictions])
    return videos[:, None] == videos[None]


def scored_rows(
    predictions: Sequence[Prediction], scores: Sequence[float], columns: Mapping[str, Sequence[Any]]
) -> list[dict[str, Any]]:
    """The rows of ``Metrics``: key, video, kind, temporal, readable, score, then the task's columns."""
    rows: list[dict[str, Any]] = []
    for i, (prediction, score) in enumerate(zip(predictions, scores, strict=True)):
        example = prediction.example
        head = {
            "key": example.key,
            "video": example.video,
            "kind": example.kind,
            "temporal": example.temporal,
            "readable": prediction.readable,
            "score": float(score),
        }
        rows.append({**head, **{name: values[i] for name, values in columns.items()}})
    return rows


def rows_by_kind(predictions: Sequence[Prediction]) -> dict[str, list[int]]:
    """Row numbers grouped by the kind of their example, kinds in alphabetical order."""
    kinds: dict[str, list[int]] = {}
    for i, prediction in enumerate(predictions):
        kinds.setdefault(prediction.example.kind or "all", []).append(i)
    return dict(sorted(kinds.items()))


def cannot_tell(probabilities: Sequence[float], right: Sequence[bool]) -> dict[str, Any]:
    """The probability below which answers are withheld, calibrated on a split; JSON-able.

    Args:
        probabilities: of each answer.
        right: whether each answer was right.
    """
    if not probabilities:
        return {}
    probability, answered, accuracy = metrics.abstention(np.array(probabilities), np.array(right, dtype=bool))
    return {
        "cannot_tell": {
            "probability": probability, "answered": answered, "right": accuracy, "samples": len(probabilities)
        }
    }  # fmt: skip
