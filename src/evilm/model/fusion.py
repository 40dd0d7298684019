"""The fusion decoder DEC_VL: self-attention over [CLS], words and regions (paper 3.1, Eq. 2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from evilm.model.layers import Block, initialise
from evilm.types import Encoded, Fused

if TYPE_CHECKING:
    from torch import Tensor


class Decoder(nn.Module):
    """A stack of pre-norm blocks over one or both modalities.

    Args:
        width, depth, heads, hidden: of the blocks; the paper's are 384 and 4, with 6 heads and 1536.
        dropout: in training.
        mean: let [CLS] begin as the mean of the tokens, beside what is learned.
    """

    def __init__(self, *, width: int, depth: int, heads: int, hidden: int, dropout: float, mean: bool = False) -> None:
        super().__init__()
        self.mean = mean
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.type_text = nn.Parameter(torch.zeros(1, 1, width))
        self.type_video = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.ModuleList(Block(width, heads, hidden, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        initialise(self.blocks)
        for embedding in (self.cls, self.type_text, self.type_video):
            nn.init.trunc_normal_(embedding, std=0.02)

    def forward(self, video: Encoded | None, text: Encoded | None, *, cls_only: bool = False) -> Fused:
        """e^V and e^L, or one of them, to h^CLS, h^L, h^V (Eq. 2).

        With ``cls_only`` the last block is computed for [CLS] alone, and there are no h^L and h^V.
        """
        parts = [self.type_text + text.tokens] if text is not None else []
        parts += [self.type_video + video.tokens] if video is not None else []
        if not parts:
            raise ValueError("fuse needs a video, a text, or both")
        tokens = torch.cat(parts, 1)
        mask = _mask(video, text, tokens)
        sequence = torch.cat([self.first(tokens, mask), tokens], 1)
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

    def first(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """[CLS] before the first block, (B, 1, D).

        Args:
            tokens: (B, S, D) of one or both modalities.
            mask: (B, 1 + S) bool, False where [CLS] or a token is padding; None where all are there.
        """
        cls = self.cls.expand(tokens.shape[0], -1, -1).to(tokens.dtype)  # `len` would fix the rows of an export
        if not self.mean:
            return cls
        if mask is None:
            return cls + tokens.mean(1, keepdim=True)
        shown = mask[:, 1:, None].to(tokens.dtype)
        return cls + (tokens * shown).sum(1, keepdim=True) / shown.sum(1, keepdim=True)


def _mask(video: Encoded | None, text: Encoded | None, sequence: Tensor) -> Tensor | None:
    """(B, S) bool: [CLS] and regions always, words where there are any; None when nothing is hidden."""
    if text is None or text.mask is None:
        return None
    always = text.mask.new_ones(len(sequence), 1)
    regions = [] if video is None else [always.expand(-1, video.tokens.shape[1])]
    return torch.cat([always, text.mask, *regions], 1)
