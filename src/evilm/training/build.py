"""From a recipe to what a run needs: the task with its model, the rows of the data set, and their batches."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from evilm import __version__, config, distributed
from evilm.data import readers
from evilm.data.loader import Loader, row_shards
from evilm.data.pixels import FilePixels, NoPixels, StoredPixels
from evilm.data.table import collect
from evilm.data.vocabulary import Vocabulary
from evilm.errors import CheckpointError
from evilm.model.evilm import EViLM
from evilm.model.heads import AnswerHead, EmbeddingHead, embedding_width
from evilm.model.presets import ModelConfig
from evilm.tasks import TASKS, Parts
from evilm.tasks.caption_words import piece_weights
from evilm.training import caches as filled
from evilm.training import checkpoint, logger, teacher
from evilm.training import recipe as recipes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from evilm.data.config import DataConfig, SourceConfig
    from evilm.model.tokenizer import VideoTokenizer
    from evilm.tasks import Task, TaskConfig
    from evilm.training.recipe import Recipe
    from evilm.types import Example


@dataclass(frozen=True)
class Start:
    """What the parameters of a run were initialised from.

    Attributes:
        loaded: names of tensors from the start checkpoint.
        fresh: names of tensors that are random.
        unused: names of tensors of the checkpoint that the task does not have.
        published: a line for each part that took published weights.
    """

    loaded: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    published: tuple[str, ...] = ()

    def __str__(self) -> str:
        def parts(names: Sequence[str]) -> str:
            tops = sorted({".".join(name.split(".")[: 2 if name.startswith("model.") else 1]) for name in names})
            return ", ".join(tops) or "nothing"

        return f"loaded: {parts(self.loaded)}; random: {parts(self.fresh)}; unused: {parts(self.unused)}"


def new_task(recipe: Recipe, examples: Sequence[Example]) -> tuple[Task, Start]:
    """The task of a recipe for training on ``examples``, and what it was initialised from.

    Raises:
        CheckpointError, ConfigError, DataError: recipe, start checkpoint and rows do not fit together.
    """
    torch.manual_seed(recipe.seed)
    kind = TASKS[recipe.task.name]
    kind.check_rows(examples, "data.train")
    if kind.is_tokenizer:
        return kind.create(recipe.task, examples, _parts(recipe)), Start()
    origin = None if recipe.start is None else checkpoint.find(recipe.start)
    shape, vocabulary = recipe.model, None if recipe.vocabulary is None else Vocabulary.load(recipe.vocabulary)
    if origin is not None:
        saved = checkpoint.read_json(origin / "config.json")
        if saved.get("model") is None:
            raise CheckpointError(f"{origin}: is a {saved.get('task')} checkpoint, which holds no E-ViLM to start from")
        shape = shape or config.check(ModelConfig, saved["model"], str(origin))
        trained_with = Vocabulary.load(origin / "vocabulary.json")
        if vocabulary is not None and vocabulary.fingerprint != trained_with.fingerprint:
            raise CheckpointError(
                f"{origin}: was trained with another vocabulary than {recipe.vocabulary}; leave `vocabulary` out"
            )
        vocabulary = trained_with
    assert shape is not None  # Recipe asks for a model or a start
    vocabulary = vocabulary or Vocabulary.default()
    untrained = shape if origin is None else shape.model_copy(update={"backbone_weights": "none"})
    model = EViLM(untrained, vocabulary.size)
    published = tuple(model.load_published(vocabulary.pieces)) if origin is None else ()
    parts = Parts(model, vocabulary, load_tokenizer, partial(_load_teacher, recipe.run.device))
    task = kind.create(recipe.task, examples, parts)
    start = Start(published=published) if origin is None else _load_start(task, origin)
    if shape.pools and not model.text_encoder.piece_weights.any():
        weights = piece_weights(vocabulary, [caption for row in examples for caption in row.captions])
        model.text_encoder.piece_weights.copy_(torch.from_numpy(weights))
    if origin is not None and shape.embedding == "pooled":
        _keep_heads(task, origin, recipe)
    task.check_start(start.loaded)
    return task, start


def _keep_heads(task: Task, origin: Path, recipe: Recipe) -> None:
    """Save heads of the start with the task where they stay true, so that one model embeds, answers and does the task.

    With both encoders frozen, embeddings of pooled features do not change while a task trains the fusion decoder, and
    answers do not change while a task trains the embeddings.
    """
    parts = task.model_and_vocabulary
    if recipe.optim.backbone_lr_scale or recipe.optim.text_lr_scale or parts is None:
        return
    saved, tensors = checkpoint.read_json(origin / "config.json"), checkpoint.read_tensors(origin / "model.safetensors")
    width, answers = embedding_width(tensors), saved["facts"].get("answers")
    if not hasattr(task, "embed") and width is not None and embedding_width(tensors, "text") is not None:
        name, head, facts = "embed", EmbeddingHead.for_model(parts[0], width), {"embed_dim": width}
    elif task.needs_pooled_only and answers and "answer_head.layers.4.weight" in tensors:
        name, head = "answer_head", AnswerHead(parts[0].embed_dim, len(answers), 0.0)
        facts = {"answers": answers, "cannot_tell": saved.get("cannot_tell")}
    else:
        return
    head.load_state_dict({key: tensors[f"{name}.{key}"] for key in head.state_dict()})
    setattr(task, name, head.requires_grad_(False))
    task.facts = {**task.facts, **facts}


def _load_start(task: Task, origin: Path) -> Start:
    """Copy every tensor that fits; heads may differ, the model may not."""
    saved, own = checkpoint.read_tensors(origin / "model.safetensors"), task.state_dict()
    fits = {name: tensor for name, tensor in saved.items() if name in own and own[name].shape == tensor.shape}
    clash = [name for name in saved if name.startswith("model.") and name in own and name not in fits]
    lacking = [name for name in own if name.startswith("model.") and name not in fits]
    if clash or lacking:
        raise CheckpointError(
            f"{origin}: is not of this model's shape ({(clash or lacking)[0]}): leave the recipe's [model] out to take "
            "the checkpoint's"
        )
    task.load_state_dict({**own, **fits})
    return Start(tuple(fits), tuple(n for n in own if n not in fits), tuple(n for n in saved if n not in fits))


def restore(path: Path, task: TaskConfig | None = None) -> tuple[Task, dict[str, Any]]:
    """The task of a checkpoint, in evaluation mode, and the checkpoint's ``config.json``.

    Args:
        path: a checkpoint, or a run, which stands for its newest valid checkpoint.
        task: settings of another task to evaluate as (zero-shot); its heads are taken from the checkpoint.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, of another task or version, or lacks a head.
    """
    folder = checkpoint.find(path)
    metadata = checkpoint.read_json(folder / "config.json")
    recipe = recipes.of_checkpoint(folder, metadata)
    settings = task or recipe.task
    kind, trained = TASKS[settings.name], TASKS[recipe.task.name]
    if kind.is_tokenizer != trained.is_tokenizer:
        raise CheckpointError(f"{folder}: holds {'a' if trained.is_tokenizer else 'no'} video tokenizer")
    parts = Parts(None, None, load_tokenizer, partial(_load_teacher, "cpu"))
    if not kind.is_tokenizer:
        shape = config.check(ModelConfig, metadata["model"], f"{folder / 'config.json'}: model")
        vocabulary = Vocabulary.load(folder / "vocabulary.json")
        model = EViLM(shape.model_copy(update={"backbone_weights": "none"}), vocabulary.size)
        parts = Parts(model, vocabulary, parts.load_tokenizer, parts.load_teacher)
    try:
        restored = kind.restore(settings, metadata["facts"], parts)
    except KeyError as error:
        raise CheckpointError(
            f"{folder}: a {trained.name} checkpoint has no {error.args[0]}, which {kind.name} needs: fine-tune it"
        ) from None
    tensors = checkpoint.read_tensors(folder / "model.safetensors")
    lacking = [name for name in restored.state_dict() if name not in tensors]
    if lacking:
        raise CheckpointError(
            f"{folder}: a {trained.name} checkpoint has no trained {lacking[0].split('.')[0]!r} head, which "
            f"{kind.name} needs: fine-tune it, or pre-train with the objective that trains this head"
        )
    try:
        restored.load_state_dict({name: tensors[name] for name in restored.state_dict()})
    except RuntimeError as error:
        last = str(error).splitlines()[-1].strip()
        raise CheckpointError(f"{folder}: tensors do not fit the model: {last}") from None
    return restored.eval(), metadata


def load_tokenizer(path: Path) -> VideoTokenizer:
    """The trained video tokenizer of a checkpoint or run, frozen and in evaluation mode.

    Raises:
        CheckpointError: the checkpoint holds none.
    """
    restored, metadata = restore(path)
    tokenizer = restored.video_tokenizer
    if tokenizer is None:
        raise CheckpointError(f"{path}: is a {metadata['task']} checkpoint, not a video tokenizer's")
    return tokenizer.eval().requires_grad_(False)


def _load_teacher(device: str, name: str) -> teacher.Teacher:
    return teacher.load(name, distributed.device(device), restore)


def _parts(recipe: Recipe) -> Parts:
    return Parts(None, None, load_tokenizer, partial(_load_teacher, recipe.run.device))


def metadata_of(recipe: Recipe, task: Task, start: Start) -> dict[str, Any]:
    """The ``config.json`` of a checkpoint: what is needed to build the task again, and how it was made."""
    parts = task.model_and_vocabulary
    return {
        "task": task.name,
        "recipe": json.loads(recipe.model_dump_json()),
        "facts": task.facts,
        "model": None if parts is None else json.loads(parts[0].config.model_dump_json()),
        "start": {
            "from": str(recipe.start) if recipe.start else None,
            "parts": str(start),
            "published": start.published,
        },
        "versions": logger.packages() | {"evilm": __version__},
    }


def examples_of(source: SourceConfig) -> Sequence[Example]:
    """The rows of one split, reduced evenly to ``limit``; a list, or a memory-mapped table if they are many."""
    rows = collect(readers.stream(source.reader, source.annotations, source.videos, source.split))
    if source.limit is None or source.limit >= len(rows):
        return rows
    return [rows[i * len(rows) // source.limit] for i in range(source.limit)]


def training_examples(data: DataConfig) -> Sequence[Example]:
    """The training rows of a recipe: those of ``train``, then those of ``extra_train``."""
    rows = examples_of(data.train)
    return [*rows, *(row for source in data.extra_train for row in examples_of(source))] if data.extra_train else rows


def make_loader(
    recipe: Recipe, task: Task, examples: Sequence[Example], *, train: bool, caches: bool = False
) -> Loader:
    """Batches of some rows, decoded from files, or read from the recipe's frame cache or pack.

    Args:
        recipe: the settings.
        task: the task that the batches are for.
        examples: rows of one split.
        train: sample frames, crops and order at random; see ``Loader``.
        caches: add cached labels and features, if the recipe asks for them.
    """
    data = recipe.data
    task.prepare(examples, data.cache, data.workers)
    frames, size = task.clip_shape
    store = filled.frame_store(recipe, examples, size, train=train) if task.needs_frames else None
    pixels = NoPixels(size) if not task.needs_frames else FilePixels(size, data.resize_mode)
    return Loader(
        examples=examples,
        pixels=pixels if store is None else StoredPixels(store),
        num_frames=frames,
        size=size,
        batch_size=recipe.optim.batch_size,
        seed=recipe.seed,
        train=train,
        augment=data.augment,
        label_cache=filled.cached_labels(recipe, task, store) if caches else None,
        feature_cache=filled.cached_features(recipe, task, store) if caches else None,
        max_bad_ratio=data.max_bad_ratio,
        shards=row_shards(data, examples, store) if train and examples and task.needs_frames else None,
        fixed_frames=task.fixed_frames,
        workers=data.workers,
        prefetch=data.prefetch,
        timeout=data.timeout,
        pin=distributed.device(recipe.run.device).type == "cuda",
        rank=distributed.rank(),
        world_size=distributed.world_size(),
    )
