"""The text encoder ENC_L: a small BERT and a projection to the fusion width (paper 3.1, 4.1, Eq. 1).

It starts at random, or from a published BERT of its width: from files, or by name from the hub.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from evilm import hub
from evilm.errors import CheckpointError, DependencyError
from evilm.model.layers import fused_attention_is_slow, init_weights
from evilm.types import Encoded, Text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from evilm.model.presets import ModelConfig

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
WORDS = "embeddings.word_embeddings.weight"
POSITIONS = "embeddings.position_embeddings.weight"


class TextEncoder(nn.Module):
    """Word pieces to tokens of the fusion width.

    Args:
        config: the settings named ``text_*``, ``max_text_len``, ``dropout`` and ``embed_dim``. The paper gives BERT a
            width of 128 and 4 heads; 6 layers with a feed-forward width of 512 have the size that it states.
        vocab_size: K word pieces.
    """

    piece_weights: Tensor

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        from transformers import BertConfig, BertModel

        shape = BertConfig(
            vocab_size=vocab_size,
            hidden_size=config.text_embed_dim,
            num_hidden_layers=config.text_depth,
            num_attention_heads=config.text_num_heads,
            intermediate_size=config.text_mlp_dim,
            max_position_embeddings=config.max_text_len,
            hidden_dropout_prob=config.dropout,
            attention_probs_dropout_prob=config.dropout,
            attn_implementation="sdpa",  # pyright: ignore[reportCallIssue], an argument of the base class
        )
        self.attention = "sdpa"  # the implementation that BERT uses at present
        self.bert = BertModel(shape, add_pooling_layer=False)
        self.project = nn.Linear(config.text_embed_dim, config.embed_dim)
        init_weights(self)
        self.pools = config.pools
        if self.pools:
            # (K,) log inverse frequency of each word piece in the training captions; 0 leaves a piece out.
            self.register_buffer("piece_weights", torch.zeros(vocab_size))
            # A bag of BERT's own embeddings loses 3 of R@1 (docs/decisions.md).
            self.bag_embeddings = nn.Embedding(vocab_size, config.text_embed_dim)
            init_weights(self.bag_embeddings)

    @property
    def word_embeddings(self) -> Tensor:
        """(K, d): BERT's input embeddings, which are also the output weights of the MLM head."""
        return self.bert.embeddings.word_embeddings.weight

    def forward(self, text: Text) -> Encoded:
        """ids (B, L) to e^L, (B, L, D) (Eq. 1)."""
        wanted = "eager" if fused_attention_is_slow(self.word_embeddings) else "sdpa"
        if wanted != self.attention:
            self.bert.set_attn_implementation(wanted)
            self.attention = wanted
        states: Tensor = self.bert(input_ids=text.ids, attention_mask=text.mask.long()).last_hidden_state
        return Encoded(self.project(states), text.mask, pooled=self._pool(text, states) if self.pools else None)

    def load_bert(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy BERT's tensors; the bag starts from its word embeddings."""
        self.bert.load_state_dict(tensors)
        if self.pools:
            self.bag_embeddings.load_state_dict({"weight": self.word_embeddings.detach()})

    def _pool(self, text: Text, states: Tensor) -> Tensor:
        """(B, 2 d): a weighted bag of word pieces and the mean of BERT's states (B, L, d), each of unit variance.

        The bag keeps the rare words of a caption apart, which [CLS] learns only from many captions.
        """
        weights = self.piece_weights[text.ids] * text.mask
        bag = (self.bag_embeddings(text.ids).float() * weights[..., None]).sum(1)
        mean = (states.float() * text.mask[..., None]).sum(1)  # the sum; scaling makes it equal to the mean
        parts = [part * torch.rsqrt(part.square().mean(-1, keepdim=True) + 1e-12) for part in (bag, mean)]
        return torch.cat(parts, -1)


def load_text_weights(encoder: TextEncoder, pieces: Sequence[str], source: str) -> list[str]:
    """Copy the weights of a published BERT into the text encoder, word pieces by their spelling.

    Args:
        encoder: changed in place.
        pieces: its word pieces, in the order of their ids.
        source: a folder or a safetensors file with a ``vocab.txt`` beside it, or a name on the hub such as
            ``google/bert_uncased_L-6_H-128_A-2``.

    Returns:
        lines that list what was loaded, what starts at random and what was not used.

    Raises:
        CheckpointError: no such file or name, no network, a damaged file, or another width.
    """
    weights, vocabulary = _find_files(source)
    published = _read_weights(weights)
    try:
        rows = {piece: row for row, piece in enumerate(vocabulary.read_text(encoding="utf-8").splitlines())}
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{vocabulary}: not readable as a vocabulary, one word piece a line: {error}") from None
    own = encoder.bert.state_dict()
    loaded: dict[str, Tensor] = {}
    for name, tensor in own.items():
        other = published.get(name)
        if other is None:
            continue
        if name == POSITIONS and other.shape[1:] == tensor.shape[1:]:
            other = torch.cat([other[: len(tensor)], tensor[len(other) :]])
        if name == WORDS and other.shape[1:] == tensor.shape[1:]:
            known = {row: rows[piece] for row, piece in enumerate(pieces) if piece in rows}
            if max(known.values(), default=-1) >= len(other):
                raise CheckpointError(f"{vocabulary}: has more words than {weights.name} has embeddings")
            published_rows, other = other[list(known.values())], tensor.clone()
            other[list(known)] = published_rows
        if other.shape != tensor.shape:
            raise CheckpointError(
                f"{weights}: not a BERT of this model's width: {name} is {tuple(other.shape)} there and "
                f"{tuple(tensor.shape)} here; change model.text_embed_dim, model.text_mlp_dim or model.text_weights"
            )
        loaded[name] = other
    if not loaded:
        raise CheckpointError(f"{weights}: holds no BERT; its tensors are {', '.join(sorted(published)[:3])}, ...")
    encoder.load_bert({**own, **loaded})

    def layers(names: set[str]) -> str:
        return ", ".join(sorted({".".join(name.split(".")[:3]) for name in names})) or "nothing"

    shared = sum(piece in rows for piece in pieces)
    return [
        f"text encoder from {source}: {len(loaded)} of {len(own)} tensors, {shared} of {len(pieces)} word pieces",
        f"text encoder random: {layers(own.keys() - loaded.keys())}, {len(pieces) - shared} pieces, the projection",
        f"not used of {source}: {layers(published.keys() - own.keys())}",
    ]


def _find_files(source: str) -> tuple[Path, Path]:
    """The file of weights and the file of word pieces that ``source`` names."""
    path = Path(source)
    if path.is_file():
        weights, words = path, path.with_name("vocab.txt")
    elif path.is_dir():
        weights = next((path / name for name in WEIGHTS if (path / name).is_file()), path / WEIGHTS[0])
        words = path / "vocab.txt"
    else:
        try:
            return hub.fetch_first(source, WEIGHTS), hub.fetch_first(source, ["vocab.txt"])
        except (CheckpointError, DependencyError) as error:
            raise CheckpointError(
                f"model.text_weights = {source!r}: no such file or folder here, and it cannot be fetched from the hub "
                f"({error}); without a network, name a folder with {WEIGHTS[0]} and vocab.txt"
            ) from None
    for file in (weights, words):
        if not file.is_file():
            raise CheckpointError(f"{file}: missing; a published BERT is {WEIGHTS[0]} with a vocab.txt beside it")
    return weights, words


def _read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors by the names of transformers' ``BertModel``, whatever task they were published for."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType], its PathLike is bare

    try:
        if path.suffix == ".bin":
            raw: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
        else:
            raw = load_file(path)
    except (OSError, SafetensorError, RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable as weights: {error}") from None
    named = {name.removeprefix("bert."): tensor for name, tensor in raw.items() if not name.startswith("cls.")}
    return {
        name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias"): tensor.float()
        for name, tensor in named.items()
        if not name.endswith("position_ids")
    }
