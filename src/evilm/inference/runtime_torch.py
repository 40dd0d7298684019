"""A checkpoint run by torch, on the CPU or a GPU."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from evilm import config, distributed
from evilm.data.vocabulary import Vocabulary
from evilm.errors import CheckpointError
from evilm.inference import graphs
from evilm.inference.runtime import EncodedArrays, Metadata, Threshold
from evilm.model.evilm import EViLM
from evilm.model.presets import ModelConfig
from evilm.training import checkpoint
from evilm.training.recipe import of_checkpoint

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from evilm.inference.runtime import Head
    from evilm.training.recipe import Recipe

_MAX_OPTION = 16384  # the largest number in a backbone's options: a width, a size or a depth


class TorchRuntime:
    """A checkpoint run by torch.

    Args:
        path: a checkpoint, or a run, of which the newest valid checkpoint is taken.
        device: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        CheckpointError: missing, damaged, of a video tokenizer, or of a text-only baseline.
    """

    def __init__(self, path: Path, device: distributed.DeviceName = "cpu") -> None:
        self.folder = checkpoint.find(path)
        table = checkpoint.read_json(self.folder / "config.json")
        self.recipe = recipe = _recipe(self.folder, table)
        shape = config.check(ModelConfig, table["model"], f"{self.folder / 'config.json'}: model")
        self.vocabulary = Vocabulary.load(self.folder / "vocabulary.json")
        tensors = checkpoint.read_tensors(self.folder / "model.safetensors")
        check_shape(self.folder, shape, tensors)
        self.model = EViLM(shape.model_copy(update={"backbone_weights": "none"}), self.vocabulary.size)
        own = {name[6:]: tensor for name, tensor in tensors.items() if name.startswith("model.")}
        try:
            self.model.load_state_dict(own)
            self.heads, temperature = graphs.load_heads(tensors, self.model)
        except RuntimeError as error:
            raise CheckpointError(f"{self.folder}: tensors do not fit the model: {_last(error)}") from None
        except CheckpointError as error:
            raise CheckpointError(f"{self.folder}: {error}") from None
        self.device = distributed.device(device)
        self.graphs: dict[str, nn.Module] = {
            "video": graphs.VideoGraph(self.model),
            "text": graphs.TextGraph(self.model),
            "fusion": graphs.FusionGraph(self.model.fusion),
        }
        for module in [*self.graphs.values(), *self.heads.values()]:
            module.eval().to(self.device)
        self.metadata = _metadata(recipe, table, shape, self.folder, self.heads, temperature)
        self.fingerprint = str(self.metadata.source["weights"])[:16]
        self.form = f"checkpoint, {self.device.type}"

    def encode_video(self, frames: NDArray[np.uint8]) -> EncodedArrays:
        """(n, T, H, W, 3) to patches (n, N, D)."""
        patches, *pooled = (_array(each) for each in self._run(self.graphs["video"], frames))
        return EncodedArrays(patches, np.ones(patches.shape[:2], dtype=np.bool_), *pooled)

    def encode_text(self, ids: NDArray[np.int64], mask: NDArray[np.bool_]) -> EncodedArrays:
        """(n, L) each to words (n, L, D)."""
        words, *pooled = (_array(each) for each in self._run(self.graphs["text"], ids, mask))
        return EncodedArrays(words, mask, *pooled)

    def fuse(
        self, tokens: NDArray[np.float32], mask: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(n, S, D) and (n, S) to h^CLS (n, D) and its attention (n, S)."""
        cls, attention = self._run(self.graphs["fusion"], tokens, mask)
        return _array(cls), _array(attention)

    def apply_head(
        self, name: Head, cls: NDArray[np.float32] | None, pooled: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """h^CLS (n, D), and the pooled features for an embedding, to (n, K)."""
        return _array(self._run(self.heads[name], *(each for each in (cls, pooled) if each is not None)))

    @torch.inference_mode()
    def _run(self, module: nn.Module, *arrays: NDArray[Any]) -> Any:
        return module(*(torch.from_numpy(np.ascontiguousarray(array)).to(self.device) for array in arrays))


def _recipe(folder: Path, table: Mapping[str, Any]) -> Recipe:
    """The recipe of a checkpoint.

    Raises:
        CheckpointError: of another version, of a video tokenizer, or of a text-only baseline.
    """
    if table.get("model") is None:
        raise CheckpointError(f"{folder}: holds a video tokenizer and no video-language model; name another run")
    recipe = of_checkpoint(folder, table)
    if getattr(recipe.task, "text_only", False):
        raise CheckpointError(
            f"{folder}: is a text-only baseline (task.text_only), which sees no video; name another run"
        )
    return recipe


def check_shape(folder: Path, shape: ModelConfig, tensors: Mapping[str, Tensor]) -> None:
    """Check that the tensors have the sizes of the settings, before a model of those sizes is built.

    Without this check, a file of a few bytes could demand any amount of memory.

    Raises:
        CheckpointError: a size differs.
    """
    side = shape.image_size // shape.stride
    sizes: dict[str, tuple[int, ...]] = {
        "model.video_encoder.space": (1, shape.embed_dim, side, side),
        "model.video_encoder.time": (1, shape.embed_dim, shape.num_frames),
        "model.fusion.blocks.0.feed.0.weight": (shape.mlp_dim, shape.embed_dim),
        f"model.fusion.blocks.{shape.depth - 1}.norm1.weight": (shape.embed_dim,),
        "model.text_encoder.bert.embeddings.position_embeddings.weight": (shape.max_text_len, shape.text_embed_dim),
        f"model.text_encoder.bert.encoder.layer.{shape.text_depth - 1}.intermediate.dense.weight": (
            shape.text_mlp_dim,
            shape.text_embed_dim,
        ),
    }
    wrong = [name for name, wanted in sizes.items() if name not in tensors or tuple(tensors[name].shape) != wanted]
    numbers = [n for value in shape.backbone_options.values() for n in (value if isinstance(value, list) else [value])]
    large = [number for number in numbers if not isinstance(number, str) and number > _MAX_OPTION]
    if wrong or large:
        problem = f"{wrong[0]} has another size" if wrong else f"backbone_options has {large[0]}"
        raise CheckpointError(f"{folder}: its model.safetensors does not fit its config.json ({problem})")


def _metadata(
    recipe: Recipe, table: Mapping[str, Any], shape: ModelConfig, folder: Path,
    heads: Mapping[Head, nn.Module], temperature: float | None,
) -> Metadata:  # fmt: skip
    facts: Mapping[str, Any] = table["facts"]
    threshold: Any = table.get("cannot_tell")
    embed: Any = heads.get("embed_video")
    return Metadata(
        task=recipe.task.name,
        num_frames=shape.num_frames,
        image_size=shape.image_size,
        resize_mode=recipe.data.resize_mode,
        grid=(shape.image_size // shape.stride, shape.image_size // shape.stride),
        max_text_len=min(int(getattr(recipe.task, "max_text_len", shape.max_text_len)), shape.max_text_len),
        hidden_dim=shape.embed_dim,
        embedding=shape.embedding,
        embed_dim=None if embed is None else int(embed.out_dim),
        temperature=temperature,
        heads=tuple(heads),
        answers=tuple(facts.get("answers", ())),
        classes=tuple(facts.get("classes", ())),
        answer_threshold=None if threshold is None else config.check(Threshold, threshold, str(folder / "config.json")),
        source={
            "weights": checkpoint.read_json(folder / checkpoint.MANIFEST)["sha256"]["model.safetensors"],
            "step": table.get("step"),
            "recipe": json.loads(recipe.model_dump_json()),
            "model": json.loads(shape.model_dump_json()),  # the recipe names none if it starts from another run
            "validation": table.get("validation"),
            "versions": table.get("versions"),
        },
    )


def _array(tensor: Tensor) -> NDArray[np.float32]:
    return tensor.float().cpu().numpy()


def _last(error: Exception) -> str:
    return str(error).splitlines()[-1].strip()
