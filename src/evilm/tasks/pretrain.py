"""Video-language pre-training: MLM + VTM + MVM (paper 3.2, 3.4, Eq. 3, 8; Table 5), and what we add to it.

Frames are encoded once a step, masked; the same encoding is fused with its own words and with others'.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from evilm import distributed, losses
from evilm.errors import ConfigError
from evilm.model.heads import EmbeddingHead, MatchHead, PatchHead, WordHead
from evilm.tasks import masking
from evilm.tasks.task import (
    Facts,
    Metrics,
    Prediction,
    TaskConfig,
    VideoTextTask,
    everyone,
    own_rows,
    predicted,
    same_video,
    scored_rows,
)
from evilm.types import Losses

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from evilm.data.vocabulary import Vocabulary
    from evilm.model.evilm import EViLM
    from evilm.model.tokenizer import VideoTokenizer
    from evilm.types import Batch, Encoded, Fused, Text


class PretrainConfig(TaskConfig):
    """Which objectives, and how much is hidden; the defaults are the paper's (sections 3.4, 4.1)."""

    name: Literal["pretrain"] = "pretrain"
    mvm_weight: float = Field(default=1.0, ge=0, description="weight of masked video modelling; 0 switches it off")
    mlm_weight: float = Field(default=1.0, ge=0)
    vtm_weight: float = Field(default=1.0, ge=0)
    contrastive_weight: float = Field(
        default=0.0, ge=0, description="beyond the paper: makes zero-shot fast retrieval possible"
    )
    tokenizer: str | None = Field(default=None, description="checkpoint of the video tokenizer; needed for mvm")
    backbone: Literal["own", "tokenizer"] = Field(
        default="own", description="start the video backbone from the tokenizer's, where both are of one kind"
    )
    labels: Literal["online", "cached"] = "online"
    focal_gamma: float = Field(
        default=0.0, ge=0, description="gamma of a focal loss for words and contrast: easy ones fade"
    )
    mask: masking.Shape = "block"
    mask_ratio: float = Field(default=0.4, gt=0, lt=1)
    mask_when: Literal["after", "before"] = Field(
        default="after", description="zero after pixel normalisation, or before it"
    )
    mlm_ratio: float = Field(default=0.15, gt=0, lt=1)
    matching: Literal["choice", "binary"] = Field(default="choice", description="VTM among 1 + negatives, or yes / no")
    num_negatives: int = Field(default=3, gt=0, description="other texts of the batch that each video is fused with")
    hard_negatives: bool = Field(default=False, description="draw negatives by contrastive similarity")
    max_text_len: int = Field(default=30, gt=2, description="longest text, in word pieces")
    embed_dim: int = Field(default=512, gt=0)


class Pretrain(VideoTextTask):
    """The paper's second stage.

    Args:
        model, vocabulary: see ``VideoTextTask``.
        config: which objectives.
        tokenizer: a trained one for MVM with online labels, or just its number of codes.
    """

    name: ClassVar[str] = "pretrain"
    primary_metric: ClassVar[str] = "score"

    def __init__(
        self,
        model: EViLM,
        vocabulary: Vocabulary,
        config: PretrainConfig,
        facts: Facts,
        tokenizer: VideoTokenizer | None,
    ) -> None:
        super().__init__(model, vocabulary, config.max_text_len)
        self.config = config
        if config.mvm_weight and not facts.get("codes"):
            raise ConfigError(
                "task.mvm_weight needs task.tokenizer, the checkpoint of a video tokenizer; or set task.mvm_weight=0"
            )
        if config.hard_negatives and not config.contrastive_weight:
            raise ConfigError("task.hard_negatives needs the similarities of task.contrastive_weight > 0")
        if not (config.mvm_weight or config.mlm_weight or config.vtm_weight or config.contrastive_weight):
            raise ConfigError("all of task.mvm_weight, mlm, vtm and contrastive are 0: nothing would be learned")
        # The tokenizer is no part of the model: kept out of its parameters and checkpoints.
        self._tokenizer = [tokenizer] if tokenizer is not None else []
        width = model.embed_dim
        if config.mlm_weight:
            self.word_head = WordHead(width, model.config.text_embed_dim, vocabulary.size)
        if config.mvm_weight:
            self.patch_head = PatchHead(width, int(facts["codes"]))
        if config.vtm_weight:
            self.match = MatchHead(width)
        if config.contrastive_weight:
            self.embed = EmbeddingHead.for_model(model, config.embed_dim)

    @property
    def tokenizer(self) -> VideoTokenizer | None:
        """The video tokenizer that labels regions online, where one was given."""
        return self._tokenizer[0] if self._tokenizer else None

    def losses(self, batch: Batch) -> Losses:
        config, model = self.config, self.model
        where, frames = self._hide_regions(batch)
        clean = self.text(self.captions(batch), batch)
        masked, hidden_words = self._hide_words(clean, batch)
        video = model.encode_video(frames)  # Eq. 1
        text = model.encode_text(masked)  # Eq. 1
        fused = model.fuse(video, text)  # Eq. 2
        parts: dict[str, Tensor] = {}
        if config.mvm_weight:
            assert fused.video is not None
            labels = self.labels(batch).flatten(1)  # Eq. 4
            parts["mvm"] = predicted(self.patch_head(fused.video[where]), labels[where])  # Eq. 3
        if config.mlm_weight:
            assert fused.text is not None
            hidden = hidden_words != losses.IGNORE
            logits = self.word_head(fused.text[hidden], model.text_encoder.word_embeddings)
            parts["mlm"] = predicted(logits, hidden_words[hidden], config.focal_gamma)
        similarity = None
        if config.contrastive_weight:
            v, t = self._embeddings(video, model.encode_text(clean) if config.mlm_weight else text)
            v, t = distributed.all_gather(v), distributed.all_gather(t)
            parts["contrastive"] = losses.contrastive(
                v, t, self.embed.temperature, same_video(batch), config.focal_gamma
            )
            similarity = (v @ t.T).detach()
        if config.vtm_weight and len(batch) * distributed.world_size() > 1:
            parts["vtm"] = self._matching(batch, video, text, fused, similarity)
        weights = {
            "mvm": config.mvm_weight,
            "mlm": config.mlm_weight,
            "vtm": config.vtm_weight,
            "contrastive": config.contrastive_weight,
        }
        total = torch.stack([weights[name] * loss for name, loss in parts.items()]).sum()  # Eq. 8
        return Losses(total, {name: loss.detach() for name, loss in parts.items()})

    def _hide_regions(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(B, N) bool where regions are hidden, and the normalised frames without them."""
        grid = self.model.video_encoder.grid(batch.frames.shape[1], *batch.frames.shape[-2:])
        where = masking.mask_patches(grid, self.config.mask_ratio, batch.seeds, self.config.mask).to(
            batch.frames.device
        )
        if self.config.mask_when == "before":
            return where, self.model.normalise(masking.hide_patches(batch.frames, where, grid))
        return where, masking.hide_patches(self.model.normalise(batch.frames), where, grid)

    def _hide_words(self, text: Text, batch: Batch) -> tuple[Text, Tensor]:
        """The text that the model reads, and (B, L) the true pieces of its hidden words; all of it without MLM."""
        if not self.config.mlm_weight:
            return text, torch.full_like(text.ids, losses.IGNORE)
        return masking.mask_words(
            text,
            batch.seeds,
            ratio=self.config.mlm_ratio,
            mask_id=self.vocabulary.mask_id,
            ordinary=(max(self.vocabulary.special_ids) + 1, self.vocabulary.size),
        )

    def labels(self, batch: Batch) -> Tensor:
        """(B, T, h, w) labels of the unmasked frames: cached, or asked of the tokenizer now."""
        if batch.labels is not None:
            return batch.labels
        if not self._tokenizer:
            raise ConfigError("task.mvm_weight: no cached labels and no tokenizer at hand; set task.tokenizer")
        return self._tokenizer[0].eval().to(batch.frames.device).labels(batch.frames)

    def _embeddings(self, video: Encoded, text: Encoded) -> tuple[Tensor, Tensor]:
        """(B, 512) each, from one-modality fusion."""
        return (
            self.embed.video(self.model.fuse_cls(video=video), video.pooled),
            self.embed.text(self.model.fuse_cls(text=text), text.pooled),
        )

    def _matching(self, batch: Batch, video: Encoded, text: Encoded, fused: Fused, similarity: Tensor | None) -> Tensor:
        """VTM: the fusion at hand against fusions of the same video with other texts of the batch."""
        others = self._partners(batch, similarity if self.config.hard_negatives else None)
        count = others.shape[1]
        rows = torch.arange(len(batch), device=others.device).repeat_interleave(count)
        against = self.model.fuse_cls(video[rows], everyone(text)[others.flatten()])
        scores = torch.cat([self.match(fused.cls)[:, None], self.match(against).view(-1, count)], 1)
        return losses.matching(scores) if self.config.matching == "choice" else losses.binary_matching(scores)

    def _partners(self, batch: Batch, similarity: Tensor | None) -> Tensor:
        """(B, negatives) rows of other clips' texts in the global batch, drawn evenly or by similarity."""
        same = same_video(batch)
        count = len(same)
        weight = torch.ones(count, count, device=batch.frames.device)
        if similarity is not None:
            weight = torch.softmax(similarity.float() / 0.05, dim=1) + 1e-4
        weight = weight.masked_fill(same, 0.0)
        # A batch of one clip only has no other texts: its own then serve, and the loss sits at chance.
        weight = weight + (weight.sum(1, keepdim=True) == 0)
        drawn = torch.multinomial(weight, self.config.num_negatives, replacement=count <= self.config.num_negatives)
        return own_rows(distributed.broadcast(drawn), batch)

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[Prediction]:
        """The objectives' accuracies on held-out clips, masked as in training."""
        config, model = self.config, self.model
        where, frames = self._hide_regions(batch)
        clean = self.text(self.captions(batch), batch)
        masked, hidden = self._hide_words(clean, batch)
        video, text = model.encode_video(frames), model.encode_text(masked)
        fused = model.fuse(video, text)
        columns: dict[str, np.ndarray] = {}
        if config.mvm_weight:
            assert fused.video is not None
            labels, guess = self.labels(batch).flatten(1), self.patch_head(fused.video).argmax(-1)
            columns["mvm"] = _share((guess == labels) & where, where)
            columns["labels"], columns["guesses"] = labels.cpu().numpy(), guess.cpu().numpy()
            columns["hidden"] = where.cpu().numpy()
        if config.mlm_weight:
            assert fused.text is not None
            guess = self.word_head(fused.text, model.text_encoder.word_embeddings).argmax(-1)
            columns["mlm"] = _share(guess == hidden, hidden != losses.IGNORE)
        if config.vtm_weight:
            other = model.fuse_cls(video, text[torch.arange(len(batch)).roll(1).to(where.device)])
            own, others = self.match(fused.cls), self.match(other)
            columns["vtm"] = ((own > others).float() + (own == others).float() / 2).cpu().numpy()  # a tie is chance
        if config.contrastive_weight:
            v, t = self._embeddings(model.encode_video(model.normalise(batch.frames)), model.encode_text(clean))
            columns["video"], columns["text"] = v.cpu().numpy(), t.cpu().numpy()
        return [
            Prediction(example, bool(ok), {name: values[i] for name, values in columns.items()})
            for i, (example, ok) in enumerate(zip(batch.examples, batch.readable, strict=True))
        ]

    def compute_metrics(self, predictions: Sequence[Prediction]) -> Metrics:
        """Accuracy of each objective, and their mean as ``score``."""
        seen = [p for p in predictions if p.readable] or list(predictions)
        named = [name for name in ("mvm", "mlm", "vtm") if name in seen[0].values]
        each = {name: np.array([p.values[name] for p in seen], dtype=np.float64) for name in named}
        found = {f"{name}_accuracy": 100 * float(values.mean()) for name, values in each.items()}
        if "video" in seen[0].values:
            v, t = (np.stack([p.values[name] for p in seen]) for name in ("video", "text"))
            best = (v @ t.T).argmax(1) == np.arange(len(seen))
            each["contrastive"], found["contrastive_R@1"] = best.astype(float), 100 * float(best.mean())
        score = np.mean(list(each.values()), axis=0)
        chance = {"vtm_accuracy": 50.0} if self.config.vtm_weight else {}
        if "labels" in seen[0].values:
            chance["mvm_accuracy"] = _most_frequent(seen)
        return Metrics(
            metrics=found | {"score": 100 * float(score.mean())},
            chance=chance,
            rule=f"masked as in training; VTM against one other text; {len(seen)} clips",
            rows=scored_rows(seen, list(score), {name: [float(x) for x in values] for name, values in each.items()}),
        )


def _share(right: Tensor, of: Tensor) -> np.ndarray:
    """(B,) share of positions ``of`` that are ``right``; rows without any count 0."""
    return (right.sum(1) / of.sum(1).clamp(min=1)).float().cpu().numpy()


def _most_frequent(seen: Sequence[Prediction]) -> float:
    """What always guessing the most frequent code would get, in percent."""
    hidden = np.concatenate([p.values["labels"][p.values["hidden"]] for p in seen])
    return 100 * float(np.bincount(hidden).max() / max(1, len(hidden)))
