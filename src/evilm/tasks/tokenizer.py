"""Training the semantic vector-quantized video tokenizer (paper 3.3, Eq. 5-7; Table 6)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field

from evilm import losses, metrics
from evilm.model.tokenizer import Tokenizer
from evilm.tasks.batches import caption_of, with_codebook_losses
from evilm.tasks.caption_words import CaptionWords, Kind
from evilm.tasks.predictions import Metrics, Prediction, scored_rows
from evilm.tasks.settings import TaskConfig, TokenizerTrainingConfig
from evilm.tasks.task import Facts, Parts, Task

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from evilm.types import Batch, Example, Losses


class TokenizerTaskConfig(TokenizerTrainingConfig):
    """Settings of tokenizer training; the defaults are the paper's, with the remedy against codebook collapse."""

    name: Literal["tokenizer"] = "tokenizer"
    word_loss: Literal["focal", "bce"] = Field(default="focal", description="Eq. 6, or binary cross-entropy")
    word_weight: float = Field(default=1.0, ge=0, description="weight of the word loss in Eq. 7")
    captions: Literal["drawn", "all"] = Field(
        default="drawn", description="target words: those of one caption drawn at random, or of all captions of a clip"
    )
    kinds: Kind = Field(default="all", description="all words, or nouns and adjectives only")
    min_count: int = Field(default=5, gt=0, description="least number of captions that a target word occurs in")
    max_words: int | None = Field(default=None, gt=0, description="largest number of target words; none keeps all")


class TokenizerTask(Task):
    """Predict caption words from one code per patch."""

    name: ClassVar[str] = "tokenizer"
    title: ClassVar[str] = "Video tokenizer"
    config_class: ClassVar[type[TaskConfig]] = TokenizerTaskConfig
    primary_metric: ClassVar[str] = "word_mAP"
    is_tokenizer: ClassVar[bool] = True

    def __init__(self, config: TokenizerTaskConfig, facts: Facts) -> None:
        super().__init__(facts)
        self.config = config
        self.caption_words = CaptionWords(facts["words"], config.kinds)
        self.tokenizer = Tokenizer(config.tokenizer, len(self.caption_words))

    @classmethod
    def create(cls, config: TokenizerTaskConfig, examples: Sequence[Example], parts: Parts) -> Self:
        return cls(config, cls.learn_facts(config, examples))

    @classmethod
    def restore(cls, config: TokenizerTaskConfig, facts: Facts, parts: Parts) -> Self:
        untrained = config.tokenizer.model_copy(update={"encoder_weights": "none"})
        return cls(config.model_copy(update={"tokenizer": untrained}), facts)

    @property
    def clip_shape(self) -> tuple[int, int]:
        return self.config.num_frames, self.config.tokenizer.image_size

    @property
    def video_tokenizer(self) -> Tokenizer:
        return self.tokenizer

    @classmethod
    def learn_facts(cls, config: TokenizerTaskConfig, examples: Sequence[Example]) -> Facts:
        captions = (caption for example in examples for caption in example.captions)
        found = CaptionWords.count(captions, min_count=config.min_count, max_words=config.max_words, kind=config.kinds)
        return {"words": list(found.words), "words_sha256": found.fingerprint()}

    def losses(self, batch: Batch) -> Losses:
        logits, quantized = self.tokenizer(batch.frames)
        targets = torch.from_numpy(self._targets(batch)).to(logits.device)
        of_words = losses.focal_words if self.config.word_loss == "focal" else losses.bce_words
        words = of_words(logits, targets)  # Eq. 6
        return with_codebook_losses("words", words, self.config.word_weight, quantized, self.config)  # Eq. 7

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[Prediction]:
        logits, quantized = self.tokenizer(batch.frames)
        scores, targets = logits.float().cpu().numpy(), self._targets(batch)
        labels = quantized.labels.flatten(1).cpu().numpy()
        return [
            Prediction(example, bool(ok), {"scores": scores[i], "targets": targets[i], "labels": labels[i]})
            for i, (example, ok) in enumerate(zip(batch.examples, batch.readable, strict=True))
        ]

    def compute_metrics(self, predictions: Sequence[Prediction]) -> Metrics:
        """VOC. RATE, perplexity and word mAP over the readable clips."""
        seen = [p for p in predictions if p.readable] or list(predictions)
        scores = np.stack([p.values["scores"] for p in seen])
        targets = np.stack([p.values["targets"] for p in seen]).astype(bool)
        use, counts = self.tokenizer.measure(np.concatenate([p.values["labels"] for p in seen]))
        found = targets.any(axis=0)
        precision = [
            metrics.mean_average_precision(s[None].T, t[None].T) if t.any() else 0.0
            for s, t in zip(scores, targets, strict=True)
        ]
        return Metrics(
            metrics={**use, "word_mAP": 100 * metrics.mean_average_precision(scores, targets)},
            chance={"word_mAP": 100 * float(targets[:, found].mean()) if found.any() else 0.0},
            rule=f"{len(counts)} codes counted over {len(seen)} clips; word mAP over {int(found.sum())} caption words",
            rows=scored_rows(seen, precision, {}),
            details={"counts": counts.tolist(), "collapsed": self.tokenizer.collapsed},
        )

    def _targets(self, batch: Batch) -> NDArray[np.float32]:
        """(B, K) multi-hot words."""
        if self.config.captions == "all":
            return self.caption_words.targets([example.captions for example in batch.examples])
        pairs = zip(batch.examples, batch.own_seeds, strict=True)
        return self.caption_words.targets([[caption_of(e, seed if self.training else None)] for e, seed in pairs])
