"""The teacher of a distillation: an E-ViLM checkpoint with embeddings, or a dual encoder of another library."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from evilm import encoders
from evilm.encoders import names
from evilm.errors import CheckpointError
from evilm.model.heads import EmbeddingHead
from evilm.training import checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from evilm.data.video import Fit
    from evilm.tasks import Task
    from evilm.tasks.task import Teacher

_BATCH = 16  # clips or texts that are embedded at once


class OwnTeacher:
    """A trained E-ViLM with an embedding head, frozen.

    Args:
        task: the restored task, in evaluation mode.
        name: of the checkpoint, for messages.
        fingerprint: of its weights.
        fit: how its frames become square.
        device: of the computation.

    Raises:
        CheckpointError: the checkpoint has no embeddings.
    """

    def __init__(self, task: Task, name: str, fingerprint: str, fit: Fit, device: torch.device) -> None:
        parts, head = task.model_and_vocabulary, getattr(task, "embed", None)
        if parts is None or not isinstance(head, EmbeddingHead):
            raise CheckpointError(
                f"{name}: is a {task.name} checkpoint without embeddings, and cannot teach them: name one of "
                "retrieval, or pre-trained with task.contrastive_weight > 0"
            )
        task.to(device).eval().requires_grad_(False)
        self._model, self._vocabulary = parts
        self._head, self._device = head, device
        self._max_text_len = int(getattr(task, "max_text_len", self._model.config.max_text_len))
        self.fingerprint = fingerprint
        self.resize_mode: Fit = fit
        self.num_frames, self.image_size = self._model.config.num_frames, self._model.config.image_size
        self.embed_dim = head.out_dim
        self.sees, self.reads = head.has("video"), head.has("text")
        self.temperature = float(head.temperature)

    @torch.inference_mode()
    def embed_frames(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Unit vectors (n, d) of clips (n, T, size, size, 3)."""
        model = self._model
        found: list[NDArray[np.float32]] = []
        for i in range(0, len(frames), _BATCH):
            pixels = torch.from_numpy(frames[i : i + _BATCH]).to(self._device).permute(0, 1, 4, 2, 3)
            found.append(_array(self._head.video(model, model.encode_video(model.normalise(pixels)))))
        return np.concatenate(found)

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors (n, d) of sentences."""
        model = self._model
        found: list[NDArray[np.float32]] = []
        for i in range(0, len(texts), _BATCH):
            words = self._vocabulary.encode(texts[i : i + _BATCH], self._max_text_len).to(self._device)
            found.append(_array(self._head.text(model, model.encode_text(words))))
        return np.concatenate(found)


def load(name: str, device: torch.device, restore: Callable[[Path], tuple[Task, dict[str, Any]]]) -> Teacher:
    """The teacher called ``name``.

    Args:
        name: a checkpoint, a run, or the name of a dual encoder, as in ``task.teacher``.
        device: of the computation.
        restore: ``build.restore``.

    Raises:
        CheckpointError: there is none, or it has no embeddings.
        DependencyError: its library is missing.
    """
    path = Path(name).expanduser()
    if names.is_name(name) and not path.exists():
        return encoders.load(name, "cuda" if device.type == "cuda" else "cpu")
    task, metadata = restore(path)
    weights = str(checkpoint.read_json(checkpoint.find(path) / checkpoint.MANIFEST)["sha256"]["model.safetensors"])
    return OwnTeacher(task, name, weights[:16], metadata["recipe"]["data"].get("resize_mode", "crop"), device)


def _array(tensor: Tensor) -> NDArray[np.float32]:
    return tensor.float().cpu().numpy()
