"""Settings that several tasks share; each task extends them beside its code."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from evilm.config import Config
from evilm.model.tokenizer import TokenizerConfig


class TaskConfig(Config):
    """Settings of a task; each task extends them beside its code and gives them a literal ``name``."""

    name: Any  # a literal in each task
    scoring_protocol: ClassVar[str] = "zero-shot"  # how multiple choice names scores by this task's heads

    def scoring_head(self) -> Literal["match", "embed"]:
        """The head by which a model of this task scores a video and a text."""
        return "match"


class TextTaskConfig(TaskConfig):
    """Settings of tasks that read texts."""

    max_text_len: int = Field(default=30, gt=2, description="longest text in word pieces")


class FocalTaskConfig(TextTaskConfig):
    """Settings of tasks whose loss may be focal."""

    focal_gamma: float = Field(default=0.0, ge=0, description="gamma of a focal loss on easy rows; 0 is cross-entropy")


class AnswerTaskConfig(FocalTaskConfig):
    """Settings of tasks that answer questions or choose options."""

    text_only: bool = Field(default=False, description="text-only baseline: questions or options without the video")


class EmbeddingTaskConfig(FocalTaskConfig):
    """Settings of tasks that embed videos and texts in one space."""

    embed_dim: int = Field(default=512, gt=0, description="width of the embeddings")
    temperature: float = Field(default=0.05, gt=0, description="initial value of the learned temperature of cosines")


class PairTaskConfig(EmbeddingTaskConfig):
    """Settings of tasks that are trained on pairs of a video and a text."""

    contrastive_weight: float = Field(
        default=1.0, ge=0, description="weight of the contrastive loss of the embeddings; 0 trains none"
    )
    vtm_weight: float = Field(default=0.0, ge=0, description="weight of video-text matching by fusion; 0 trains none")


class TokenizerTrainingConfig(TaskConfig):
    """Settings of tasks that train a video tokenizer."""

    tokenizer: TokenizerConfig = TokenizerConfig()
    num_frames: int = Field(default=4, gt=0, description="frames of a clip")
    codebook_weight: float = Field(
        default=1.0, ge=0, description="weight of the codebook loss; of a divergence with gumbel codes: take 0.001"
    )
    commitment_weight: float = Field(default=1.0, ge=0, description="weight of the commitment loss")
