"""The graphs of a trained model as torch modules: the exporter traces them, and ``TorchRuntime`` runs them.

The last block of fusion computes h^CLS only: one query, nearly all work saved, and its attention is the model's
attention on each token. Results equal those of ``EViLM.fuse`` up to rounding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import nn

from evilm.errors import CheckpointError
from evilm.model.heads import AnswerHead, EmbeddingHead, MatchHead, embedding_width
from evilm.types import Text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from evilm.inference.runtime import Head
    from evilm.model.evilm import EViLM
    from evilm.model.fusion import Fusion
    from evilm.model.layers import Block

M = TypeVar("M", bound=nn.Module)


class VideoGraph(nn.Module):
    """uint8 pixels (B, T, H, W, 3) to patches (B, N, D) with their type (Eq. 1), and pooled features of each frame."""

    def __init__(self, model: EViLM) -> None:
        super().__init__()
        self.encoder = model.video_encoder
        self.type_video = model.fusion.type_video

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        features = self.encoder.features(self.encoder.normalise(frames.permute(0, 1, 4, 2, 3)))
        patches = self.encoder.patches(features).tokens + self.type_video
        return (patches, features.float().mean((2, 3))) if self.encoder.pools else (patches,)


class TextGraph(nn.Module):
    """ids (B, L) and mask (B, L) to words (B, L, D) with their type (Eq. 1), and their pooled features."""

    def __init__(self, model: EViLM) -> None:
        super().__init__()
        self.encoder = model.text_encoder
        self.type_text = model.fusion.type_text

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        encoded = self.encoder(Text(ids, mask, mask))
        words = encoded.tokens + self.type_text
        return (words,) if encoded.pooled is None else (words, encoded.pooled)


class FusionGraph(nn.Module):
    """Tokens (B, S, D) of one or both modalities and their mask (B, S) to h^CLS (B, D) and its attention (B, S)."""

    def __init__(self, fusion: Fusion) -> None:
        super().__init__()
        self.fusion = fusion

    def forward(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        seen = torch.cat([mask[:, :1] | True, mask], 1)
        sequence = torch.cat([self.fusion.cls.expand(tokens.shape[0], -1, -1), tokens], 1)
        blocks = cast("list[Block]", list(self.fusion.blocks))
        for block in blocks[:-1]:
            sequence = block(sequence, seen)
        state, weights = _one_query(blocks[-1], sequence, seen)
        return self.fusion.norm(state)[:, 0], weights[:, 1:]


def _one_query(block: Block, sequence: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """A block's output at the first position, (B, 1, D), and that position's attention (B, S), mean over heads."""
    attention = block.attention
    batch, length, width = sequence.shape
    normed = block.norm1(sequence)
    weight, bias = attention.qkv.weight, attention.qkv.bias
    query = F.linear(normed[:, :1], weight[:width], bias[:width]).view(batch, attention.num_heads, 1, -1)
    key, value = (
        F.linear(normed, weight[width:], bias[width:]).view(batch, length, 2, attention.num_heads, -1).unbind(2)
    )
    scores = query @ key.permute(0, 2, 3, 1) * (width // attention.num_heads) ** -0.5  # (B, heads, 1, S)
    weights = scores.masked_fill(~seen[:, None, None, :], float("-inf")).softmax(-1)
    mixed = (weights @ value.transpose(1, 2)).reshape(batch, 1, width)
    state = sequence[:, :1] + attention.out(mixed)
    return state + block.feed(block.norm2(state)), weights.mean(1)[:, 0]


class _EmbeddingSide(nn.Module):
    """One side of an ``EmbeddingHead``: h^CLS, pooled features, or both, to a unit vector."""

    def __init__(self, head: EmbeddingHead, side: Literal["video", "text"]) -> None:
        super().__init__()
        self.out_dim = head.out_dim
        self.parts = nn.ModuleList(
            getattr(head, f"{side}_{name}") for name in ("out", "pooled") if hasattr(head, f"{side}_{name}")
        )

    def forward(self, *inputs: Tensor) -> Tensor:
        vectors = [part(value) for part, value in zip(self.parts, inputs, strict=True)]
        return F.normalize(vectors[0] if len(vectors) == 1 else vectors[0] + vectors[1], dim=-1)


class _MatchColumn(nn.Module):
    """A match head with scores (B, 1): every head's scores are a matrix."""

    def __init__(self, match: MatchHead) -> None:
        super().__init__()
        self.match = match

    def forward(self, cls: Tensor) -> Tensor:
        return self.match(cls)[:, None]


def load_heads(tensors: Mapping[str, Tensor], model: EViLM) -> tuple[dict[Head, nn.Module], float | None]:
    """The heads of a checkpoint, each from h^CLS (B, D) to (B, K), and the temperature of cosines.

    Args:
        tensors: of ``model.safetensors``, by name.
        model: the model that the heads belong to.

    Raises:
        CheckpointError: the tensors of a head do not fit together.
    """
    width = model.embed_dim
    heads: dict[Head, nn.Module] = {}
    temperature = None
    try:
        embed_dim = embedding_width(tensors)
        if embed_dim is not None:
            embed = EmbeddingHead.for_model(model, embed_dim)
            if embedding_width(tensors, "text") is None:  # distilled from videos alone
                embed.remove("text")
            _load(embed, tensors, "embed.")
            heads["embed_video"] = _EmbeddingSide(embed, "video")
            if embed.has("text"):
                heads["embed_text"] = _EmbeddingSide(embed, "text")
            temperature = float(embed.temperature.detach())
        if "match.layers.0.weight" in tensors:
            heads["match"] = _MatchColumn(_load(MatchHead(width), tensors, "match."))
        if "answer_head.layers.4.weight" in tensors:
            answers = tensors["answer_head.layers.4.weight"].shape[0]
            heads["answer"] = _load(AnswerHead(width, answers, 0.0), tensors, "answer_head.")
        if "classifier.0.weight" in tensors:
            heads["classify"] = _probe(tensors, width)
    except (RuntimeError, KeyError) as error:
        raise CheckpointError(f"its heads do not fit the model: {str(error).splitlines()[0]}") from None
    return heads, temperature


def _load(module: M, tensors: Mapping[str, Tensor], prefix: str) -> M:
    """Load the tensors under ``prefix`` into ``module``."""
    module.load_state_dict({name: tensors[prefix + name] for name in module.state_dict()})
    return module


def _probe(tensors: Mapping[str, Tensor], width: int) -> nn.Module:
    """A linear probe of either protocol: batch norm, then one layer, or a pooler and two layers."""
    last = max(int(name.split(".")[1]) for name in tensors if name.startswith("classifier."))
    classes = tensors[f"classifier.{last}.weight"].shape[0]
    layers: list[nn.Module] = [nn.Linear(width, classes)]
    if last:
        pooler, hidden = nn.Linear(width, width), nn.Linear(width, 2 * width)
        layers = [pooler, nn.Tanh(), hidden, nn.GELU(), nn.Linear(2 * width, classes)]
    scale = _load(nn.BatchNorm1d(width, affine=False), tensors, "scale.")
    return nn.Sequential(scale, *[_load(nn.Sequential(*layers), tensors, "classifier.")])
