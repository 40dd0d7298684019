"""From rows to batches: order, moments, crops, and what happens to videos that cannot be read.

Everything random about a sample derives from (seed, epoch, sample), never from the order of work: workers, prefetching
and a resumed run change nothing. Where a run stands is therefore two numbers, epoch and batch, for files, stores of
frames and shards alike; beside them only the clips that could not be read are remembered.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch

from evilm.data import order, seeds, transforms
from evilm.data.pixels import FilePixels, Job, StoredPixels
from evilm.data.table import distinct_clips
from evilm.data.transforms import AugmentConfig
from evilm.data.workers import TIMEOUT, Background, Workers, check_bad
from evilm.errors import ConfigError, DataError, TooManyBadSamplesError, VideoError
from evilm.types import Batch, Clip, Example

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    from numpy.typing import NDArray

_GRACE = 1000  # samples before which the share of unreadable ones is taken of as many
_INSTEAD = 20  # draws for the place of an unreadable sample


class Answers(Protocol):
    """What a network said of the kept frames once, see ``kept``."""

    def of(self, clip: Clip, chosen: NDArray[np.int64], plan: transforms.Plan) -> NDArray[Any]:
        """(T, ...) about the candidates ``chosen``, changed by ``plan``."""
        ...


@dataclass
class Loader:
    """Batches of one split.

    Args:
        examples: the rows.
        pixels: where frames come from.
        frames: T.
        size: pixels of a side.
        batch_size: B, of all processes together in training.
        seed: the run's.
        train: draw moments, crops and order at random; else middles, whole frames, file order, all rows.
        augment: random crops, in training.
        labels: cached token labels, or None.
        features: cached features of a frozen backbone, or None.
        bad_share: unreadable share of training samples that stops the run.
        shards: the number of each row's shard, for an order that goes through a few of them at a time; see
            ``order.mixed``.
        order: how test frames are ordered; ``shuffled`` is the control that cannot read time.
        fixed: the same frames in every epoch, for a task that computes each clip once.
        rank, ranks: this process and how many share the work. In training each takes its slice of every batch, so all
            take equally many steps; in evaluation each takes every ``ranks``-th batch, whole.
        workers: processes that decode files.
        prefetch: batches made ready by a thread while the model works.
        timeout: seconds a worker may take for one sample.
        pin: put batches into page-locked memory, from which they are copied to a GPU while it computes.

    Attributes:
        bad: what could not be read so far, clip id to reason, of the batches handed out.
    """

    examples: Sequence[Example]
    pixels: FilePixels | StoredPixels
    frames: int
    size: int
    batch_size: int
    seed: int = 0
    train: bool = False
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    labels: Answers | None = None
    features: Answers | None = None
    bad_share: float = 0.05
    shards: NDArray[np.int32] | None = None
    order: Literal["true", "shuffled"] = "true"
    fixed: bool = False
    rank: int = 0
    ranks: int = 1
    workers: int = 0
    prefetch: int = 0
    timeout: float = TIMEOUT
    pin: bool = False
    bad: dict[str, str] = field(default_factory=lambda: {}, init=False)
    _pool: Workers | None = field(default=None, init=False)
    _clips: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if not self.examples:
            raise DataError("no examples to load: the split is empty")
        if self.train and len(self.examples) < self.batch_size:
            raise ConfigError(
                f"optim.batch_size = {self.batch_size} is more than the {len(self.examples)} training examples"
            )
        if self.train and self.batch_size % self.ranks:
            raise ConfigError(
                f"optim.batch_size = {self.batch_size} is the batch of all {self.ranks} processes together and is no "
                f"multiple of {self.ranks}: take {max(1, self.batch_size // self.ranks) * self.ranks}"
            )

    def __len__(self) -> int:
        """Batches in an epoch, of all processes together; in training the last, smaller one is left out."""
        count = len(self.examples)
        return count // self.batch_size if self.train else -(-count // self.batch_size)

    def epoch(self, epoch: int, first: int = 0) -> Generator[Batch]:
        """This process's part of the batches of an epoch, from batch ``first`` on.

        Raises:
            TooManyBadSamplesError: more training samples are unreadable than ``bad_share`` allows.
        """
        made = self._made(epoch, first)
        source = Background(made, self.prefetch) if self.prefetch else made
        with contextlib.closing(source):
            for batch, problems in source:
                self.bad.update(problems)  # only now: what is prefetched is not yet part of the run's state
                yield batch

    def __iter__(self) -> Iterator[Batch]:
        return self.epoch(0)

    def close(self) -> None:
        """End the processes that decode; the next epoch would start new ones."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def state(self) -> dict[str, Any]:
        """What a run has to remember beside its step; JSON-able."""
        return {"bad": dict(self.bad)}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up ``state``: what it knows to be unreadable is not tried again."""
        self.bad = dict(state["bad"])

    # Making batches

    def _made(self, epoch: int, first: int) -> Generator[tuple[Batch, dict[str, str]]]:
        """Batches, each with what turned out unreadable over it."""
        parts = self._parts(epoch, first)
        bad = dict(self.bad)
        reads = self._reads(epoch, [rows for _, rows in parts], bad)
        with contextlib.closing(reads):
            for number, rows in parts:
                batch, problems = self._batch(epoch, rows, reads, bad)
                bad.update(problems)
                self._stop_if_bad(bad, epoch, number)
                yield batch, problems

    def _parts(self, epoch: int, first: int) -> list[tuple[int, NDArray[np.int64]]]:
        """The rows of each batch of this process, with the batch's number in the epoch."""
        count, batches = len(self.examples), range(first, len(self))
        rows = order.mixed(self.seed, epoch, count, self.shards) if self.train else np.arange(count)
        return order.parts(rows, self.batch_size, batches, self.rank, self.ranks, train=self.train)

    def _reads(
        self, epoch: int, parts: list[NDArray[np.int64]], bad: dict[str, str]
    ) -> Generator[NDArray[np.uint8] | VideoError]:
        """The frames of every row of every batch, in order, or why there are none."""
        if not (self.pixels.heavy and self.workers):
            for rows in parts:
                for row in rows.tolist():
                    example, job = self._sample(epoch, row)
                    yield self._known(example, bad) or self._read(job)
            return
        samples = (self._sample(epoch, row) for part in parts for row in part.tolist())
        jobs = (self._known(example, bad) or job for example, job in samples)
        yield from self._processes().map(jobs, ahead=4 * self.workers + 4)

    def _sample(self, epoch: int, row: int) -> tuple[Example, Job]:
        """A row, and which of its frames are shown how in an epoch."""
        example = self.examples[row]
        seed = self._seed(epoch, row)
        if not self.train or self.fixed:
            return example, Job(example.clip)
        return example, Job(example.clip, seed, transforms.draw(self.augment, example, self.size, self.seed, seed))

    def _seed(self, epoch: int, row: int) -> int:
        return seeds.derive(self.seed, "sample", epoch, row)

    def _known(self, example: Example, bad: dict[str, str]) -> VideoError | None:
        """That a training clip is known to be unreadable."""
        reason = bad.get(example.clip.id) if self.train else None
        return None if reason is None else VideoError(example.clip.path, "corrupt", reason)

    def _read(self, job: Job) -> NDArray[np.uint8] | VideoError:
        try:
            if not (self.pixels.heavy and self.workers):
                return self.pixels.read(job, self.frames)
            return self._processes().submit(job, first=True).result()
        except VideoError as error:
            return error

    def _processes(self) -> Workers:
        if self._pool is None:
            self._pool = Workers(self.workers, self.pixels.decoding(self.frames), self.timeout)
        return self._pool

    def _batch(
        self, epoch: int, rows: NDArray[np.int64], reads: Iterator[NDArray[np.uint8] | VideoError], bad: dict[str, str]
    ) -> tuple[Batch, dict[str, str]]:
        readable = np.ones(len(rows), dtype=bool)
        pixels = np.zeros((len(rows), self.frames, self.size, self.size, 3), dtype=np.uint8)
        problems: dict[str, str] = {}
        shown: list[tuple[int, Example, Job]] = []
        for i, row in enumerate(rows.tolist()):
            example, job = self._sample(epoch, row)
            found = next(reads)
            if isinstance(found, VideoError):
                problems.setdefault(example.clip.id, bad.get(example.clip.id, str(found)))
                if self.train:
                    row, example, job, found = self._instead(epoch, row, found, problems, bad)  # noqa: PLW2901
            if isinstance(found, VideoError):
                readable[i] = False
            else:
                pixels[i] = found
            if self.order == "shuffled":
                shuffle = seeds.generator(self._seed(epoch, row), "shuffle")
                pixels[i] = pixels[i][order.deranged(self.frames, shuffle)]
            shown.append((row, example, job))
        jobs = [job for _, _, job in shown]
        labels, features = self._kept(self.labels, jobs), self._kept(self.features, jobs)
        batch = Batch(
            examples=tuple(example for _, example, _ in shown),
            frames=torch.from_numpy(pixels).permute(0, 1, 4, 2, 3),
            seeds=torch.tensor([self._seed(epoch, row) for row, _, _ in shown], dtype=torch.int64),
            readable=torch.from_numpy(readable),
            labels=None if labels is None else torch.from_numpy(labels.astype(np.int64)),
            features=None if features is None else torch.from_numpy(features),
        )
        return (batch.pinned() if self.pin else batch), problems

    def _instead(
        self, epoch: int, row: int, error: VideoError, problems: dict[str, str], bad: dict[str, str]
    ) -> tuple[int, Example, Job, NDArray[np.uint8]]:
        """Another sample in the place of an unreadable one, drawn by (seed, epoch, sample).

        So batches stay full, ranks take equal steps, and the rest of the epoch is as it would have been.
        """
        rng = seeds.generator(self._seed(epoch, row), "instead")
        for _ in range(_INSTEAD):
            other = int(rng.integers(len(self.examples)))
            example, job = self._sample(epoch, other)
            found = self._known(example, {**bad, **problems}) or self._read(job)
            if not isinstance(found, VideoError):
                return other, example, job, found
            problems.setdefault(example.clip.id, bad.get(example.clip.id, str(found)))
        raise TooManyBadSamplesError(
            f"{_INSTEAD} videos in a row cannot be read: mend or leave them out; one of them: {error}"
        )

    def _kept(self, answers: Answers | None, jobs: Sequence[Job]) -> NDArray[Any] | None:
        """(B, T, ...) what was kept about the very frames that are shown."""
        if answers is None or not isinstance(self.pixels, StoredPixels):
            return None
        return np.stack([answers.of(job.clip, self.pixels.choose(job, self.frames), job.plan) for job in jobs])

    def _stop_if_bad(self, bad: dict[str, str], epoch: int, number: int) -> None:
        """Of the clips that all ranks tried so far, or a thousand: who has millions need not wait for them all."""
        if not bad or not self.train:
            return
        self._clips = self._clips or distinct_clips(self.examples)
        tried = (epoch * len(self) + number + 1) * self.batch_size
        check_bad(list(bad.values()), min(self._clips, max(tried, _GRACE)), self.bad_share)
