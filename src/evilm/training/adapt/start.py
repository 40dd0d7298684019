"""The checkpoint that adapting begins with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from evilm import config
from evilm.errors import CheckpointError
from evilm.inference.loading import EXPORT_FILE, model_folder
from evilm.model.presets import ModelConfig
from evilm.tasks import TASKS
from evilm.training import checkpoint
from evilm.training.recipe import Recipe, of_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

_EMBEDS = "embed.video_out.weight"


@dataclass(frozen=True)
class Start:
    """What is known of a checkpoint that can be trained on.

    Attributes:
        folder: it.
        recipe: it was trained by.
        shape: of its model.
        words: the longest text, in word pieces.
        embedding: width of its embeddings.
        focus: gamma of the focal loss that it was trained with.
    """

    folder: Path
    recipe: Recipe
    shape: ModelConfig
    words: int
    embedding: int
    focus: float


def trainable(model: str) -> Start:
    """The checkpoint that ``model`` names: a run, a checkpoint, or one on the hub.

    Raises:
        CheckpointError: no such model, an export, a video tokenizer, or a model that does not embed.
    """
    path = model_folder(model)
    if (path / EXPORT_FILE).is_file():
        raise CheckpointError(
            f"{model}: is an export, which cannot be trained: name the run or checkpoint that it was made from"
            f"{_origin(path)}"
        )
    folder = checkpoint.find(path)
    table = checkpoint.read_json(folder / "config.json")
    task = table.get("task")
    if task in TASKS and TASKS[task].is_tokenizer:
        raise CheckpointError(f"{folder}: is a video tokenizer: name the run of a retrieval model")
    if "recipe" not in table or "model" not in table:
        raise CheckpointError(f"{folder / 'config.json'}: holds no recipe, so this is no checkpoint of ours")
    weight = checkpoint.read_tensors(folder / "model.safetensors").get(_EMBEDS)
    if weight is None:
        raise CheckpointError(
            f"{folder}: this {task} model has no embedding head to adapt: take a retrieval model, or one pre-trained "
            "with task.contrastive_weight > 0"
        )
    recipe = of_checkpoint(folder, table)
    return Start(
        folder=folder,
        recipe=recipe,
        shape=config.check(ModelConfig, table["model"], f"{folder / 'config.json'}: model"),
        words=int(getattr(recipe.task, "max_text_len", 30)),
        embedding=int(weight.shape[0]),
        focus=float(getattr(recipe.task, "focal_gamma", 0.0)),
    )


def _origin(export: Path) -> str:
    """Where an export says that it was made from."""
    try:
        made = checkpoint.read_json(export / EXPORT_FILE)["metadata"]["source"]["recipe"]["run"]["output_dir"]
    except (CheckpointError, KeyError, TypeError):
        return ""
    return f" ({made}, it says)"
