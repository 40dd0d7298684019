"""What stands on h^CLS, h^L and h^V: one small head for each question that is asked of them.

A head keeps its name from pre-training to fine-tuning (``words``, ``regions``, ``match``, ``embed``), so that a task
started from a checkpoint finds it there.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from evilm.model.layers import initialise

if TYPE_CHECKING:
    from torch import Tensor


class WordHead(nn.Module):
    """BERT's masked-language head: back to the text width, then the word embeddings as output weights."""

    def __init__(self, width: int, text_width: int, vocabulary: int) -> None:
        super().__init__()
        self.transform = nn.Sequential(nn.Linear(width, text_width), nn.GELU(), nn.LayerNorm(text_width))
        self.bias = nn.Parameter(torch.zeros(vocabulary))
        initialise(self)

    def forward(self, states: Tensor, word_embeddings: Tensor) -> Tensor:
        """h^L (..., D) and embeddings (K, d) to logits (..., K)."""
        return F.linear(self.transform(states), word_embeddings, self.bias)


class RegionHead(nn.Module):
    """HEAD^V of Eq. 3: h^V (..., D) to logits over the codes (..., M)."""

    def __init__(self, width: int, codes: int) -> None:
        super().__init__()
        self.out = nn.Linear(width, codes)
        initialise(self)

    def forward(self, states: Tensor) -> Tensor:
        return self.out(states)


class MatchHead(nn.Module):
    """Do video and text belong together: h^CLS (..., D) to a score (...)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1))
        initialise(self)

    def forward(self, cls: Tensor) -> Tensor:
        return self.layers(cls).squeeze(-1)


class EmbeddingHead(nn.Module):
    """One-modality h^CLS to the space where cosines rank: fast retrieval and search."""

    def __init__(self, width: int, embedding: int = 512, temperature: float = 0.05) -> None:
        super().__init__()
        self.video_out, self.text_out = nn.Linear(width, embedding), nn.Linear(width, embedding)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))
        initialise(self)

    @property
    def temperature(self) -> Tensor:
        """Learned from its start; never below 0.01, where one pair would drown the rest."""
        return self.log_temperature.exp().clamp(min=0.01)

    def video(self, cls: Tensor) -> Tensor:
        """(B, D) to (B, 512), l2-normalised."""
        return F.normalize(self.video_out(cls).float(), dim=-1)

    def text(self, cls: Tensor) -> Tensor:
        """(B, D) to (B, 512), l2-normalised."""
        return F.normalize(self.text_out(cls).float(), dim=-1)


class LexicalHead(nn.Module):
    """A second embedding, without fusion: a text as a weighted bag of pieces, a video as the mean of its features.

    Beyond the paper. Where captions are few, which words were said is learned sooner than what they mean together.

    Args:
        weights: (K,) how much each word piece counts, such as the logarithm of its rarity; 0 leaves it out.
        channels: C, of the backbone's features.
        width: of the embedding.
    """

    weights: Tensor

    def __init__(self, weights: Tensor, channels: int, width: int) -> None:
        super().__init__()
        self.register_buffer("weights", weights, persistent=False)
        self.norm = nn.BatchNorm1d(channels, affine=False)
        self.video_out = nn.Linear(channels, width)
        self.words = nn.Parameter(torch.empty(len(weights), width))
        initialise(self)
        nn.init.xavier_uniform_(self.words)

    def video(self, features: Tensor) -> Tensor:
        """(B, T, h, w, C) to (B, width), l2-normalised."""
        return F.normalize(self.video_out(self.norm(features.float().mean((1, 2, 3)))).float(), dim=-1)

    def text(self, ids: Tensor, mask: Tensor) -> Tensor:
        """(B, L) each to (B, width), l2-normalised."""
        weights = self.weights[ids] * mask
        return F.normalize((self.words[ids].float() * weights[..., None]).sum(1), dim=-1)


class AnswerHead(nn.Module):
    """h^CLS (..., D) to logits over K answers: a hidden layer of twice the width, as VQA models have."""

    def __init__(self, width: int, answers: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, 2 * width),
            nn.GELU(),
            nn.LayerNorm(2 * width),
            nn.Dropout(dropout),
            nn.Linear(2 * width, answers),
        )
        initialise(self)

    def forward(self, cls: Tensor) -> Tensor:
        return self.layers(cls)
