"""Who teaches a student by ``distill``: a checkpoint of ours, or a dual encoder of another library."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from evilm import distributed, encoders
from evilm.data.teacher_targets import TeacherTargets
from evilm.encoders import names
from evilm.errors import CheckpointError, DependencyError
from evilm.model.heads import EmbeddingHead
from evilm.progress import Meter
from evilm.tasks.task import VideoTextTask
from evilm.training import checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from evilm.data.config import DataConfig
    from evilm.data.video import Fit
    from evilm.tasks import Distill, Task
    from evilm.tasks.distill import Teacher
    from evilm.types import Example

    Restore = Callable[[Path], tuple[Task, dict[str, Any]]]

_AT_ONCE = 16


class OwnTeacher:
    """A trained E-ViLM with an embedding head, frozen.

    Args:
        task: restored from ``path``, in evaluation mode.
        path: named in errors.
        fingerprint: of its weights.
        fit: how its pictures become square.
        device: where it runs.

    Raises:
        CheckpointError: it embeds nothing.
    """

    def __init__(self, task: VideoTextTask, path: str, fingerprint: str, fit: Fit, device: torch.device) -> None:
        embed: Any = getattr(task, "embed", None)
        if not isinstance(embed, EmbeddingHead):
            raise CheckpointError(
                f"{path}: is a {task.name} checkpoint without embeddings, and cannot teach them: name one of "
                "retrieval, or pre-trained with task.contrastive_weight > 0"
            )
        self._task, self._embed, self._device = task.to(device).eval().requires_grad_(False), embed, device
        self.fingerprint = fingerprint
        self.resize_mode: Fit = fit
        self.num_frames, self.image_size = task.model.config.num_frames, task.model.config.image_size
        self.embed_dim = int(embed.video_out.out_features)
        self.reads = hasattr(embed, "text_out")
        self.temperature = float(embed.temperature)

    @torch.inference_mode()
    def embed_frames(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Clips (n, T, size, size, 3) to unit vectors (n, d)."""
        model = self._task.model
        found: list[NDArray[np.float32]] = []
        for i in range(0, len(frames), _AT_ONCE):
            pixels = torch.from_numpy(frames[i : i + _AT_ONCE]).to(self._device).permute(0, 1, 4, 2, 3)
            found.append(_array(self._embed.video(model.fuse(video=model.encode_video(model.normalise(pixels))).cls)))
        return np.concatenate(found)

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Sentences to unit vectors (n, d)."""
        model = self._task.model
        found: list[NDArray[np.float32]] = []
        for i in range(0, len(texts), _AT_ONCE):
            words = self._task.vocabulary.encode(texts[i : i + _AT_ONCE], self._task.words).to(self._device)
            found.append(_array(self._embed.text(model.fuse(text=model.encode_text(words)).cls)))
        return np.concatenate(found)


def named(name: str, device: torch.device, restore: Restore) -> Teacher:
    """The teacher of that name.

    Args:
        name: as ``task.teacher`` has it.
        device: where it runs.
        restore: ``assembly.restore``.

    Raises:
        CheckpointError: there is none, or it has no embeddings.
        DependencyError: its library is missing.
    """
    path = Path(name).expanduser()
    if names.is_name(name) and not path.exists():
        return encoders.load(name, "cuda" if device.type == "cuda" else "cpu")
    restored, about = restore(path)
    if not isinstance(restored, VideoTextTask):
        raise CheckpointError(f"{path}: is a {about['task']} checkpoint, and cannot teach embeddings")
    weights = str(checkpoint.read_json(checkpoint.find(path) / checkpoint.MANIFEST)["sha256"]["model.safetensors"])
    return OwnTeacher(restored, name, weights[:16], about["recipe"]["data"].get("fit", "crop"), device)


def at_hand(name: str, facts: Mapping[str, Any], restore: Restore) -> Teacher | None:
    """The teacher of a distilled checkpoint, where it is still there.

    Args:
        name: as ``task.teacher`` has it.
        facts: of the checkpoint.
        restore: ``assembly.restore``.

    Raises:
        CheckpointError: another one is there.
    """
    try:
        found = named(name, distributed.device("cpu"), restore)
    except (CheckpointError, DependencyError):
        return None
    if found.fingerprint != facts["teacher"]:
        raise CheckpointError(f"{name}: is not the teacher that this model was distilled from: name it in task.teacher")
    return found


def look(task: Distill, rows: Sequence[Example], data: DataConfig) -> None:
    """Let the teacher of a task look at the clips of some rows, as far as it has not; what it says is kept."""
    if task.teacher is None:
        return
    if task.targets is None:
        kept = data.cache if task.config.targets is None else Path(task.config.targets)
        task.targets = TeacherTargets(task.teacher, kept)
    clips = [row.clip for row in rows]
    with Meter("teacher looks at", len(task.targets.missing(clips)), "clips") as meter:
        for problem in task.targets.fill(clips, data.workers, meter.update)[:5]:
            meter.console.print(f"unreadable: {problem}", highlight=False, markup=False, soft_wrap=True)


def _array(tensor: Tensor) -> NDArray[np.float32]:
    return tensor.float().cpu().numpy()
