"""Batches of a split: which rows, which of their frames, which crops, and what replaces an unreadable video.

Every random choice about a sample is derived from (seed, epoch, sample), so neither workers nor prefetching nor a
resumed run change a batch. The position of a run is therefore two numbers, epoch and batch, for files, caches and
shards alike; the only other state is the list of unreadable clips.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from evilm.data import sampling, transforms
from evilm.data.packed_frames import PackedFrames
from evilm.data.pixels import FilePixels, Job, StoredPixels
from evilm.data.table import count_clips
from evilm.data.transforms import AugmentConfig
from evilm.data.workers import TIMEOUT, Background, Workers, check_bad
from evilm.errors import ConfigError, DataError, TooManyBadSamplesError, VideoError
from evilm.types import Batch, Example

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    from numpy.typing import NDArray

    from evilm.data.config import DataConfig
    from evilm.data.feature_cache import FeatureCache
    from evilm.data.pixels import Store

_FIRST_CHECK = 1000  # clips: until so many were tried, max_bad_ratio is a fraction of this number
_REPLACEMENTS = 20  # attempts to replace an unreadable sample


@dataclass
class Loader:
    """Batches of one split.

    Args:
        examples: the rows.
        pixels: the source of their frames.
        num_frames: T.
        size: frame height and width in pixels.
        batch_size: B; in training of all processes together.
        seed: of the run.
        train: True draws frames, crops and order at random; False takes middle frames, no crop, all rows in file order.
        augment: random crops and flips in training.
        label_cache: cached token labels, or None.
        feature_cache: cached features of a frozen backbone, or None.
        max_bad_ratio: fraction of unreadable training clips that stops the run.
        shards: (rows,) the number of each row's shard, to read a few shards at a time; see ``row_shards``.
        order: order of the frames; ``shuffled`` is the frame-shuffled baseline.
        view: (k, n) takes view k of n of each video in evaluation: other frames of the same segments.
        fixed_frames: the same frames in every epoch, for a task that encodes each clip once.
        rank: this process.
        world_size: number of processes. In training each takes its slice of every batch, so all take the same number
            of steps; in evaluation each takes every ``world_size``-th batch, whole.
        workers: decoding processes.
        prefetch: batches loaded by a thread while the model computes.
        timeout: maximum seconds to decode one sample.
        pin: put batches into page-locked memory, for copies to a GPU while it computes.

    Attributes:
        unreadable: clip id to reason, of the batches that were yielded.
    """

    examples: Sequence[Example]
    pixels: FilePixels | StoredPixels
    num_frames: int
    size: int
    batch_size: int
    seed: int = 0
    train: bool = False
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    label_cache: FeatureCache | None = None
    feature_cache: FeatureCache | None = None
    max_bad_ratio: float = 0.05
    shards: NDArray[np.int32] | None = None
    order: Literal["true", "shuffled"] = "true"
    view: tuple[int, int] = (0, 1)
    fixed_frames: bool = False
    rank: int = 0
    world_size: int = 1
    workers: int = 0
    prefetch: int = 0
    timeout: float = TIMEOUT
    pin: bool = False
    unreadable: dict[str, str] = field(default_factory=lambda: {}, init=False)
    _pool: Workers | None = field(default=None, init=False)
    _clips: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if not self.examples:
            raise DataError("no examples to load: the split is empty")
        if self.train and len(self.examples) < self.batch_size:
            raise ConfigError(
                f"optim.batch_size = {self.batch_size} is larger than the {len(self.examples)} training examples"
            )
        if self.train and self.batch_size % self.world_size:
            fitting = max(1, self.batch_size // self.world_size) * self.world_size
            raise ConfigError(
                f"optim.batch_size = {self.batch_size} is the batch of all {self.world_size} processes together and "
                f"must be a multiple of {self.world_size}: for example {fitting}"
            )

    def __len__(self) -> int:
        """Batches of an epoch, of all processes together; training leaves out the last, smaller one."""
        count = len(self.examples)
        return count // self.batch_size if self.train else -(-count // self.batch_size)

    @property
    def _shown(self) -> int:
        """Frames of a batch; none where cached features replace them."""
        return self.num_frames if self.feature_cache is None else 0

    def epoch(self, epoch: int, first: int = 0) -> Generator[Batch]:
        """This process's part of the batches of an epoch, from batch ``first`` on.

        Raises:
            TooManyBadSamplesError: more training clips are unreadable than ``max_bad_ratio`` allows.
        """
        batches = self._batches(epoch, first)
        source = Background(batches, self.prefetch) if self.prefetch else batches
        with contextlib.closing(source):
            for batch, problems in source:
                self.unreadable.update(problems)  # not before: prefetched batches are not part of the run's state
                yield batch

    def __iter__(self) -> Iterator[Batch]:
        return self.epoch(0)

    def close(self) -> None:
        """End the decoding processes; the next epoch would start new ones."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def state(self) -> dict[str, Any]:
        """JSON-able state of a run, beside its step."""
        return {"bad": dict(self.unreadable)}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from ``state``: clips known to be unreadable are not tried again."""
        self.unreadable = dict(state["bad"])

    # Making batches

    def _batches(self, epoch: int, first: int) -> Generator[tuple[Batch, dict[str, str]]]:
        """Batches, each with the clips that were found unreadable."""
        count, numbers = len(self.examples), range(first, len(self))
        rows = sampling.epoch_order(self.seed, epoch, count, self.shards) if self.train else np.arange(count)
        parts = sampling.batch_rows(rows, self.batch_size, numbers, self.rank, self.world_size, train=self.train)
        bad = dict(self.unreadable)
        reads = self._read_all(epoch, [part for _, part in parts], bad)
        with contextlib.closing(reads):
            for number, part in parts:
                batch, problems = self._batch(epoch, part, reads, bad)
                bad.update(problems)
                self._check_bad(bad, epoch, number)
                yield batch, problems

    def _read_all(
        self, epoch: int, parts: list[NDArray[np.int64]], bad: dict[str, str]
    ) -> Generator[NDArray[np.uint8] | VideoError]:
        """The frames of every row of every batch, in order, or its error."""
        samples = (self._sample(epoch, row) for part in parts for row in part.tolist())
        if self.pixels.needs_workers and self.workers:
            jobs = (self._known_error(example, bad) or job for example, job in samples)
            yield from self._processes().map(jobs, ahead=4 * self.workers + 4)
            return
        for example, job in samples:
            yield self._known_error(example, bad) or self._read(job)

    def _sample(self, epoch: int, row: int) -> tuple[Example, Job]:
        """A row, and its frames and crop in an epoch."""
        example = self.examples[row]
        if not self.train or self.fixed_frames:
            return example, Job(example.clip, position=(self.view[0] + 0.5) / self.view[1])
        seed = self._sample_seed(epoch, row)
        return example, Job(example.clip, seed, transforms.draw(self.augment, example, self.size, self.seed, seed))

    def _sample_seed(self, epoch: int, row: int) -> int:
        return sampling.derive_seed(self.seed, "sample", epoch, row)

    def _known_error(self, example: Example, bad: dict[str, str]) -> VideoError | None:
        """The error of a training clip that is known to be unreadable."""
        reason = bad.get(example.clip.id) if self.train else None
        return None if reason is None else VideoError(example.clip.path, "corrupt", reason)

    def _read(self, job: Job) -> NDArray[np.uint8] | VideoError:
        try:
            if not (self.pixels.needs_workers and self.workers):
                return self.pixels.read(job, self._shown)
            return self._processes().submit(job, first=True).result()
        except VideoError as error:
            return error

    def _processes(self) -> Workers:
        if self._pool is None:
            self._pool = Workers(self.workers, partial(self.pixels.read, count=self._shown), self.timeout)
        return self._pool

    def _batch(
        self, epoch: int, rows: NDArray[np.int64], reads: Iterator[NDArray[np.uint8] | VideoError], bad: dict[str, str]
    ) -> tuple[Batch, dict[str, str]]:
        readable = np.ones(len(rows), dtype=bool)
        pixels = np.zeros((len(rows), self._shown, self.size, self.size, 3), dtype=np.uint8)
        problems: dict[str, str] = {}
        samples: list[tuple[int, Example, Job]] = []
        for i, row in enumerate(rows.tolist()):
            example, job = self._sample(epoch, row)
            result = next(reads)
            if isinstance(result, VideoError):
                problems.setdefault(example.clip.id, bad.get(example.clip.id, str(result)))
                if self.train:
                    row, example, job, result = self._replacement(epoch, row, result, problems, bad)  # noqa: PLW2901
            if isinstance(result, VideoError):
                readable[i] = False
            else:
                changes = job.plan.changes
                pixels[i] = transforms.apply_randaugment(result, changes) if changes else result
            if self.order == "shuffled":
                rng = sampling.generator(self._sample_seed(epoch, row), "shuffle")
                pixels[i] = pixels[i][sampling.shuffled_order(self._shown, rng)]
            samples.append((row, example, job))
        jobs = [job for _, _, job in samples]
        labels, features = self._cached(self.label_cache, jobs), self._cached(self.feature_cache, jobs)
        batch = Batch(
            examples=tuple(example for _, example, _ in samples),
            frames=torch.from_numpy(pixels).permute(0, 1, 4, 2, 3),
            seeds=torch.tensor([self._sample_seed(epoch, row) for row, _, _ in samples], dtype=torch.int64),
            readable=torch.from_numpy(readable),
            labels=None if labels is None else torch.from_numpy(labels.astype(np.int64)),
            features=None if features is None else torch.from_numpy(features),
        )
        return (batch.pinned() if self.pin else batch), problems

    def _replacement(
        self, epoch: int, row: int, error: VideoError, problems: dict[str, str], bad: dict[str, str]
    ) -> tuple[int, Example, Job, NDArray[np.uint8]]:
        """Another sample in place of an unreadable one, drawn from (seed, epoch, sample).

        Batches stay full, ranks take the same number of steps, and the rest of the epoch is unchanged.
        """
        rng = sampling.generator(self._sample_seed(epoch, row), "instead")
        for _ in range(_REPLACEMENTS):
            other = int(rng.integers(len(self.examples)))
            example, job = self._sample(epoch, other)
            result = self._known_error(example, {**bad, **problems}) or self._read(job)
            if not isinstance(result, VideoError):
                return other, example, job, result
            problems.setdefault(example.clip.id, bad.get(example.clip.id, str(result)))
        raise TooManyBadSamplesError(
            f"{_REPLACEMENTS} videos in a row cannot be read: repair or remove them; one of them: {error}"
        )

    def _cached(self, cache: FeatureCache | None, jobs: Sequence[Job]) -> NDArray[Any] | None:
        """(B, T, ...) cached outputs for the frames of the jobs."""
        if cache is None or not isinstance(self.pixels, StoredPixels):
            return None
        return np.stack([cache.read(job.clip, self.pixels.choose(job, self.num_frames), job.plan) for job in jobs])

    def _check_bad(self, bad: dict[str, str], epoch: int, number: int) -> None:
        """Stop if too many of the clips tried so far are unreadable; large data sets need not be read to the end."""
        if not bad or not self.train:
            return
        self._clips = self._clips or count_clips(self.examples)
        tried = (epoch * len(self) + number + 1) * self.batch_size
        check_bad(list(bad.values()), min(self._clips, max(tried, _FIRST_CHECK)), self.max_bad_ratio)


def row_shards(data: DataConfig, rows: Sequence[Example], store: Store | None) -> NDArray[np.int32] | None:
    """The number of each training row's shard, or None if rows are shuffled all together (``data.shuffle``).

    Raises:
        ConfigError: ``data.shuffle = "shards"``, and the data are not in shards.
    """
    in_tars = store is None and bool(rows[0].clip.frames) and rows[0].clip.path.suffix == ".tar"
    if data.shuffle == "rows" or (data.shuffle == "auto" and not in_tars):
        return None
    if isinstance(store, PackedFrames):
        return sampling.shard_numbers(store.shard_of(row.clip) for row in rows)
    if not in_tars:
        raise ConfigError("data.shuffle = 'shards' needs tar files (readers shards and frames) or data.packed")
    numbers = sampling.shard_numbers(row.clip.path for row in rows)
    return None if data.shuffle == "auto" and numbers.max() < sampling.MIXED_SHARDS else numbers
