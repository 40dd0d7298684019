"""Check videos, pack clips and compute token labels on a Ray cluster; only paths and numbers travel.

Output folders must have the same path on all machines. What is complete on disk is the ledger: the same command, run
again, does what is missing, and work that is done twice gives the same bytes.
"""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING, Any

from evilm.cluster.dispatch import Dispatch, Losses, Work, connected
from evilm.data.pack import write_parts
from evilm.data.video import DecoderPool, Finding
from evilm.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from evilm.data.pack import Part
    from evilm.data.video import Limits
    from evilm.training.recipe import Recipe


def check_files(
    address: str, files: Sequence[Path], limits: Limits, workers: int, progress: Callable[[int], None]
) -> list[tuple[Path, Finding]]:
    """One status for each file.

    Args:
        address: of the cluster, see ``connected``.
        files: their paths, the same on all machines.
        limits: of each file.
        workers: decoder processes, and processors, of a worker.
        progress: called with the number of files done.
    """
    findings: list[tuple[Path, Finding]] = []
    work = Work(partial(_checker, limits, workers), lambda path, reason: [(path, Finding("crashed", reason))], workers)
    for some in _answers(address, work, files, "files"):
        findings += some
        progress(len(findings))
    return findings


def _checker(limits: Limits, workers: int) -> Callable[[Sequence[Path]], list[tuple[Path, Finding]]]:
    from concurrent.futures import ThreadPoolExecutor

    pool, threads = DecoderPool(workers, limits), ThreadPoolExecutor(workers)
    return lambda files: list(zip(files, threads.map(pool.check, files), strict=True))


def pack_shards(
    address: str, numbers: Sequence[int], make: Callable[[int], Part], workers: int, timeout: float
) -> Iterator[int]:
    """Write shards of packed frames; after ``partial(pack_shards, address)`` a runner of ``data.pack``.

    Yields:
        the number of clips of each shard that is complete.

    Raises:
        DataError: a shard killed its workers; the others are complete.
    """
    lost: list[str] = []

    def give_up(number: int, reason: str) -> int:
        lost.append(f"{make(number).path}: {reason}")
        return 0

    work = Work(partial(_packer, workers, timeout), give_up, max(1, workers), most=1, describe=make)
    yield from _answers(address, work, numbers, "shards")
    if lost:
        raise DataError(f"{len(lost)} shards cannot be written; run again to retry them; the first: {lost[0]}")


def _packer(workers: int, timeout: float) -> Callable[[Sequence[Part]], int]:
    def write(parts: Sequence[Part]) -> int:
        write_parts(parts, parts[0].config, workers, timeout)
        return sum(len(part.clips) for part in parts)

    return write


def label_blocks(address: str, recipe: Recipe, tokenizer: Any, size: int, blocks: Sequence[int]) -> Iterator[int]:
    """Compute token labels of blocks of clips; the frames are cached or packed in a folder of all machines.

    Args:
        address: of the cluster.
        recipe: of the run that needs them.
        tokenizer: gives the labels.
        size: height and width of the cached frames.
        blocks: numbers, see ``FeatureCache.fill``.

    Yields:
        how many blocks are complete with each answer.

    Raises:
        DataError: a block killed its workers.
    """

    def give_up(block: int, reason: str) -> int:
        raise DataError(f"token labels of block {block}: {reason}; finished blocks are kept")

    work = Work(partial(_labeller, recipe, tokenizer, size), give_up, 1, most=4)
    yield from _answers(address, work, blocks, "blocks")


def _labeller(recipe: Recipe, tokenizer: Any, size: int) -> Callable[[Sequence[int]], int]:
    from evilm.training import build, caches

    store = caches.open_store(recipe, build.training_examples(recipe.data), size)
    labels = caches.open_labels(recipe, tokenizer, store)

    def compute(blocks: Sequence[int]) -> int:
        for block in blocks:
            labels.compute(block, tokenizer.labels)
        labels.flush()
        return len(blocks)

    return compute


def _answers(address: str, work: Work, items: Sequence[Any], noun: str) -> Iterator[Any]:
    losses = Losses()
    with connected(address), contextlib.closing(Dispatch(work, losses)) as dispatch:
        yield from dispatch.run(items)
    losses.tell(noun)
