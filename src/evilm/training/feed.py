"""What a recipe's task is fed: the rows of a split, and their batches, from files, caches or packs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from evilm import distributed
from evilm.data import readers
from evilm.data.feature_cache import FeatureCache
from evilm.data.frame_cache import FrameCache
from evilm.data.loader import Loader, row_shards
from evilm.data.packed_frames import packed_for
from evilm.data.pixels import FilePixels, NoPixels, StoredPixels
from evilm.data.table import collect
from evilm.data.workers import check_bad
from evilm.errors import ConfigError
from evilm.progress import Meter
from evilm.tasks import VideoTextTask
from evilm.tasks.distill import Distill
from evilm.tasks.linear_probe import LinearProbeConfig
from evilm.tasks.paraphrase import Paraphrase
from evilm.tasks.pretrain import Pretrain, PretrainConfig
from evilm.tasks.reconstruction import ReconstructionConfig
from evilm.tasks.tokenizer import TokenizerTaskConfig
from evilm.training import teacher

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evilm.data.config import DataConfig, SourceConfig
    from evilm.data.pixels import Store
    from evilm.tasks import Task
    from evilm.training.recipe import Recipe
    from evilm.types import Example


def examples(source: SourceConfig) -> Sequence[Example]:
    """The rows of one split, thinned evenly to ``limit``; a list, or a memory-mapped table where they are many."""
    rows = collect(readers.stream(source.reader, source.annotations, source.videos, source.split))
    if source.limit is None or source.limit >= len(rows):
        return rows
    return [rows[i * len(rows) // source.limit] for i in range(source.limit)]


def training_rows(data: DataConfig) -> Sequence[Example]:
    """The rows that a run learns from: those of ``train``, then those of ``more``."""
    rows = examples(data.train)
    return [*rows, *(row for source in data.extra_train for row in examples(source))] if data.extra_train else rows


def frames_of(recipe: Recipe, task: Task) -> tuple[int, int]:
    """(T, size) of the clips that a task is fed; one cell of one frame where it looks at none."""
    if isinstance(recipe.task, TokenizerTaskConfig | ReconstructionConfig):
        return recipe.task.num_frames, recipe.task.tokenizer.image_size
    assert isinstance(task, VideoTextTask)
    shape = task.model.config
    return (1, shape.stride) if isinstance(task, Paraphrase) else (shape.num_frames, shape.image_size)


def loader(recipe: Recipe, task: Task, rows: Sequence[Example], *, train: bool, label: bool = False) -> Loader:
    """Batches of some rows, from the cache where the recipe names one.

    Args:
        recipe: the settings.
        task: whose clips they are.
        rows: of one split.
        train: draw at random, see ``Loader``.
        label: with cached labels and features, where the recipe asks for them.
    """
    data = recipe.data
    if isinstance(task, Distill):
        teacher.look(task, rows, data)
    count, size = frames_of(recipe, task)
    blind = isinstance(task, Paraphrase)
    pixels: FilePixels | StoredPixels = NoPixels(size) if blind else FilePixels(size, data.resize_mode)
    store = None if blind else _store(recipe, rows, size, train=train)
    if store is not None:
        pixels = StoredPixels(store)
    return Loader(
        examples=rows,
        pixels=pixels,
        num_frames=count,
        size=size,
        batch_size=recipe.optim.batch_size,
        seed=recipe.seed,
        train=train,
        augment=data.augment,
        label_cache=_cached_labels(recipe, task, store) if label else None,
        feature_cache=_cached_features(recipe, task, store) if label else None,
        max_bad_ratio=data.max_bad_ratio,
        shards=row_shards(data, rows, store) if train and rows and not blind else None,
        fixed_frames=isinstance(recipe.task, LinearProbeConfig) and recipe.task.cache_encodings,
        workers=data.workers,
        prefetch=data.prefetch,
        timeout=data.timeout,
        pin=distributed.device(recipe.run.device).type == "cuda",
        rank=distributed.rank(),
        world_size=distributed.world_size(),
    )


def _store(recipe: Recipe, rows: Sequence[Example], size: int, *, train: bool) -> Store | None:
    """The frames of some rows that were decoded before, or are now where the recipe names a cache."""
    data = recipe.data
    if data.packed is not None and rows:
        pack = packed_for(data.packed, rows[0].clip, size, data.resize_mode)
        if train:
            problems = [f"{clip}: {status}: {reason}" for clip, (status, reason) in pack.problems.items()]
            check_bad(problems, len(pack), data.max_bad_ratio)
        return pack
    if data.cache is None:
        return None
    store = FrameCache(
        data.cache,
        (row.clip for row in rows),
        size=size,
        cached_frames=data.cached_frames,
        resize_mode=data.resize_mode,
    )
    with Meter("decoding", len(store), "clips") as meter:
        problems = store.fill(data.workers, lambda done, _: meter.update(done), data.timeout)
    for problem in problems[:5]:
        meter.console.print(f"unreadable: {problem}", highlight=False, markup=False, soft_wrap=True)
    if train:
        check_bad(problems, len(store.clips), data.max_bad_ratio)
    return store


def _cached_labels(recipe: Recipe, task: Task, store: Store | None) -> FeatureCache | None:
    """Token labels of a store, made now where they lack."""
    if not isinstance(recipe.task, PretrainConfig) or not recipe.task.mvm_weight or recipe.task.labels == "online":
        return None
    if store is None:
        raise ConfigError("task.labels = 'cached' needs cached frames: set data.cache to a folder, or data.packed")
    assert isinstance(task, Pretrain)
    tokenizer = task.tokenizer
    if tokenizer is None:
        raise ConfigError("task.labels = 'cached' needs task.tokenizer, the checkpoint of a video tokenizer")
    if tokenizer.config.encoder == "swin3d_t":
        raise ConfigError("task.labels: Video Swin labels depend on the frames beside them; take task.labels=online")
    grid = tokenizer.grid(1, store.size, store.size)
    labels = FeatureCache.labels(store, tokenizer.fingerprint(), grid, recipe.data.augment, recipe.seed)
    with Meter("labelling", len(store), "clips") as meter:
        labels.fill(tokenizer.labels, progress=lambda done, _: meter.update(done))
    return labels


def _cached_features(recipe: Recipe, task: Task, store: Store | None) -> FeatureCache | None:
    """What the frozen backbone sees in a store, computed now where it lacks."""
    if not recipe.data.features:
        return None
    if isinstance(task, Pretrain) or not isinstance(task, VideoTextTask):
        raise ConfigError(f"data.features cannot serve {task.name}, which encodes changed pixels: set it to false")
    if recipe.optim.backbone_lr_scale and not isinstance(recipe.task, LinearProbeConfig):
        raise ConfigError(
            f"data.features keeps what a frozen backbone sees, and optim.backbone_lr_scale = "
            f"{recipe.optim.backbone_lr_scale:g} trains it: set optim.backbone_lr_scale=0, or data.features=false"
        )
    if store is None:
        raise ConfigError("data.features needs cached frames: set data.cache to a folder, or data.packed")
    device = distributed.device(recipe.run.device)
    bf16 = distributed.uses_bf16(recipe.run.precision, device)
    encoder = task.model.video_encoder.to(device).eval()
    grid = encoder.grid(1, store.size, store.size)
    name = encoder.fingerprint("bf16" if bf16 else "fp32")
    kept = FeatureCache.features(store, name, grid, encoder.channels, recipe.data.augment, recipe.seed)

    def see(frames: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            return encoder.features(encoder.normalise(frames.to(device))).half()

    with Meter("encoding", len(store), "clips") as meter:
        kept.fill(see, max(1, 512 // store.cached_frames), lambda done, _: meter.update(done))
    return kept
