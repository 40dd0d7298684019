"""What a run computes once and keeps on disk: decoded frames, token labels of them, features of a frozen backbone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from evilm import distributed
from evilm.data.feature_cache import FeatureCache
from evilm.data.frame_cache import FrameCache
from evilm.data.packed_frames import PackedFrames, packed_for
from evilm.data.workers import check_bad
from evilm.errors import ConfigError
from evilm.progress import Meter
from evilm.types import Grid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from evilm.data.pixels import Store
    from evilm.model.tokenizer import VideoTokenizer
    from evilm.tasks import Task
    from evilm.training.recipe import Recipe
    from evilm.types import Example

    # From a recipe, its tokenizer, the size of the frames and numbers of blocks to how many blocks are complete.
    LabelRunner = Callable[[Recipe, VideoTokenizer, int, Sequence[int]], Iterable[int]]


def frame_store(recipe: Recipe, examples: Sequence[Example], size: int, *, train: bool) -> Store | None:
    """The recipe's pack or frame cache, the latter filled now; None without either."""
    data = recipe.data
    if data.cache is None and (data.packed is None or not examples):
        return None
    store = open_store(recipe, examples, size)
    if isinstance(store, PackedFrames):
        if train:
            problems = [f"{clip}: {status}: {reason}" for clip, (status, reason) in store.problems.items()]
            check_bad(problems, len(store), data.max_bad_ratio)
        return store
    with Meter("decoding", len(store), "clips") as meter:
        problems = store.fill(data.workers, lambda done, _: meter.update(done), data.timeout)
    for problem in problems[:5]:
        meter.console.print(f"unreadable: {problem}", highlight=False, markup=False, soft_wrap=True)
    if train:
        check_bad(problems, len(store.clips), data.max_bad_ratio)
    return store


def open_store(recipe: Recipe, examples: Sequence[Example], size: int) -> PackedFrames | FrameCache:
    """The recipe's pack, or its frame cache as far as it is filled.

    Raises:
        ConfigError: it has neither.
    """
    data = recipe.data
    if data.packed is not None and examples:
        return packed_for(data.packed, examples[0].clip, size, data.resize_mode)
    if data.cache is None:
        raise ConfigError("no frames are cached: set data.cache to a folder, or data.packed")
    clips = (example.clip for example in examples)
    return FrameCache(data.cache, clips, size=size, cached_frames=data.cached_frames, resize_mode=data.resize_mode)


def open_labels(recipe: Recipe, tokenizer: VideoTokenizer, store: Store) -> FeatureCache:
    """Labels of cached frames, as far as they are computed."""
    grid = tokenizer.grid(1, store.size, store.size)
    return FeatureCache.labels(store, tokenizer.fingerprint(), grid, recipe.data.augment, recipe.seed)


def cached_labels(
    recipe: Recipe, task: Task, store: Store | None, runner: LabelRunner | None = None
) -> FeatureCache | None:
    """Labels of the task's video tokenizer for all cached frames, computed now where missing.

    Args:
        recipe, task: the settings and what they describe.
        store: the cached frames.
        runner: computes them elsewhere (see ``cluster``); None: here.
    """
    tokenizer = task.target_tokenizer
    if tokenizer is None or not task.caches_labels:
        return None
    if store is None:
        raise ConfigError("task.labels = 'cached' needs cached frames: set data.cache to a folder, or data.packed")
    labels = open_labels(recipe, tokenizer, store)
    with Meter("labelling", len(store), "clips") as meter:
        if runner is None:
            labels.fill(tokenizer.labels, progress=lambda done, _: meter.update(done))
        elif blocks := labels.missing():
            done = 0
            for some in runner(recipe, tokenizer, store.size, blocks):
                done += some
                meter.update(len(store) * done // len(blocks))
    return labels


def cached_features(recipe: Recipe, task: Task, store: Store | None) -> FeatureCache | None:
    """Features of the frozen backbone for all cached frames, computed now where missing."""
    if not recipe.data.features:
        return None
    parts = task.model_and_vocabulary
    if parts is None or not task.accepts_features:
        raise ConfigError(f"data.features: {task.name} encodes no unchanged frames; set data.features=false")
    if recipe.optim.backbone_lr_scale and not task.frozen_model:
        raise ConfigError(
            "data.features caches the output of a frozen backbone, and optim.backbone_lr_scale = "
            f"{recipe.optim.backbone_lr_scale:g} trains it: set optim.backbone_lr_scale=0, or data.features=false"
        )
    if store is None:
        raise ConfigError("data.features needs cached frames: set data.cache to a folder, or data.packed")
    device = distributed.device(recipe.run.device)
    bf16 = distributed.uses_bf16(recipe.run.precision, device)
    encoder = parts[0].video_encoder.to(device).eval()
    pooled = task.needs_pooled_only
    grid = Grid(1, 1, 1) if pooled else encoder.grid(1, store.size, store.size)
    name = encoder.fingerprint("bf16" if bf16 else "fp32")
    features = FeatureCache.features(store, name, grid, encoder.channels, recipe.data.augment, recipe.seed)

    def encode(frames: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            found = encoder.features(encoder.normalise(frames.to(device)))
            return (found.float().mean((2, 3), keepdim=True) if pooled else found).half()

    with Meter("encoding", len(store), "clips") as meter:
        features.fill(encode, max(1, 512 // store.cached_frames), lambda done, _: meter.update(done))
    return features
