"""The transformer block that the fusion decoder and the video tokenizer share."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint  # pyright: ignore[reportUnknownVariableType], its contexts are bare

if TYPE_CHECKING:
    from torch import Tensor


def fused_is_slow(x: Tensor) -> bool:
    """Whether three plain operations beat torch's fused attention: training in bfloat16 on a CPU.

    There its backward pass takes five times as long as theirs (89 tokens of 6 heads: 38 ms against 6.5, torch 2.15),
    a third of a whole step of pre-training.
    """
    bf16 = x.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")
    return x.device.type == "cpu" and bf16 and torch.is_grad_enabled()


class Attention(nn.Module):
    """Multi-head self-attention.

    Args:
        width: D.
        heads: must divide the width.
        dropout: on the attention weights, in training.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None, first: int | None = None) -> Tensor:
        """(B, S, D) to (B, S, D); ``mask`` (B, S) is False on positions that nothing may attend to.

        With ``first`` only so many places at the beginning ask, and (B, first, D) is the answer.
        """
        query, key, value = self._states(x, first)
        bias = None if mask is None else mask[:, None, None, :]
        drop = self.dropout if self.training else 0.0
        if fused_is_slow(query):
            scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
            scores = scores if bias is None else scores.masked_fill(~bias, -math.inf)
            mixed = F.dropout(scores.softmax(-1).to(value.dtype), drop) @ value
        else:
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=drop)
        return self.out(mixed.transpose(1, 2).flatten(2))

    def _states(self, x: Tensor, first: int | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (of the ``first`` places), keys and values, (B, heads, S, .) each."""
        batch, _, width = x.shape

        def by_head(states: Tensor, count: int) -> Tensor:
            return states.view(batch, -1, count, self.heads, width // self.heads)

        if first is None:
            query, key, value = by_head(self.qkv(x), 3).permute(2, 0, 3, 1, 4)
            return query, key, value
        weight, bias = self.qkv.weight, self.qkv.bias
        [query] = by_head(F.linear(x[:, :first], weight[:width], bias[:width]), 1).permute(2, 0, 3, 1, 4)
        key, value = by_head(F.linear(x, weight[width:], bias[width:]), 2).permute(2, 0, 3, 1, 4)
        return query, key, value


class Block(nn.Module):
    """Pre-norm transformer block: attention, then a GELU feed-forward layer."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, dropout)
        self.feed = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.drop = nn.Dropout(dropout)
        self.recompute = False  # activations computed again on the way back, see ``economy``

    def forward(self, x: Tensor, mask: Tensor | None = None, first: int | None = None) -> Tensor:
        """(B, S, D) to (B, S, D), or to (B, first, D) where only the first places are asked for."""
        if self.recompute and self.training and torch.is_grad_enabled():
            return checkpoint(self._pass, x, mask, first, use_reentrant=False)
        return self._pass(x, mask, first)

    def _pass(self, x: Tensor, mask: Tensor | None, first: int | None) -> Tensor:
        x = x[:, :first] + self.drop(self.attention(self.norm1(x), mask, first))
        return x + self.drop(self.feed(self.norm2(x)))


class Normalise(nn.Module):
    """uint8 pixels to the numbers a backbone was trained on: ``(x / 255 - mean) / std``."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1) * 255, persistent=False)

    def forward(self, frames: Tensor) -> Tensor:
        """(..., 3, H, W) uint8 to float32."""
        return (frames.float() - self.mean) / self.std


def initialise(module: nn.Module) -> None:
    """Xavier weights, zero biases, embeddings of standard deviation 0.02.

    BERT's and ViT's fixed 0.02 suits a width of 768; at 128 to 384 it starts a decoder several times too quiet, and
    the video tokenizer then takes about twice the steps to learn its first words (docs/decisions.md).
    """
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            nn.init.zeros_(part.bias)
        elif isinstance(part, nn.Embedding):
            nn.init.trunc_normal_(part.weight, std=0.02)
