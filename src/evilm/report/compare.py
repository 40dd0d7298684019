"""Compare two evaluations on the same samples by a paired bootstrap."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from evilm import metrics
from evilm.errors import DataError
from evilm.report.run import read_predictions

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


def compare(first: Path, second: Path) -> dict[str, Any]:
    """The difference of the mean per-sample scores of two evaluations, second minus first.

    The score of a sample is what the primary metric averages: 1 for a correct answer or a hit at rank 1, else 0.

    Args:
        first, second: folders of evaluations, with ``predictions.jsonl``, or runs with exactly one evaluation.

    Returns:
        ``samples``; mean ``scores`` in percent; their ``difference`` in points with its bootstrap 95 % ``interval``;
        ``better`` and ``worse``, the numbers of samples on which the second scores higher or lower.

    Raises:
        DataError: an evaluation is missing, or the two are not of the same samples.
    """
    scores = [_scores(_evaluation(path)) for path in (first, second)]
    if scores[0].keys() != scores[1].keys():
        only = [len(scores[i].keys() - scores[1 - i].keys()) for i in (0, 1)]
        raise DataError(
            f"{first} and {second}: not of the same samples ({only[0]:,} are only in the first and {only[1]:,} only in "
            "the second); evaluate both on the same split of the same data"
        )
    one, other = (np.array([values[key] for key in sorted(scores[0])]) for values in scores)
    gains: NDArray[np.float64] = other - one
    low, high = metrics.interval(gains)
    return {
        "evaluations": [str(first), str(second)],
        "samples": len(gains),
        "scores": [100 * float(one.mean()), 100 * float(other.mean())],
        "difference": 100 * float(gains.mean()),
        "interval": [100 * low, 100 * high],
        "better": int((gains > 0).sum()),
        "worse": int((gains < 0).sum()),
    }


def _evaluation(path: Path) -> Path:
    """The folder with predictions at or below ``path``."""
    found = [path] if (path / "predictions.jsonl").is_file() else [p.parent for p in path.rglob("predictions.jsonl")]
    if len(found) != 1:
        several = f"holds {len(found)} evaluations; name the folder of one"
        raise DataError(f"{path}: {several if found else 'holds no evaluation; create one with `evilm evaluate RUN`'}")
    return found[0]


def _scores(folder: Path) -> dict[str, float]:
    rows = read_predictions(folder)
    scores = {str(row["key"]): float(row["score"]) for row in rows}
    if not rows or len(scores) < len(rows):
        raise DataError(f"{folder}: {'has no predictions' if not rows else 'has several rows of one key'}")
    return scores


def as_text(result: dict[str, Any]) -> str:
    """The comparison in three lines."""
    low, high = result["interval"]
    verdict = "the second is better" if low > 0 else "the first is better" if high < 0 else "no clear difference"
    return (
        f"{result['scores'][0]:.1f} and {result['scores'][1]:.1f} on {result['samples']:,} samples\n"
        f"difference {result['difference']:+.1f} points, 95 % interval {low:+.1f} to {high:+.1f}: {verdict}\n"
        f"the second is better on {result['better']:,} samples and worse on {result['worse']:,}"
    )
