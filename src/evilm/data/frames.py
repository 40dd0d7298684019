"""Which moments of a clip are looked at (paper, section 4.1).

A clip is cut into T equal segments. In training one moment is drawn at random from each segment; in evaluation it is
the middle of each. The same rule chooses among frames that were cached or that exist only as pictures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def draw(count: int, rng: np.random.Generator | None = None) -> NDArray[np.float64]:
    """Where in each of ``count`` segments to look, as shares of a segment: all that is random about the rule.

    Args:
        count: T, at least 1.
        rng: draws uniformly (training); None takes each middle (evaluation).

    Returns:
        (T,) numbers in [0, 1).
    """
    _check(count)
    return np.full(count, 0.5) if rng is None else rng.random(count)


def moments(within: NDArray[np.float64], duration: float, start: float = 0.0) -> NDArray[np.float64]:
    """The moments that ``draw`` chose, one from each of T equal segments of [start, start + duration).

    Args:
        within: (T,) what ``draw`` answered.
        duration: seconds, not negative (0 for a single picture: every moment is ``start``).
        start: seconds at which the first segment begins.

    Returns:
        (T,) increasing moments in seconds.
    """
    if not duration >= 0 or not np.isfinite(duration):
        raise ValueError(f"duration {duration!r} is no length in seconds")
    return start + (np.arange(len(within), dtype=np.float64) + within) * (duration / len(within))


def segments(
    count: int, duration: float, rng: np.random.Generator | None = None, start: float = 0.0
) -> NDArray[np.float64]:
    """One moment from each of ``count`` equal segments: ``draw`` and ``moments`` in one."""
    return moments(draw(count, rng), duration, start)


def pick(candidates: int, count: int, rng: np.random.Generator | None = None) -> NDArray[np.int64]:
    """``count`` of ``candidates`` evenly spaced frames, one from each of ``count`` equal segments.

    Candidate j stands for the span [j, j + 1). Where there are fewer candidates than segments, some are taken again.

    Args:
        candidates: how many frames there are, at least 1.
        count: T, at least 1.
        rng: draws within each segment (training); None takes the candidate at each middle (evaluation).

    Returns:
        (T,) non-decreasing indices below ``candidates``.
    """
    return chosen(candidates, draw(count, rng))


def chosen(candidates: int, within: NDArray[np.float64]) -> NDArray[np.int64]:
    """``pick`` for what ``draw`` answered: (T,) non-decreasing indices below ``candidates``."""
    if candidates < 1:
        raise ValueError(f"cannot pick from {candidates} frames")
    count = len(within)
    if (within == 0.5).all():  # whole numbers: a middle that falls between two candidates is no matter of rounding
        return (2 * np.arange(count, dtype=np.int64) + 1) * candidates // (2 * count)
    drawn = np.floor(moments(within, candidates)).astype(np.int64)
    return np.minimum(drawn, candidates - 1)


def _check(count: int) -> None:
    if count < 1:
        raise ValueError(f"{count} frames asked for: at least 1 is needed")
