"""Training the video tokenizers that Table 6 compares the semantic one with: by pixels, or by another's features."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, model_validator

from evilm import distributed, losses
from evilm.model.reconstruction import FeatureTokenizer, PixelTokenizer, TeacherConfig
from evilm.model.tokenizer import TokenizerConfig
from evilm.tasks.task import Facts, Metrics, Prediction, Task, TaskConfig, scored_rows
from evilm.types import Losses

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from evilm.types import Batch


class ReconstructionConfig(TaskConfig):
    """What the codes must tell, and how much each term weighs."""

    name: Literal["reconstruction"] = "reconstruction"
    target: Literal["pixels", "features"] = "pixels"
    tokenizer: TokenizerConfig = TokenizerConfig()
    teacher: TeacherConfig | None = Field(default=None, description="whose features; needed for features alone")
    num_frames: int = Field(default=4, gt=0)
    reconstruction_weight: float = Field(default=1.0, ge=0)
    codebook_weight: float = Field(
        default=1.0, ge=0, description="where codes are drawn (gumbel) this weighs a divergence: take 0.001"
    )
    commitment_weight: float = Field(default=0.25, ge=0)

    @model_validator(mode="after")
    def _has_teacher(self) -> ReconstructionConfig:
        if (self.teacher is None) == (self.target == "features"):
            raise ValueError("target 'features' needs a teacher (task.teacher.backbone), and 'pixels' takes none")
        return self

    def at_random(self) -> ReconstructionConfig:
        """The same without weights to start from: what a checkpoint is read into."""
        teacher = None if self.teacher is None else self.teacher.model_copy(update={"weights": "none"})
        plain = self.tokenizer.model_copy(update={"encoder_weights": "none"})
        return self.model_copy(update={"tokenizer": plain, "teacher": teacher})


class ReconstructionTask(Task):
    """Regions through one code each, and back."""

    name: ClassVar[str] = "reconstruction"
    primary_metric: ClassVar[str] = "explained"

    def __init__(self, config: ReconstructionConfig, facts: Facts) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = (
            PixelTokenizer(config.tokenizer)
            if config.teacher is None
            else FeatureTokenizer(config.tokenizer, config.teacher)
        )

    def losses(self, batch: Batch) -> Losses:
        told, quantized = self.tokenizer(batch.frames)
        off = losses.reconstruction(told, self.tokenizer.targets(batch.frames))
        total = (
            self.config.reconstruction_weight * off
            + self.config.codebook_weight * quantized.loss_codebook
            + self.config.commitment_weight * quantized.loss_commitment
        )
        counts = torch.bincount(quantized.labels.flatten(), minlength=self.config.tokenizer.codebook_size)
        return Losses(
            total,
            {
                "reconstruction": off.detach(),
                "codebook": quantized.loss_codebook.detach(),
                "commitment": quantized.loss_commitment.detach(),
                "codes_in_batch": (distributed.all_reduce_sum(counts) > 0).sum(),
            },
        )

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[Prediction]:
        """Per clip: its labels, the squared error, and the sums from which the split's variance follows."""
        told, quantized = self.tokenizer(batch.frames)
        wanted = self.tokenizer.targets(batch.frames).flatten(1, 2).double()  # (B, N, C)
        off = (told.flatten(1, 2).double() - wanted).pow(2).sum((1, 2)).cpu().numpy()
        sums, squares = wanted.sum(1).cpu().numpy(), wanted.pow(2).sum((1, 2)).cpu().numpy()
        labels = quantized.labels.flatten(1).cpu().numpy()
        return [
            Prediction(example, bool(ok), {"off": off[i], "sum": sums[i], "squares": squares[i], "labels": labels[i]})
            for i, (example, ok) in enumerate(zip(batch.examples, batch.readable, strict=True))
        ]

    def compute_metrics(self, predictions: Sequence[Prediction]) -> Metrics:
        """VOC. RATE, perplexity, explained share of the variance; unreadable clips are left out, and counted."""
        seen = [p for p in predictions if p.readable] or list(predictions)
        use, counts = self.tokenizer.measure(np.concatenate([p.values["labels"] for p in seen]))
        off, squares = (np.array([p.values[name] for p in seen]) for name in ("off", "squares"))
        spread = _spread(np.stack([p.values["sum"] for p in seen]), squares, len(seen[0].values["labels"]))
        each = np.clip(1 - off / np.maximum(spread, 1e-12), 0, 1)
        return Metrics(
            metrics={**use, "explained": 100 * (1 - float(off.sum() / max(spread.sum(), 1e-12)))},
            chance={"explained": 0.0},
            rule=f"{len(counts)} codes counted over {len(seen)} clips; explained is the share of the variance of "
            f"{self._what()} about the split's mean region",
            rows=scored_rows(seen, each.tolist(), {}),
            details={"counts": counts.tolist(), "collapsed": self.tokenizer.collapsed},
        )

    def _what(self) -> str:
        teacher = self.config.teacher
        if teacher is None:
            return "pixels"
        return f"features of {'an untrained ' if teacher.weights == 'none' else ''}{teacher.backbone}"


def _spread(sums: NDArray[np.float64], squares: NDArray[np.float64], regions: int) -> NDArray[np.float64]:
    """Squared distance of each clip's regions from the mean region of the split, (clips,).

    Args:
        sums: (clips, C) over a clip's regions.
        squares: (clips,) sums of squares over regions and channels.
        regions: how many a clip has.
    """
    mean = sums.sum(0) / (regions * len(sums))
    return squares - 2 * sums @ mean + regions * float(mean @ mean)
