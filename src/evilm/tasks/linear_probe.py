"""Linear probe of the frozen model's [CLS] on action classes (paper 4.2, Table 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from evilm import metrics
from evilm.model.layers import init_weights
from evilm.tasks.batches import masked_prediction
from evilm.tasks.predictions import Metrics, Prediction, scored_rows
from evilm.tasks.settings import TaskConfig
from evilm.tasks.task import Facts, VideoTextTask
from evilm.types import Losses

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from evilm.data.vocabulary import Vocabulary
    from evilm.model.evilm import EViLM
    from evilm.types import Batch, Example


class LinearProbeConfig(TaskConfig):
    """Settings of the classifier on the frozen [CLS]."""

    name: Literal["linear_probe"] = "linear_probe"
    protocol: Literal["strict", "all-in-one"] = Field(
        default="strict", description="one linear layer; or a tanh pooler and two layers, as in all-in-one"
    )


class LinearProbe(VideoTextTask):
    """Classify the frozen h^CLS of the video alone."""

    name: ClassVar[str] = "linear_probe"
    title: ClassVar[str] = "Linear probe"
    config_class: ClassVar[type[TaskConfig]] = LinearProbeConfig
    primary_metric: ClassVar[str] = "accuracy"
    frozen_model: ClassVar[bool] = True
    measures_exports: ClassVar[bool] = True
    required: ClassVar[str] = "class label"

    def __init__(self, model: EViLM, vocabulary: Vocabulary, config: LinearProbeConfig, facts: Facts) -> None:
        super().__init__(model, vocabulary, facts, max_text_len=4)
        self.config = config
        self.classes: list[str] = list(facts["classes"])
        width, count = model.embed_dim, len(self.classes)
        # BatchNorm without weights gives the linear layer features of one scale for every backbone.
        self.scale = nn.BatchNorm1d(width, affine=False)
        layers = [nn.Linear(width, count)]
        if config.protocol == "all-in-one":
            pooler, hidden = nn.Linear(width, width), nn.Linear(width, 2 * width)
            layers = [pooler, nn.Tanh(), hidden, nn.GELU(), nn.Linear(2 * width, count)]
        self.classifier = nn.Sequential(*layers)
        init_weights(self.classifier)
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        self._encodings: dict[str, Tensor] = {}

    @classmethod
    def learn_facts(cls, config: LinearProbeConfig, examples: Sequence[Example]) -> Facts:
        names = {example.label: example.kind or str(example.label) for example in examples if example.label is not None}
        return {"classes": [names.get(k, str(k)) for k in range(max(names) + 1)]}

    @staticmethod
    def lacks(example: Example) -> bool:
        return example.label is None

    @property
    def fixed_frames(self) -> bool:
        return True  # the [CLS] of each clip is computed once

    @property
    def averaged(self) -> tuple[str, ...]:
        return ("logits",)

    def train(self, mode: bool = True) -> LinearProbe:
        """Set training mode of the classifier; the frozen model stays in evaluation mode."""
        super().train(mode)
        self.model.eval()
        return self

    def losses(self, batch: Batch) -> Losses:
        labels = torch.tensor([example.label for example in batch.examples], device=batch.frames.device)
        loss = masked_prediction(self.classifier(self.scale(self._features(batch))), labels)
        return Losses(loss, {"class": loss.detach()})

    @torch.no_grad()
    def _features(self, batch: Batch) -> Tensor:
        """(B, D) frozen h^CLS."""
        keys = [example.clip.id for example in batch.examples]
        for key, clip in zip(keys, batch.pieces(len(batch)), strict=True):
            if key not in self._encodings:
                # One clip at a time, so that its state does not depend on the batch to the last bit.
                self._encodings[key] = self.model.fuse_cls(video=self.encode(clip))[0].float()
        return torch.stack([self._encodings[key] for key in keys])

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[Prediction]:
        video = self.encode(batch)
        logits = self.classifier(self.scale(self.model.fuse_cls(video=video).float())).float().cpu().numpy()
        return [
            Prediction(example, bool(ok), {"logits": logits[i]})
            for i, (example, ok) in enumerate(zip(batch.examples, batch.readable, strict=True))
        ]

    def predict_export(self, embedder: Any, examples: Sequence[Example], frames: NDArray[np.uint8]) -> list[Facts]:
        return [{"logits": row} for row in embedder.score_classes(frames)]

    def compute_metrics(self, predictions: Sequence[Prediction]) -> Metrics:
        """Top-1 and top-5 accuracy, and the confusion of classes; ties are broken at random, in expectation."""
        logits = np.stack([p.values["logits"] for p in predictions])
        labels = np.array([-1 if p.example.label is None else p.example.label for p in predictions])
        readable = np.array([p.readable for p in predictions]) & np.isfinite(logits).all(axis=1)
        order = np.argsort(-logits, axis=1, kind="stable")
        right = np.asarray(np.arange(len(self.classes))[None] == labels[:, None])
        top1, top5 = (np.where(readable, metrics.hits(logits, right, k), 0.0) for k in (1, 5))
        confusion = np.zeros((len(self.classes), len(self.classes)), dtype=int)
        known = (labels >= 0) & (labels < len(self.classes))
        np.add.at(confusion, (labels[known], order[known, 0]), 1)
        columns = {"label": labels.tolist(), "predicted": order[:, 0].tolist()}
        return Metrics(
            metrics={"accuracy": 100 * float(top1.mean()), "top5": 100 * float(top5.mean())},
            chance={"accuracy": 100 / len(self.classes), "top5": 100 * min(1.0, 5 / len(self.classes))},
            rule=f"{self.config.protocol}; {len(self.classes)} classes; frozen [CLS] of the video alone",
            rows=scored_rows(predictions, top1.tolist(), columns),
            details={"classes": self.classes, "confusion": confusion.tolist()},
        )
