"""Random choices: seeds, the order of an epoch, and the times of a clip's frames.

Every random choice is a function of (seed, epoch, sample). The number of workers, the order in which they finish and
the batch at which a run was interrupted change nothing.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

MIXED_SHARDS = 16  # shards whose rows are shuffled together; a process caches the member lists of 64


def derive_seed(*path: int | str) -> int:
    """A 63-bit seed for the random stream named ``path``; equal paths give equal seeds on every machine."""
    digest = hashlib.blake2b("/".join(str(part) for part in path).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*path: int | str) -> np.random.Generator:
    """A NumPy generator for the random stream named ``path``."""
    return np.random.Generator(np.random.PCG64(derive_seed(*path)))


# Order of the rows


def epoch_order(seed: int, epoch: int, count: int, shards: NDArray[np.int32] | None = None) -> NDArray[np.int64]:
    """The order of the training rows in an epoch, (count,): every row once.

    Args:
        seed: of the run.
        epoch: its number.
        count: rows.
        shards: (count,) the number of each row's shard. Shards then come in a random order and ``MIXED_SHARDS`` of them
            are shuffled together, so that reading goes through a few files at a time.
    """
    rows = generator(seed, "order", epoch).permutation(count)
    if shards is None:
        return rows
    groups = generator(seed, "shards", epoch).permutation(int(shards.max()) + 1) // MIXED_SHARDS
    return rows[np.argsort(groups[shards[rows]], kind="stable")]


def shard_numbers(shards: Iterable[object]) -> NDArray[np.int32]:
    """The number of each row's shard, from any value that identifies the shard."""
    known: dict[object, int] = {}
    return np.fromiter((known.setdefault(shard, len(known)) for shard in shards), dtype=np.int32)


def batch_rows(
    order: NDArray[np.int64], batch_size: int, batches: range, rank: int, world_size: int, *, train: bool
) -> list[tuple[int, NDArray[np.int64]]]:
    """The rows of each batch that this process loads, with the batch's number in the epoch.

    Args:
        order: of the epoch.
        batch_size: rows of a batch; in training of all processes together.
        batches: the numbers of the batches to load.
        rank: this process.
        world_size: number of processes.
        train: True gives this process its slice of every batch, so that all processes take the same number of steps;
            False gives it every ``world_size``-th batch, whole.
    """
    own = batch_size // world_size if train else batch_size
    offset = rank * own if train else 0
    numbers = [number for number in batches if train or number % world_size == rank]
    starts = [(number, number * batch_size + offset) for number in numbers]
    return [(number, order[start : start + own]) for number, start in starts]


# Times of the frames (paper, section 4.1): a clip is divided into T equal segments with one frame each. Training draws
# a random time within each segment; evaluation takes the middle.


def draw_positions(count: int, rng: np.random.Generator | None = None) -> NDArray[np.float64]:
    """A position within each of ``count`` segments, as a fraction of the segment.

    Args:
        count: T, at least 1.
        rng: draws uniformly (training); None takes each middle (evaluation).

    Returns:
        (T,) numbers in [0, 1).
    """
    if count < 1:
        raise ValueError(f"{count} frames requested: at least 1 is needed")
    return np.full(count, 0.5) if rng is None else rng.random(count)


def times_at(positions: NDArray[np.float64], duration: float, start: float = 0.0) -> NDArray[np.float64]:
    """Times of ``draw_positions`` within T equal segments of [start, start + duration).

    Args:
        positions: (T,) from ``draw_positions``.
        duration: seconds, not negative; 0 for a single picture, whose times are all ``start``.
        start: seconds at which the first segment begins.

    Returns:
        (T,) increasing times in seconds.
    """
    if not duration >= 0 or not np.isfinite(duration):
        raise ValueError(f"duration {duration!r} is not a length in seconds")
    return start + (np.arange(len(positions), dtype=np.float64) + positions) * (duration / len(positions))


def frame_times(
    count: int, duration: float, rng: np.random.Generator | None = None, start: float = 0.0
) -> NDArray[np.float64]:
    """One time in each of ``count`` equal segments: ``draw_positions`` and ``times_at`` together."""
    return times_at(draw_positions(count, rng), duration, start)


def frames_at(available: int, positions: NDArray[np.float64]) -> NDArray[np.int64]:
    """Indices of the frames at ``draw_positions`` among ``available`` evenly spaced frames.

    Frame j covers the span [j, j + 1). If there are fewer frames than segments, some are taken more than once.

    Args:
        available: number of frames, at least 1.
        positions: (T,) from ``draw_positions``.

    Returns:
        (T,) non-decreasing indices below ``available``.
    """
    if available < 1:
        raise ValueError(f"cannot pick from {available} frames")
    count = len(positions)
    if (positions == 0.5).all():  # exact integers: a middle on the border of two frames must not depend on rounding
        return (2 * np.arange(count, dtype=np.int64) + 1) * available // (2 * count)
    return np.minimum(np.floor(times_at(positions, available)).astype(np.int64), available - 1)


def pick_frames(available: int, count: int, rng: np.random.Generator | None = None) -> NDArray[np.int64]:
    """Indices of one frame from each of ``count`` equal segments: ``draw_positions`` and ``frames_at`` together."""
    return frames_at(available, draw_positions(count, rng))


def shuffled_order(count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """A random order of frames that differs from the true order, if there is another."""
    order = rng.permutation(count)
    while count > 1 and (order == np.arange(count)).all():
        order = rng.permutation(count)
    return order
