"""Video-language pre-training: MLM + VTM + MVM (paper 3.2, 3.4, Eq. 3, 8; Table 5) and a contrastive loss of ours.

Masked frames are encoded once per step; that encoding is fused with its own text and with texts of other clips.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field

from evilm import distributed, losses
from evilm.errors import CheckpointError, ConfigError
from evilm.model.heads import EmbeddingHead, MatchHead, PatchHead, WordHead
from evilm.model.tokenizer import FrameEncoder
from evilm.tasks import masking
from evilm.tasks.batches import gather_texts, local_rows, masked_prediction, same_video
from evilm.tasks.predictions import Metrics, Prediction, scored_rows
from evilm.tasks.settings import PairTaskConfig, TaskConfig
from evilm.tasks.task import Facts, Parts, VideoTextTask
from evilm.types import Losses

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from evilm.data.vocabulary import Vocabulary
    from evilm.model.evilm import EViLM
    from evilm.model.tokenizer import VideoTokenizer
    from evilm.types import Batch, Encoded, Example, Fused, Text


class PretrainConfig(PairTaskConfig):
    """Objectives and masking; the defaults are the paper's (sections 3.4, 4.1)."""

    name: Literal["pretrain"] = "pretrain"
    mvm_weight: float = Field(default=1.0, ge=0, description="weight of masked video modelling; 0 switches it off")
    mlm_weight: float = Field(default=1.0, ge=0, description="weight of masked language modelling")
    vtm_weight: float = Field(default=1.0, ge=0, description="weight of video-text matching")
    contrastive_weight: float = Field(default=0.0, ge=0, description="weight of a contrastive loss; not in the paper")
    tokenizer: str | None = Field(default=None, description="checkpoint of the video tokenizer; MVM needs one")
    backbone: Literal["own", "tokenizer"] = Field(
        default="own", description="initialise the video backbone from the tokenizer's, if both are of one kind"
    )
    labels: Literal["online", "cached"] = Field(
        default="online", description="compute MVM labels in each step, or once per cached frame"
    )
    mask: masking.Shape = Field(default="block", description="shape of the masked areas")
    mask_ratio: float = Field(default=0.4, gt=0, lt=1, description="fraction of patches that are masked")
    mlm_ratio: float = Field(default=0.15, gt=0, lt=1, description="fraction of word pieces that are masked")
    matching: Literal["choice", "binary"] = Field(
        default="choice", description="VTM loss: choose among 1 + num_negatives texts, or yes / no for each"
    )
    num_negatives: int = Field(default=3, gt=0, description="texts of other clips that each video is fused with")
    hard_negatives: bool = Field(default=False, description="draw negatives by contrastive similarity")

    def scoring_head(self) -> Literal["match", "embed"]:
        return "embed" if not self.vtm_weight and self.contrastive_weight else "match"


class Pretrain(VideoTextTask):
    """The paper's second training stage.

    Args:
        model, vocabulary, facts: see ``VideoTextTask``; ``facts["codes"]`` is the size of the tokenizer's codebook.
        config: the settings.
        tokenizer: the trained video tokenizer that gives the MVM labels; None if all labels are cached.
    """

    name: ClassVar[str] = "pretrain"
    title: ClassVar[str] = "Pre-training"
    config_class: ClassVar[type[TaskConfig]] = PretrainConfig
    primary_metric: ClassVar[str] = "score"

    def __init__(
        self,
        model: EViLM,
        vocabulary: Vocabulary,
        config: PretrainConfig,
        facts: Facts,
        tokenizer: VideoTokenizer | None,
    ) -> None:
        super().__init__(model, vocabulary, facts, config.max_text_len)
        self.config = config
        if config.mvm_weight and not facts.get("codes"):
            raise ConfigError(
                "task.mvm_weight needs task.tokenizer, the checkpoint of a video tokenizer; or set task.mvm_weight=0"
            )
        if config.hard_negatives and not config.contrastive_weight:
            raise ConfigError("task.hard_negatives needs the similarities of task.contrastive_weight > 0")
        if not (config.mvm_weight or config.mlm_weight or config.vtm_weight or config.contrastive_weight):
            raise ConfigError(
                "task.mvm_weight, mlm_weight, vtm_weight and contrastive_weight are all 0: nothing would be learned"
            )
        self.accepts_features = not config.mvm_weight  # masked frames are encoded anew in each step
        # In a list, so that the tokenizer's weights are neither trained nor saved.
        self._tokenizer = [tokenizer] if tokenizer is not None else []
        width = model.embed_dim
        if config.mlm_weight:
            self.word_head = WordHead(width, model.config.text_embed_dim, vocabulary.size)
        if config.mvm_weight:
            self.patch_head = PatchHead(width, int(facts["codes"]))
        if config.vtm_weight:
            self.match = MatchHead(width)
        if config.contrastive_weight:
            self.embed = EmbeddingHead.for_model(model, config.embed_dim, config.temperature)

    @classmethod
    def create(cls, config: PretrainConfig, examples: Sequence[Example], parts: Parts) -> Self:
        model, vocabulary = parts.model, parts.vocabulary
        assert model is not None
        assert vocabulary is not None
        tokenizer = None
        if config.mvm_weight and config.tokenizer is not None:
            tokenizer = parts.load_tokenizer(Path(config.tokenizer))
            tokenizer.check_not_collapsed()
            shape = model.config
            tokenizer.check_grid(model.video_encoder.grid(shape.num_frames, shape.image_size, shape.image_size))
            if config.labels == "cached" and tokenizer.config.encoder == "swin3d_t":
                raise ConfigError(
                    "task.labels: Video Swin labels depend on neighbouring frames; set task.labels=online"
                )
        if config.backbone == "tokenizer":
            _share_backbone(model, tokenizer)
        return cls(model, vocabulary, config, {} if tokenizer is None else _facts_of(tokenizer), tokenizer)

    @classmethod
    def restore(cls, config: PretrainConfig, facts: Facts, parts: Parts) -> Self:
        """The tokenizer is loaded if its checkpoint still exists; it must be the one of the pre-training."""
        assert parts.model is not None
        assert parts.vocabulary is not None
        tokenizer = None
        if config.mvm_weight and config.tokenizer is not None and Path(config.tokenizer).exists():
            tokenizer = parts.load_tokenizer(Path(config.tokenizer))
            if facts.get("tokenizer") != tokenizer.fingerprint():
                raise CheckpointError(
                    f"{config.tokenizer}: is not the video tokenizer that this model was pre-trained with"
                )
        return cls(parts.model, parts.vocabulary, config, facts, tokenizer)

    @property
    def target_tokenizer(self) -> VideoTokenizer | None:
        return self._tokenizer[0] if self._tokenizer else None

    @property
    def caches_labels(self) -> bool:
        return bool(self.config.mvm_weight) and self.config.labels == "cached"

    def losses(self, batch: Batch) -> Losses:
        config, model = self.config, self.model
        video, where = self._encode_masked(batch)  # Eq. 1
        clean = self.text(self.captions(batch), batch)
        masked, hidden_words = self._mask_words(clean, batch)
        text = model.encode_text(masked)  # Eq. 1
        fused = model.fuse(video, text)  # Eq. 2
        parts: dict[str, Tensor] = {}
        if config.mvm_weight:
            assert fused.video is not None
            labels = self.labels(batch).flatten(1)  # Eq. 4
            parts["mvm"] = masked_prediction(self.patch_head(fused.video[where]), labels[where])  # Eq. 3
        if config.mlm_weight:
            assert fused.text is not None
            hidden = hidden_words != losses.IGNORE
            logits = self.word_head(fused.text[hidden], model.text_encoder.word_embeddings)
            parts["mlm"] = masked_prediction(logits, hidden_words[hidden], config.focal_gamma)
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

    def _encode_masked(self, batch: Batch) -> tuple[Encoded, Tensor]:
        """e^V of the frames with masked patches set to zero, and (B, N) bool those patches; none without MVM."""
        if not self.config.mvm_weight:
            video = self.encode(batch)
            return video, torch.zeros(video.tokens.shape[:2], dtype=torch.bool, device=video.tokens.device)
        grid = self.model.video_encoder.grid(batch.frames.shape[1], *batch.frames.shape[-2:])
        where = masking.mask_patches(grid, self.config.mask_ratio, batch.seeds, self.config.mask)
        where = where.to(batch.frames.device)
        return self.model.encode_video(masking.hide_patches(self.model.normalise(batch.frames), where, grid)), where

    def _mask_words(self, text: Text, batch: Batch) -> tuple[Text, Tensor]:
        """The masked text, and (B, L) the original pieces of its masked words; the text itself without MLM."""
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
        """(B, T, h, w) codebook labels of the unmasked frames: cached ones, or computed by the tokenizer."""
        if batch.labels is not None:
            return batch.labels
        if self.target_tokenizer is None:
            raise ConfigError(
                "task.mvm_weight > 0 needs labels, and there is neither a cache nor a tokenizer: set task.tokenizer"
            )
        return self.target_tokenizer.eval().to(batch.frames.device).labels(batch.frames)

    def _embeddings(self, video: Encoded, text: Encoded) -> tuple[Tensor, Tensor]:
        """(B, embed_dim) each, from one-modality fusion."""
        return self.embed.video(self.model, video), self.embed.text(self.model, text)

    def _matching(self, batch: Batch, video: Encoded, text: Encoded, fused: Fused, similarity: Tensor | None) -> Tensor:
        """VTM: the fusion with the own text against fusions of the same video with other texts of the batch."""
        others = self._partners(batch, similarity if self.config.hard_negatives else None)
        count = others.shape[1]
        rows = torch.arange(len(batch), device=others.device).repeat_interleave(count)
        against = self.model.fuse_cls(video[rows], gather_texts(text)[others.flatten()])
        scores = torch.cat([self.match(fused.cls)[:, None], self.match(against).view(-1, count)], 1)
        return losses.matching(scores) if self.config.matching == "choice" else losses.binary_matching(scores)

    def _partners(self, batch: Batch, similarity: Tensor | None) -> Tensor:
        """(B, negatives) rows of texts of other clips in the global batch, drawn evenly or by similarity."""
        same = same_video(batch)
        count = len(same)
        weight = torch.ones(count, count, device=batch.frames.device)
        if similarity is not None:
            weight = torch.softmax(similarity.float() / 0.05, dim=1) + 1e-4
        weight = weight.masked_fill(same, 0.0)
        # If all rows show one video, its own texts are drawn, and the loss stays at chance.
        weight = weight + (weight.sum(1, keepdim=True) == 0)
        drawn = torch.multinomial(weight, self.config.num_negatives, replacement=count <= self.config.num_negatives)
        return local_rows(distributed.broadcast(drawn), batch)

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[Prediction]:
        """Accuracy of each objective, masked as in training."""
        config, model = self.config, self.model
        video, where = self._encode_masked(batch)
        clean = self.text(self.captions(batch), batch)
        masked, hidden = self._mask_words(clean, batch)
        text = model.encode_text(masked)
        fused = model.fuse(video, text)
        columns: dict[str, np.ndarray] = {}
        if config.mvm_weight:
            assert fused.video is not None
            labels, guess = self.labels(batch).flatten(1), self.patch_head(fused.video).argmax(-1)
            columns["mvm"] = _fraction((guess == labels) & where, where)
            columns["labels"], columns["guesses"] = labels.cpu().numpy(), guess.cpu().numpy()
            columns["hidden"] = where.cpu().numpy()
        if config.mlm_weight:
            assert fused.text is not None
            guess = self.word_head(fused.text, model.text_encoder.word_embeddings).argmax(-1)
            columns["mlm"] = _fraction(guess == hidden, hidden != losses.IGNORE)
        if config.vtm_weight:
            other = model.fuse_cls(video, text[torch.arange(len(batch)).roll(1).to(where.device)])
            own, others = self.match(fused.cls), self.match(other)
            columns["vtm"] = (
                ((own > others).float() + (own == others).float() / 2).cpu().numpy()
            )  # a tie counts one half
        if config.contrastive_weight:
            v, t = self._embeddings(self.encode(batch), model.encode_text(clean))
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


def _fraction(right: Tensor, of: Tensor) -> np.ndarray:
    """(B,) fraction of the positions ``of`` that are ``right``; 0 for rows without such positions."""
    return (right.sum(1) / of.sum(1).clamp(min=1)).float().cpu().numpy()


def _most_frequent(seen: Sequence[Prediction]) -> float:
    """Accuracy of always guessing the most frequent code, in percent."""
    hidden = np.concatenate([p.values["labels"][p.values["hidden"]] for p in seen])
    return 100 * float(np.bincount(hidden).max() / max(1, len(hidden)))


def _facts_of(tokenizer: VideoTokenizer) -> Facts:
    """What a pre-trained checkpoint records about its video tokenizer."""
    return {"codes": tokenizer.config.codebook_size, "tokenizer": tokenizer.fingerprint()}


def _share_backbone(model: EViLM, tokenizer: VideoTokenizer | None) -> None:
    """Copy the weights of the tokenizer's backbone into the model's.

    Raises:
        ConfigError: there is no tokenizer, or its encoder is another backbone.
    """
    own, other = model.config, None if tokenizer is None else tokenizer.config
    if tokenizer is None or other is None or (other.encoder, other.stride) != (own.backbone, own.stride):
        reason = (
            "there is no tokenizer" if other is None else f"the tokenizer's is {other.encoder} at stride {other.stride}"
        )
        raise ConfigError(
            f"task.backbone = 'tokenizer' needs the model's {own.backbone} at stride {own.stride}, and {reason}: "
            "set task.backbone=own"
        )
    assert isinstance(tokenizer.encoder, FrameEncoder)
    try:
        model.video_encoder.backbone.load_state_dict(tokenizer.encoder.backbone.state_dict())
    except RuntimeError:
        raise ConfigError(
            f"task.backbone = 'tokenizer': model.backbone_options {own.backbone_options} differ from the tokenizer's "
            f"encoder_options {other.encoder_options}: make them equal, or set task.backbone=own"
        ) from None
