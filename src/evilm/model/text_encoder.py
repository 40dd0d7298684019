"""The text encoder ENC_L: a tiny BERT and a projection to the decoder's width (paper 3.1, 4.1, Eq. 1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from evilm.model.layers import fused_is_slow, initialise
from evilm.types import Encoded, Text

if TYPE_CHECKING:
    from torch import Tensor


class TextEncoder(nn.Module):
    """Word pieces to the decoder's width.

    Args:
        vocabulary: K word pieces.
        width: of BERT; the paper's is 128.
        layers, heads, hidden: of BERT; the paper gives 4 heads, we take 6 layers of 512.
        positions: the longest text in word pieces.
        out: D of the decoder.
        dropout: in training.
        position_start: standard deviation of untrained positions; that of untrained words is 0.02.
    """

    def __init__(
        self, *, vocabulary: int, width: int, layers: int, heads: int, hidden: int, positions: int, out: int,
        dropout: float, position_start: float = 0.02,
    ) -> None:  # fmt: skip
        super().__init__()
        from transformers import BertConfig, BertModel

        config = BertConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=hidden,
            max_position_embeddings=positions,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
            attn_implementation="sdpa",  # pyright: ignore[reportCallIssue], taken by the base class alone
        )
        self.positions = positions
        self.attention = "sdpa"  # what the BERT computes it with at present
        self.bert = BertModel(config, add_pooling_layer=False)
        self.project = nn.Linear(width, out)
        initialise(self)
        with torch.no_grad():  # what a word is said with should not begin as loud as what it says
            for places in (self.bert.embeddings.position_embeddings, self.bert.embeddings.token_type_embeddings):
                places.weight.mul_(position_start / 0.02)

    @property
    def word_embeddings(self) -> Tensor:
        """(K, width): BERT's input embeddings, which the MLM head reuses as its output."""
        return self.bert.embeddings.word_embeddings.weight

    def forward(self, text: Text) -> Encoded:
        """ids (B, L) to e^L, (B, L, D) (Eq. 1)."""
        wanted = "eager" if fused_is_slow(self.word_embeddings) else "sdpa"
        if wanted != self.attention:
            self.bert.set_attn_implementation(wanted)
            self.attention = wanted
        states: Tensor = self.bert(input_ids=text.ids, attention_mask=text.mask.long()).last_hidden_state
        return Encoded(self.project(states), text.mask)
