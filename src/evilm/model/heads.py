"""Task heads on h^CLS, h^L and h^V (Eq. 2).

A head has the same attribute name in pre-training and in fine-tuning (``word_head``, ``patch_head``, ``match``,
``embed``), so that its weights are found in the checkpoint that a task starts from.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import nn

from evilm.model.layers import init_weights

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from evilm.model.evilm import EViLM
    from evilm.model.presets import ModelConfig
    from evilm.types import Encoded


class WordHead(nn.Module):
    """BERT's masked-language head: a projection to the text width, then the word embeddings as output weights."""

    def __init__(self, embed_dim: int, text_embed_dim: int, vocab_size: int) -> None:
        super().__init__()
        self.transform = nn.Sequential(nn.Linear(embed_dim, text_embed_dim), nn.GELU(), nn.LayerNorm(text_embed_dim))
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        init_weights(self)

    def forward(self, states: Tensor, word_embeddings: Tensor) -> Tensor:
        """h^L (..., D) and word embeddings (K, d) to logits (..., K)."""
        return F.linear(self.transform(states), word_embeddings, self.bias)


class PatchHead(nn.Module):
    """HEAD^V of Eq. 3: h^V (..., D) to logits over the codes (..., M)."""

    def __init__(self, embed_dim: int, codebook_size: int) -> None:
        super().__init__()
        self.out = nn.Linear(embed_dim, codebook_size)
        init_weights(self)

    def forward(self, states: Tensor) -> Tensor:
        return self.out(states)


class MatchHead(nn.Module):
    """Video-text matching: h^CLS (..., D) to a score (...)."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(embed_dim, embed_dim), nn.GELU(), nn.Linear(embed_dim, 1))
        init_weights(self)

    def forward(self, cls: Tensor) -> Tensor:
        return self.layers(cls).squeeze(-1)


class EmbeddingHead(nn.Module):
    """One vector for a video and one for a text, ranked by cosine: fast retrieval and search.

    ``ModelConfig.embedding`` says of what: a linear map of h^CLS, one of the modality's pooled features
    (``Encoded.pooled``), or the sum of both. The result is l2-normalised.

    Args:
        config: of the model.
        video_channels: C, width of a video's pooled features.
        out_dim: width of the embeddings.
        temperature: initial temperature of the cosines.
    """

    def __init__(self, config: ModelConfig, video_channels: int, out_dim: int = 512, temperature: float = 0.05) -> None:
        super().__init__()
        self.out_dim, self.fuses = out_dim, config.embedding != "pooled"
        if self.fuses:
            self.video_out, self.text_out = (nn.Linear(config.embed_dim, out_dim) for _ in range(2))
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))
        if config.pools:
            self.video_pooled = nn.Sequential(
                nn.BatchNorm1d(video_channels, affine=False),
                nn.Dropout(config.pooled_dropout),
                nn.Linear(video_channels, out_dim, bias=False),
            )
            self.text_pooled = nn.Sequential(
                nn.Dropout(config.pooled_dropout), nn.Linear(2 * config.text_embed_dim, out_dim, bias=False)
            )
        init_weights(self)

    @classmethod
    def for_model(cls, model: EViLM, out_dim: int = 512, temperature: float = 0.05) -> EmbeddingHead:
        """A head that fits the model."""
        return cls(model.config, model.video_encoder.channels, out_dim, temperature)

    @property
    def temperature(self) -> Tensor:
        """The learned temperature, at least 0.01: below that a single pair would decide the loss."""
        return self.log_temperature.exp().clamp(min=0.01)

    def has(self, side: Literal["video", "text"]) -> bool:
        """Whether this half was not removed."""
        return hasattr(self, f"{side}_out") or hasattr(self, f"{side}_pooled")

    def remove(self, side: Literal["video", "text"]) -> None:
        """Remove one half, where nothing trains it."""
        for name in (f"{side}_out", f"{side}_pooled"):
            if hasattr(self, name):
                delattr(self, name)

    def video(self, model: EViLM, video: Encoded) -> Tensor:
        """Encoded videos (B) to vectors (B, out_dim), l2-normalised."""
        return self.project("video", model.fuse_cls(video=video) if self.fuses else None, video.pooled)

    def text(self, model: EViLM, text: Encoded) -> Tensor:
        """Encoded texts (B) to vectors (B, out_dim), l2-normalised."""
        return self.project("text", model.fuse_cls(text=text) if self.fuses else None, text.pooled)

    def project(self, side: Literal["video", "text"], cls: Tensor | None, pooled: Tensor | None) -> Tensor:
        """h^CLS (B, D) of one modality alone, and its pooled features, to vectors (B, out_dim), l2-normalised."""
        inputs = (("out", cls), ("pooled", pooled))
        parts: list[Tensor] = [
            getattr(self, f"{side}_{name}")(value) for name, value in inputs if hasattr(self, f"{side}_{name}")
        ]
        return F.normalize((parts[0] if len(parts) == 1 else parts[0] + parts[1]).float(), dim=-1)


def embedding_width(tensors: Mapping[str, Tensor], side: Literal["video", "text"] = "video") -> int | None:
    """The width of the embeddings of a checkpoint with these tensors; None if it has none of this side."""
    maps = (
        tensor
        for name, tensor in tensors.items()
        if name.startswith((f"embed.{side}_out.", f"embed.{side}_pooled.")) and tensor.ndim == 2
    )
    return next((tensor.shape[0] for tensor in maps), None)


class AnswerHead(nn.Module):
    """h^CLS (..., D) to logits over K answers, with a hidden layer of width 2 D as in VQA models."""

    def __init__(self, embed_dim: int, num_answers: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(embed_dim, 2 * embed_dim),
            nn.GELU(),
            nn.LayerNorm(2 * embed_dim),
            nn.Dropout(dropout),
            nn.Linear(2 * embed_dim, num_answers),
        )
        init_weights(self)

    def forward(self, cls: Tensor) -> Tensor:
        return self.layers(cls)
