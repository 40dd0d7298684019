"""Training the tokenizers that Table 6 compares with: reconstruction of pixels, or of another network's features."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator

from evilm import losses
from evilm.model.reconstruction import FeatureTokenizer, PixelTokenizer, TeacherConfig
from evilm.tasks.batches import with_codebook_losses
from evilm.tasks.predictions import Metrics, Prediction, scored_rows
from evilm.tasks.settings import TaskConfig, TokenizerTrainingConfig
from evilm.tasks.task import Facts, Parts, Task

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from evilm.types import Batch, Example, Losses


class ReconstructionConfig(TokenizerTrainingConfig):
    """Settings of a reconstructing tokenizer."""

    name: Literal["reconstruction"] = "reconstruction"
    target: Literal["pixels", "features"] = Field(default="pixels", description="what the codes reconstruct")
    teacher: TeacherConfig | None = Field(default=None, description="network whose features are reconstructed")
    commitment_weight: float = Field(default=0.25, ge=0, description="weight of the commitment loss")

    @model_validator(mode="after")
    def _has_teacher(self) -> ReconstructionConfig:
        if (self.teacher is None) == (self.target == "features"):
            raise ValueError("target 'features' needs a teacher (task.teacher.backbone), and 'pixels' takes none")
        return self


class ReconstructionTask(Task):
    """Reconstruct each patch from its code."""

    name: ClassVar[str] = "reconstruction"
    title: ClassVar[str] = "Reconstructing tokenizer"
    config_class: ClassVar[type[TaskConfig]] = ReconstructionConfig
    primary_metric: ClassVar[str] = "explained"
    is_tokenizer: ClassVar[bool] = True

    def __init__(self, config: ReconstructionConfig, facts: Facts) -> None:
        super().__init__(facts)
        self.config = config
        self.tokenizer = (
            PixelTokenizer(config.tokenizer)
            if config.teacher is None
            else FeatureTokenizer(config.tokenizer, config.teacher)
        )

    @classmethod
    def create(cls, config: ReconstructionConfig, examples: Sequence[Example], parts: Parts) -> Self:
        return cls(config, {})

    @classmethod
    def restore(cls, config: ReconstructionConfig, facts: Facts, parts: Parts) -> Self:
        teacher = None if config.teacher is None else config.teacher.model_copy(update={"weights": "none"})
        untrained = config.tokenizer.model_copy(update={"encoder_weights": "none"})
        return cls(config.model_copy(update={"tokenizer": untrained, "teacher": teacher}), facts)

    @property
    def clip_shape(self) -> tuple[int, int]:
        return self.config.num_frames, self.config.tokenizer.image_size

    @property
    def video_tokenizer(self) -> PixelTokenizer | FeatureTokenizer:
        return self.tokenizer

    def losses(self, batch: Batch) -> Losses:
        output, quantized = self.tokenizer(batch.frames)
        error = losses.reconstruction(output, self.tokenizer.targets(batch.frames))
        return with_codebook_losses("reconstruction", error, 1.0, quantized, self.config)

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[Prediction]:
        """Labels and squared error of each clip, and the sums that give the variance of the split."""
        output, quantized = self.tokenizer(batch.frames)
        wanted = self.tokenizer.targets(batch.frames).flatten(1, 2).double()  # (B, N, C)
        error = (output.flatten(1, 2).double() - wanted).pow(2).sum((1, 2)).cpu().numpy()
        sums, squares = wanted.sum(1).cpu().numpy(), wanted.pow(2).sum((1, 2)).cpu().numpy()
        labels = quantized.labels.flatten(1).cpu().numpy()
        return [
            Prediction(
                example, bool(ok), {"error": error[i], "sum": sums[i], "squares": squares[i], "labels": labels[i]}
            )
            for i, (example, ok) in enumerate(zip(batch.examples, batch.readable, strict=True))
        ]

    def compute_metrics(self, predictions: Sequence[Prediction]) -> Metrics:
        """VOC. RATE, perplexity and explained fraction of the variance over the readable clips."""
        seen = [p for p in predictions if p.readable] or list(predictions)
        use, counts = self.tokenizer.measure(np.concatenate([p.values["labels"] for p in seen]))
        error, squares = (np.array([p.values[name] for p in seen]) for name in ("error", "squares"))
        spread = _spread(np.stack([p.values["sum"] for p in seen]), squares, len(seen[0].values["labels"]))
        each = np.clip(1 - error / np.maximum(spread, 1e-12), 0, 1)
        return Metrics(
            metrics={**use, "explained": 100 * (1 - float(error.sum() / max(spread.sum(), 1e-12)))},
            chance={"explained": 0.0},
            rule=f"{len(counts)} codes counted over {len(seen)} clips; explained is the fraction of the variance of "
            f"{self._target_name()} around the mean patch of the split",
            rows=scored_rows(seen, each.tolist(), {}),
            details={"counts": counts.tolist(), "collapsed": self.tokenizer.collapsed},
        )

    def _target_name(self) -> str:
        teacher = self.config.teacher
        if teacher is None:
            return "pixels"
        return f"features of {'an untrained ' if teacher.weights == 'none' else ''}{teacher.backbone}"


def _spread(sums: NDArray[np.float64], squares: NDArray[np.float64], patches: int) -> NDArray[np.float64]:
    """Squared distance (clips,) of each clip's patches from the mean patch of the split.

    Args:
        sums: (clips, C) over a clip's patches.
        squares: (clips,) sums of squares over patches and channels.
        patches: number of patches of a clip.
    """
    mean = sums.sum(0) / (patches * len(sums))
    return squares - 2 * sums @ mean + patches * float(mean @ mean)
