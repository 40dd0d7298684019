"""Layers that the fusion transformer, the encoders and the video tokenizer share, and options to train them by."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint  # pyright: ignore[reportUnknownVariableType], its contexts are bare

from evilm import distributed

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


def fused_attention_is_slow(x: Tensor) -> bool:
    """Whether three plain operations are faster than torch's fused attention: training in bfloat16 on a CPU.

    The backward pass of the fused one takes five times as long there (89 tokens, 6 heads: 38 ms against 6.5, torch
    2.15), a third of a pre-training step.
    """
    bf16 = x.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")
    return x.device.type == "cpu" and bf16 and torch.is_grad_enabled()


class Attention(nn.Module):
    """Multi-head self-attention.

    Args:
        embed_dim: D.
        num_heads: must divide D.
        dropout: on the attention weights, in training.
    """

    def __init__(self, embed_dim: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim)
        self.out = nn.Linear(embed_dim, embed_dim)

    def forward(self, x: Tensor, mask: Tensor | None = None, queries: int | None = None) -> Tensor:
        """(B, S, D) to (B, S, D), or to (B, queries, D) for the first positions alone.

        Args:
            x: all positions, which serve as keys and values.
            mask: (B, S), False at positions that no query may attend to.
            queries: number of leading positions to compute; None computes all.
        """
        query, key, value = self._project(x, queries)
        bias = None if mask is None else mask[:, None, None, :]
        drop = self.dropout if self.training else 0.0
        if fused_attention_is_slow(query):
            scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
            scores = scores if bias is None else scores.masked_fill(~bias, -math.inf)
            mixed = F.dropout(scores.softmax(-1).to(value.dtype), drop) @ value
        else:
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=drop)
        return self.out(mixed.transpose(1, 2).flatten(2))

    def _project(self, x: Tensor, queries: int | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, (B, heads, S, D / heads) each."""
        batch, _, width = x.shape

        def by_head(states: Tensor, count: int) -> Tensor:
            return states.view(batch, -1, count, self.num_heads, width // self.num_heads)

        if queries is None:
            query, key, value = by_head(self.qkv(x), 3).permute(2, 0, 3, 1, 4)
            return query, key, value
        weight, bias = self.qkv.weight, self.qkv.bias
        [query] = by_head(F.linear(x[:, :queries], weight[:width], bias[:width]), 1).permute(2, 0, 3, 1, 4)
        key, value = by_head(F.linear(x, weight[width:], bias[width:]), 2).permute(2, 0, 3, 1, 4)
        return query, key, value


class Block(nn.Module):
    """Pre-norm transformer block: attention, then a GELU feed-forward layer."""

    def __init__(self, embed_dim: int, num_heads: int, mlp_dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(embed_dim), nn.LayerNorm(embed_dim)
        self.attention = Attention(embed_dim, num_heads, dropout)
        self.feed = nn.Sequential(nn.Linear(embed_dim, mlp_dim), nn.GELU(), nn.Linear(mlp_dim, embed_dim))
        self.drop = nn.Dropout(dropout)
        self.grad_checkpointing = False  # recompute activations in the backward pass, see ``apply_memory_options``

    def forward(self, x: Tensor, mask: Tensor | None = None, queries: int | None = None) -> Tensor:
        """(B, S, D) to (B, S, D), or to (B, queries, D) for the first positions alone; see ``Attention``."""
        if self.grad_checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(self._forward, x, mask, queries, use_reentrant=False)
        return self._forward(x, mask, queries)

    def _forward(self, x: Tensor, mask: Tensor | None, queries: int | None) -> Tensor:
        x = x[:, :queries] + self.drop(self.attention(self.norm1(x), mask, queries))
        return x + self.drop(self.feed(self.norm2(x)))


class Normalise(nn.Module):
    """uint8 pixels to the values that a backbone was trained on: ``(x / 255 - mean) / std``."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1) * 255, persistent=False)

    def forward(self, frames: Tensor) -> Tensor:
        """(..., 3, H, W) uint8 to float32."""
        return (frames.float() - self.mean) / self.std


def init_weights(module: nn.Module) -> None:
    """Initialise in place: Xavier weights, zero biases, embeddings of standard deviation 0.02.

    BERT's and ViT's fixed standard deviation of 0.02 suits a width of 768. At widths of 128 to 384 the weights are then
    several times too small, and the video tokenizer learns more slowly: after 720 steps its word mAP was 0.272, and
    0.332 with Xavier weights (same seed and data, quantizer bypassed).
    """
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:  # pyright: ignore[reportUnnecessaryComparison], torch's stubs omit None
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.Embedding):
            nn.init.trunc_normal_(part.weight, std=0.02)


def apply_memory_options(module: nn.Module, *, grad_checkpointing: bool = False, compiled: bool = False) -> None:
    """Set up a module for training, in place; names of weights do not change.

    Args:
        module: any task.
        grad_checkpointing: recompute the activations of transformer blocks, BERT and (where timm can) the backbone in
            the backward pass. It takes less memory, about a third more time, and gives the same gradients.
        compiled: ``torch.compile`` the backbones, BERT and the transformer blocks. Needs a C++ compiler on a CPU.
    """
    from transformers import BertModel

    part: nn.Module
    for part in module.modules():
        if grad_checkpointing and isinstance(part, Block):
            part.grad_checkpointing = True
        if grad_checkpointing and isinstance(part, BertModel):
            part.config.use_cache = False  # transformers warns when both are on
            enable = getattr(part, "activation_checkpointing_enable", None)  # the name in newer versions
            (enable or part.gradient_checkpointing_enable)({"use_reentrant": False})
        checkpointing: Callable[[bool], None] | None = getattr(part, "set_grad_checkpointing", None)
        if grad_checkpointing and checkpointing is not None:
            checkpointing(True)
    if compiled:
        # Each block by itself, because all blocks of one width share one compiled graph.
        for part in module.modules():
            if isinstance(part, Block | BertModel):
                part.compile()
            if isinstance(backbone := getattr(part, "backbone", None), nn.Module):
                backbone.compile()


_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class GlobalBatchNorm(nn.Module):
    """Batch normalisation with the statistics of all processes together, on any device.

    It is written by hand because torch's ``SyncBatchNorm`` needs GPUs. Names and weights are those of the batch norm
    that it replaces.

    Args:
        norm: the batch norm to replace; ``drop`` and ``act`` of timm's batch norms are kept.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        assert isinstance(norm, _BATCH_NORMS)
        self.eps, self.momentum = norm.eps, 0.1 if norm.momentum is None else norm.momentum
        self.weight, self.bias = norm.weight, norm.bias
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, getattr(norm, name))
        after = [getattr(norm, name) for name in ("drop", "act") if isinstance(getattr(norm, name, None), nn.Module)]
        self.after = nn.Sequential(*after)
        self.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) to the same shape."""
        y = x.float()
        axes = [axis for axis in range(y.ndim) if axis != 1]
        shape = [1, -1] + [1] * (y.ndim - 2)
        if self.training:
            count = y.numel() // y.shape[1] * distributed.world_size()
            mean = distributed.all_reduce_sum(y.sum(axes)) / count
            var = distributed.all_reduce_sum((y - mean.view(shape)).pow(2).sum(axes)) / count
            with torch.no_grad():
                self.running_mean.lerp_(mean.detach(), self.momentum)
                self.running_var.lerp_(var.detach() * count / max(1, count - 1), self.momentum)
                self.num_batches_tracked.add_(1)
        else:
            mean, var = self.running_mean, self.running_var
        y = (y - mean.view(shape)) * torch.rsqrt(var.view(shape) + self.eps)
        if self.weight is not None and self.bias is not None:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return self.after(y.to(x.dtype))


def sync_batch_norms(module: nn.Module) -> None:
    """Replace every batch norm in ``module`` by a ``GlobalBatchNorm``; do nothing with a single process."""
    if distributed.world_size() == 1:
        return
    for name, child in list(module.named_children()):
        if isinstance(child, _BATCH_NORMS):
            setattr(module, name, GlobalBatchNorm(child))
        else:
            sync_batch_norms(child)
