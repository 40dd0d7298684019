"""The fusion transformer DEC_VL: self-attention over [CLS], words and patches (paper 3.1, Eq. 2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from evilm.model.layers import Block, init_weights
from evilm.types import Encoded, Fused

if TYPE_CHECKING:
    from evilm.model.presets import ModelConfig


class Fusion(nn.Module):
    """Pre-norm transformer blocks over one or both modalities.

    Args:
        config: ``embed_dim``, ``depth``, ``num_heads``, ``mlp_dim`` and ``dropout``; the paper gives a width of 384 and
            4 blocks.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.embed_dim
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.type_text = nn.Parameter(torch.zeros(1, 1, width))
        self.type_video = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.ModuleList(
            Block(width, config.num_heads, config.mlp_dim, config.dropout) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(width)
        init_weights(self.blocks)
        for embedding in (self.cls, self.type_text, self.type_video):
            nn.init.trunc_normal_(embedding, std=0.02)

    def forward(self, video: Encoded | None, text: Encoded | None, *, cls_only: bool = False) -> Fused:
        """e^V and e^L, or one of them, to h^CLS, h^L, h^V (Eq. 2).

        With ``cls_only`` the last block is computed for [CLS] alone, and h^L and h^V are None.
        """
        parts = [self.type_text + text.tokens] if text is not None else []
        parts += [self.type_video + video.tokens] if video is not None else []
        if not parts:
            raise ValueError("fuse needs a video, a text, or both")
        cls = self.cls.expand(parts[0].shape[0], -1, -1).to(parts[0].dtype)
        sequence = torch.cat([cls, *parts], 1)
        mask = None
        if text is not None and text.mask is not None:  # [CLS] and patches are never padding
            present = text.mask.new_ones(sequence.shape[:2])
            mask = torch.cat([present[:, :1], text.mask, present[:, 1 + text.mask.shape[1] :]], 1)
        for block in self.blocks[:-1]:
            sequence = block(sequence, mask)
        sequence = self.norm(self.blocks[-1](sequence, mask, 1 if cls_only else None))
        if cls_only:
            return Fused(sequence[:, 0], None, None)
        words = 0 if text is None else text.tokens.shape[1]
        return Fused(
            cls=sequence[:, 0],
            text=None if text is None else sequence[:, 1 : 1 + words],
            video=None if video is None else sequence[:, 1 + words :],
        )
