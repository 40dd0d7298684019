"""From a recipe to its task: made anew, started from a checkpoint, or restored from one as it was."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from evilm import config, distributed
from evilm.data.vocabulary import Vocabulary
from evilm.errors import CheckpointError, ConfigError
from evilm.model.evilm import EViLM
from evilm.model.presets import ModelConfig
from evilm.model.tokenizer import FrameEncoder
from evilm.tasks import FINETUNE, TOKENIZERS
from evilm.tasks.caption_words import piece_weights
from evilm.tasks.distill import Distill, DistillConfig
from evilm.tasks.pretrain import Pretrain, PretrainConfig
from evilm.tasks.reconstruction import ReconstructionConfig, ReconstructionTask
from evilm.tasks.retrieval import Retrieval
from evilm.tasks.tokenizer import TokenizerTask, TokenizerTaskConfig
from evilm.training import checkpoint, teacher
from evilm.training.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evilm.model.tokenizer import VideoTokenizer
    from evilm.tasks import AnyTaskConfig, Task
    from evilm.types import Example


@dataclass(frozen=True)
class Start:
    """What a run started from, by parameter.

    Attributes:
        loaded: names that came from the checkpoint.
        fresh: names that start at random.
        left: names of the checkpoint that found no place.
        published: what came from published weights of the parts, a line each.
    """

    loaded: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    published: tuple[str, ...] = ()

    def __str__(self) -> str:
        def parts(names: Sequence[str]) -> str:
            tops = sorted({".".join(name.split(".")[: 2 if name.startswith("model.") else 1]) for name in names})
            return ", ".join(tops) or "nothing"

        return f"loaded: {parts(self.loaded)}; at random: {parts(self.fresh)}; left out: {parts(self.left)}"


def new_task(recipe: Recipe, rows: Sequence[Example]) -> tuple[Task, dict[str, Any], Start]:
    """The task of a recipe, its facts, and what it started from."""
    torch.manual_seed(recipe.seed)
    task_config = recipe.task
    if isinstance(task_config, TokenizerTaskConfig | ReconstructionConfig):
        trains = TOKENIZERS[task_config.name]
        facts = trains.learn_facts(task_config, rows)  # pyright: ignore[reportArgumentType], each with its own config
        return trains(task_config, facts), facts, Start()  # pyright: ignore[reportArgumentType]
    origin = None if recipe.start is None else checkpoint.find(recipe.start)
    about = None if origin is None else checkpoint.read_json(origin / "config.json")
    if about is not None and about.get("model") is None:
        raise CheckpointError(f"{origin}: is a {about.get('task')} checkpoint, which holds no E-ViLM to start from")
    shape = recipe.model or config.check(ModelConfig, (about or {})["model"], str(origin))
    vocabulary = _vocabulary(recipe, origin)
    model = EViLM(shape if origin is None else shape.model_copy(update={"backbone_weights": "none"}), vocabulary.size)
    published = tuple(model.load_published(vocabulary.pieces)) if origin is None else ()
    if isinstance(task_config, PretrainConfig):
        tokenizer, facts = _tokenizer(task_config)
        if tokenizer is not None:
            tokenizer.check_grid(model.video_encoder.grid(shape.num_frames, shape.image_size, shape.image_size))
        if task_config.backbone == "tokenizer":
            _share_backbone(model, tokenizer)
        task: Task = Pretrain(model, vocabulary, task_config, facts, tokenizer)
    elif isinstance(task_config, DistillConfig):
        whose = teacher.named(task_config.teacher, distributed.device(recipe.run.device), restore)
        facts = Distill.facts(task_config, rows, whose)
        task = Distill(model, vocabulary, task_config, facts, whose)
    else:
        kind = FINETUNE[task_config.name]
        facts = kind.learn_facts(task_config, rows)  # pyright: ignore[reportArgumentType], each with its own config
        task = kind(model, vocabulary, task_config, facts)  # pyright: ignore[reportArgumentType]
    start = Start(published=published) if origin is None else _load_start(task, origin)
    if shape.pooled_skip and not model.text_encoder.piece_weights.any():
        weights = piece_weights(vocabulary, [caption for row in rows for caption in row.captions])
        model.text_encoder.piece_weights.copy_(torch.from_numpy(weights))
    if isinstance(task, Retrieval):
        task.check_start(start.loaded)
    return task, facts, start


def _vocabulary(recipe: Recipe, origin: Path | None) -> Vocabulary:
    """The recipe's words, which must be those of the checkpoint it starts from."""
    own = None if recipe.vocabulary is None else Vocabulary.load(recipe.vocabulary)
    if origin is None:
        return own or Vocabulary.default()
    theirs = Vocabulary.load(origin / "vocabulary.json")
    if own is not None and own.fingerprint != theirs.fingerprint:
        raise CheckpointError(
            f"{origin}: was trained with another vocabulary than {recipe.vocabulary}; leave `vocabulary` out"
        )
    return theirs


def _tokenizer(task: PretrainConfig) -> tuple[VideoTokenizer | None, dict[str, Any]]:
    """The trained video tokenizer that MVM takes its labels from."""
    if not task.mvm_weight or task.tokenizer is None:
        return None, {}
    restored, about = restore(Path(task.tokenizer))
    if not isinstance(restored, TokenizerTask | ReconstructionTask):
        raise CheckpointError(f"{task.tokenizer}: is a {about['task']} checkpoint, not a video tokenizer's")
    tokenizer = restored.tokenizer.eval()
    tokenizer.check_not_collapsed()
    for parameter in tokenizer.parameters():
        parameter.requires_grad_(False)
    return tokenizer, {"codes": tokenizer.config.codebook_size, "tokenizer": tokenizer.fingerprint()}


def _share_backbone(model: EViLM, tokenizer: VideoTokenizer | None) -> None:
    """Start the model's backbone where the tokenizer's ended.

    Raises:
        ConfigError: there is no tokenizer, or its encoder is another backbone.
    """
    own, theirs = model.config, None if tokenizer is None else tokenizer.config
    if tokenizer is None or theirs is None or (theirs.encoder, theirs.stride) != (own.backbone, own.stride):
        said = "there is no tokenizer" if theirs is None else f"the tokenizer's is {theirs.encoder} at {theirs.stride}"
        raise ConfigError(
            f"task.backbone = 'tokenizer' needs the model's {own.backbone} at stride {own.stride} and {said}: "
            "set task.backbone=own"
        )
    assert isinstance(tokenizer.encoder, FrameEncoder)
    try:
        model.video_encoder.backbone.load_state_dict(tokenizer.encoder.backbone.state_dict())
    except RuntimeError:
        raise ConfigError(
            f"task.backbone = 'tokenizer': model.backbone_options {own.backbone_options} make another {own.backbone} "
            f"than the tokenizer's {theirs.encoder_options}: set them alike, or task.backbone=own"
        ) from None


def _load_start(task: Task, origin: Path) -> Start:
    """Copy every tensor that has a place in ``task``; positions of another size are an error, heads may differ."""
    theirs, own = checkpoint.read_tensors(origin / "model.safetensors"), task.state_dict()
    fits = {name: tensor for name, tensor in theirs.items() if name in own and own[name].shape == tensor.shape}
    clash = [name for name in theirs if name.startswith("model.") and name in own and name not in fits]
    lacking = [name for name in own if name.startswith("model.") and name not in fits]
    if clash or lacking:
        worst = (clash or lacking)[0]
        raise CheckpointError(
            f"{origin}: is not of this model's shape ({worst}): leave the recipe's [model] out to take the checkpoint's"
        )
    task.load_state_dict({**own, **fits})
    return Start(tuple(fits), tuple(n for n in own if n not in fits), tuple(n for n in theirs if n not in fits))


def restore(path: Path, task: AnyTaskConfig | None = None) -> tuple[Task, dict[str, Any]]:
    """The task that a checkpoint holds, in evaluation mode, and its ``config.json``.

    Args:
        path: a checkpoint, or a run (its newest valid checkpoint).
        task: evaluate as this task instead: heads are taken from the checkpoint (zero-shot).

    Raises:
        CheckpointError: missing, damaged, of another task, or without a head that is needed.
    """
    folder = checkpoint.find(path)
    about = checkpoint.read_json(folder / "config.json")
    try:
        recipe = config.check(Recipe, about["recipe"], f"{folder / 'config.json'}: recipe")
        facts = about["facts"]
    except (KeyError, ConfigError) as error:
        raise CheckpointError(f"{folder / 'config.json'}: not written by this version: {error}") from None
    if isinstance(recipe.task, TokenizerTaskConfig | ReconstructionConfig):
        trained = TOKENIZERS[recipe.task.name]
        restored: Task = trained(recipe.task.at_random(), facts)  # pyright: ignore[reportArgumentType]
    else:
        table: Any = about.get("model")
        shape = config.check(ModelConfig, table, f"{folder / 'config.json'}: model").model_copy(
            update={"backbone_weights": "none"}
        )
        vocabulary = Vocabulary.load(folder / "vocabulary.json")
        model = EViLM(shape, vocabulary.size)
        wanted = task or recipe.task
        if isinstance(wanted, PretrainConfig):
            restored = Pretrain(model, vocabulary, wanted, facts, _tokenizer_at_hand(wanted, facts))
        elif isinstance(wanted, TokenizerTaskConfig | ReconstructionConfig):
            raise CheckpointError(f"{folder}: holds no video tokenizer")
        elif isinstance(wanted, DistillConfig):
            restored = Distill(model, vocabulary, wanted, facts, teacher.at_hand(wanted.teacher, facts, restore))
        else:
            try:
                restored = FINETUNE[wanted.name](model, vocabulary, wanted, facts)  # pyright: ignore[reportArgumentType]
            except KeyError as error:
                raise CheckpointError(
                    f"{folder}: a {about['task']} checkpoint knows no {error.args[0]}, which {wanted.name} needs: "
                    "fine-tune it for that"
                ) from None
    tensors = checkpoint.read_tensors(folder / "model.safetensors")
    lacking = [name for name in restored.state_dict() if name not in tensors]
    if lacking:
        raise CheckpointError(
            f"{folder}: a {about['task']} checkpoint has no trained {lacking[0].split('.')[0]!r} head, which "
            f"{(task or recipe.task).name} needs: fine-tune it, or pre-train with the objective that trains it"
        )
    try:
        restored.load_state_dict({name: tensors[name] for name in restored.state_dict()})
    except RuntimeError as error:
        last = str(error).splitlines()[-1].strip()
        raise CheckpointError(f"{folder}: tensors do not fit the model: {last}") from None
    return restored.eval(), about


def _tokenizer_at_hand(task: PretrainConfig, facts: dict[str, Any]) -> VideoTokenizer | None:
    """The tokenizer of a pre-trained checkpoint, where its run is still there and still the same."""
    if not task.mvm_weight or task.tokenizer is None or not Path(task.tokenizer).exists():
        return None
    tokenizer, now = _tokenizer(task)
    if facts.get("tokenizer") != now["tokenizer"]:
        raise CheckpointError(f"{task.tokenizer}: is not the video tokenizer that this model was pre-trained with")
    return tokenizer
