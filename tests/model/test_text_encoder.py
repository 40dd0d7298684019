"""A published BERT finds its place: word pieces by spelling, and nothing is left out in silence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

from evilm.errors import CheckpointError
from evilm.model.presets import ModelConfig
from evilm.model.text_encoder import TextEncoder, load_text_weights

if TYPE_CHECKING:
    from pathlib import Path

PIECES = ["[PAD]", "a", "dog", "##s", "runs"]
THEIRS = ["[PAD]", "runs", "cat", "a", "dog"]


def encoder(layers: int = 2, width: int = 8, positions: int = 6) -> TextEncoder:
    shape = ModelConfig(
        text_embed_dim=width, text_depth=layers, text_num_heads=2, text_mlp_dim=16, max_text_len=positions, embed_dim=4,
        num_heads=2, dropout=0.0,
    )  # fmt: skip
    return TextEncoder(shape, len(PIECES))


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A BERT of one layer and eight places, as published: with a prefix, a pooler and an old name of a norm."""
    torch.manual_seed(5)
    other = encoder(layers=1, positions=8)
    tensors = {f"bert.{name}": tensor.clone() for name, tensor in other.bert.state_dict().items()}
    tensors["bert.embeddings.word_embeddings.weight"] = torch.arange(5.0)[:, None].expand(-1, 8).clone()
    tensors["bert.embeddings.LayerNorm.gamma"] = tensors.pop("bert.embeddings.LayerNorm.weight") + 2
    tensors["bert.pooler.dense.weight"] = torch.zeros(8, 8)
    tensors["cls.predictions.bias"] = torch.zeros(5)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "vocab.txt").write_text("\n".join(THEIRS) + "\n")
    return tmp_path


@pytest.mark.parametrize("name", ["", "model.safetensors"])
def test_pieces_are_found_by_spelling_and_the_rest_is_told(published: Path, name: str) -> None:
    own = encoder()
    before = {key: tensor.clone() for key, tensor in own.bert.state_dict().items()}
    lines = load_text_weights(own, PIECES, str(published / name))
    after = own.bert.state_dict()
    words = after["embeddings.word_embeddings.weight"]
    assert [row[0].item() for row in words[[0, 1, 2, 4]]] == [0, 3, 4, 1]
    assert torch.equal(words[3], before["embeddings.word_embeddings.weight"][3])
    assert after["embeddings.LayerNorm.weight"].tolist() == [3.0] * 8
    assert len(after["embeddings.position_embeddings.weight"]) == 6
    deeper = "encoder.layer.1.output.dense.weight"
    assert torch.equal(after[deeper], before[deeper])
    assert "4 of 5 word pieces" in lines[0]
    assert "random: encoder.layer.1, 1 pieces" in lines[1]
    assert lines[2].endswith(": pooler.dense.weight")


def test_another_width_is_refused(published: Path) -> None:
    with pytest.raises(CheckpointError, match=r"not a BERT of this model's width: .* change model\.text_embed_dim"):
        load_text_weights(encoder(width=4), PIECES, str(published))


def test_what_cannot_be_had_is_said_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"google/bert.* cannot be fetched from the hub .* without a network"):
        load_text_weights(encoder(), PIECES, "google/bert_uncased_L-6_H-128_A-2")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: missing"):
        load_text_weights(encoder(), PIECES, str(tmp_path))
    (tmp_path / "vocab.txt").write_text("a\n")
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="not readable as weights"):
        load_text_weights(encoder(), PIECES, str(tmp_path))
    save_file({"other": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="holds no BERT"):
        load_text_weights(encoder(), PIECES, str(tmp_path))
