"""Which rows come when: the order of an epoch, and the part of it that each process has.

An order is a function of (seed, epoch) and of the rows alone, also where it goes through shards: so a run goes on in
the middle of an epoch by the number of its batch, whatever was read ahead when it was cut.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from evilm.data import seeds

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

Shuffle = Literal["auto", "rows", "shards"]

MIXED = 16  # shards whose rows are mixed; a process keeps the lists of members of 64


def mixed(seed: int, epoch: int, count: int, shards: NDArray[np.int32] | None = None) -> NDArray[np.int64]:
    """The order of an epoch in training, (count,): every row once.

    Args:
        seed, epoch: decide it.
        count: rows.
        shards: the number of each row's shard, (count,). Then shards come in a random order, ``MIXED`` of them at a
            time, whose rows are mixed among each other: reading runs through a few files rather than over all.
    """
    rows = seeds.permutation(seed, epoch, count)
    if shards is None:
        return rows
    groups = seeds.generator(seed, "shards", epoch).permutation(int(shards.max()) + 1) // MIXED
    return rows[np.argsort(groups[shards[rows]], kind="stable")]


def shard_numbers(shards: Iterable[object]) -> NDArray[np.int32]:
    """The number of each row's shard, from anything that names it."""
    known: dict[object, int] = {}
    return np.fromiter((known.setdefault(shard, len(known)) for shard in shards), dtype=np.int32)


def parts(
    order: NDArray[np.int64], batch_size: int, batches: range, rank: int, ranks: int, *, train: bool
) -> list[tuple[int, NDArray[np.int64]]]:
    """The rows that one process has of each batch, with the batch's number in the epoch.

    In training it has its slice of every batch, so that all take equally many steps; in evaluation every ``ranks``-th
    batch, whole.

    Args:
        order: of the epoch.
        batch_size: rows of a batch, of all processes together in training.
        batches: the numbers of those that are wanted.
        rank, ranks: this process, and how many there are.
        train: whether the batches are of training.
    """
    own = batch_size // ranks if train else batch_size
    offset = rank * own if train else 0
    numbers = [number for number in batches if train or number % ranks == rank]
    starts = [(number, number * batch_size + offset) for number in numbers]
    return [(number, order[start : start + own]) for number, start in starts]


def deranged(count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """A random order that is not the true one (where there is another)."""
    order = rng.permutation(count)
    while count > 1 and (order == np.arange(count)).all():
        order = rng.permutation(count)
    return order
