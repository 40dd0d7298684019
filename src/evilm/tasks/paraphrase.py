"""Contrastive learning on pairs of captions of the same video or picture, without frames (beyond the paper).

Captions are easier to obtain than videos, and they teach which words have similar meanings and which carry little. The
text encoder, the fusion of texts and the text half of the embedding head are trained, from which retrieval then starts.
It is the usual training of sentence encoders, with in-batch negatives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from evilm import distributed, losses, metrics
from evilm.model.heads import EmbeddingHead
from evilm.tasks.batches import same_video
from evilm.tasks.predictions import Metrics, Prediction, own_video, scored_rows
from evilm.tasks.settings import EmbeddingTaskConfig, TaskConfig
from evilm.tasks.task import Facts, VideoTextTask
from evilm.types import Losses

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from evilm.data.vocabulary import Vocabulary
    from evilm.model.evilm import EViLM
    from evilm.types import Batch, Example


class ParaphraseConfig(EmbeddingTaskConfig):
    """Settings of contrastive learning on captions."""

    name: Literal["paraphrase"] = "paraphrase"
    temperature: float = Field(default=0.07, gt=0, description="initial value of the learned temperature of cosines")


class Paraphrase(VideoTextTask):
    """Find the other caption of the same video; no frames are used."""

    name: ClassVar[str] = "paraphrase"
    title: ClassVar[str] = "Caption pairs"
    config_class: ClassVar[type[TaskConfig]] = ParaphraseConfig
    primary_metric: ClassVar[str] = "R@1"
    accepts_features: bool = False
    required: ClassVar[str] = "second caption"

    def __init__(self, model: EViLM, vocabulary: Vocabulary, config: ParaphraseConfig, facts: Facts) -> None:
        super().__init__(model, vocabulary, facts, config.max_text_len)
        self.config = config
        self.embed = EmbeddingHead.for_model(model, config.embed_dim, config.temperature)
        self.leave_out(self.embed, "video")

    @property
    def needs_frames(self) -> bool:
        return False

    @staticmethod
    def lacks(example: Example) -> bool:
        return len(example.captions) < 2

    def losses(self, batch: Batch) -> Losses:
        first, second = (distributed.all_gather(each) for each in self._pairs(batch))
        loss = losses.contrastive(first, second, self.embed.temperature, same_video(batch), self.config.focal_gamma)
        return Losses(loss, {"paraphrase": loss.detach()})

    def _pairs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(B, embed_dim) each, l2-normalised: the embeddings of two captions of every row."""
        text = self.model.encode_text(self.text(self.several_captions(batch, 2), batch))
        embedded = self.embed.text(self.model, text)
        return embedded[0::2], embedded[1::2]

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[Prediction]:
        first, second = (each.float().cpu().numpy() for each in self._pairs(batch))
        return [
            Prediction(example, True, {"first": first[i], "second": second[i]})
            for i, example in enumerate(batch.examples)
        ]

    def compute_metrics(self, predictions: Sequence[Prediction]) -> Metrics:
        """Retrieval of the second caption of each row by the first, among those of all rows."""
        first, second = (np.stack([p.values[name] for p in predictions]) for name in ("first", "second"))
        scores, relevant = (first @ second.T).astype(np.float64), own_video(predictions)
        ranks = metrics.ranks(scores, relevant).tolist()
        return Metrics(
            metrics=metrics.retrieval(scores, relevant),
            chance=metrics.chance_retrieval(relevant),
            rule=f"the first caption retrieves the second; {len(predictions)} rows; ties at chance",
            rows=scored_rows(predictions, metrics.hits(scores, relevant, 1).tolist(), {"rank": ranks}),
        )
