"""Tiny dual encoders in the own formats of open_clip and transformers, made on the spot."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from pathlib import Path

WORDS = "a the red blue green yellow disc square dog moves left right".split()
OPEN_CLIP: dict[str, Any] = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="session")
def open_clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as open_clip publishes models, with pixel statistics and an interpolation of its own."""
    open_clip = pytest.importorskip("open_clip", reason="the extra [clip] is not installed")
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = open_clip.CLIP(**json.loads(json.dumps(OPEN_CLIP)))
    folder = tmp_path_factory.mktemp("open_clip") / "tiny"
    folder.mkdir()
    save_file(
        {key: tensor.contiguous() for key, tensor in model.state_dict().items()}, folder / "open_clip_model.safetensors"
    )
    prepares = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3], "interpolation": "bilinear", "resize_mode": "squash"}
    table = {"model_cfg": OPEN_CLIP, "preprocess_cfg": prepares}
    (folder / "open_clip_config.json").write_text(json.dumps(table))
    return folder


def words() -> Any:
    """A tokenizer of whole words in transformers' form."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    known = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *WORDS])}
    plain = Tokenizer(models.WordLevel(known, unk_token="<unk>"))  # noqa: S106 - a piece, no secret
    plain.normalizer, plain.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    plain.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=plain, model_max_length=16, **names)


@pytest.fixture(scope="session")
def transformers_folder(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """``clip`` and ``siglip`` as ``save_pretrained`` writes them."""
    import transformers as t

    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    text = {**tower, **ids, "vocab_size": 4 + len(WORDS), "max_position_embeddings": 16}
    vision = {**tower, "image_size": 32, "patch_size": 16}
    torch.manual_seed(1)
    clip = t.CLIPModel(t.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    siglip = t.SiglipModel(t.SiglipConfig(text_config={**text, "projection_size": 16}, vision_config=vision))
    for parameter in siglip.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # its pooling head starts with zeros
    prepares = {
        "clip": t.CLIPImageProcessor(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}),
        "siglip": t.SiglipImageProcessor(size={"height": 32, "width": 32}),
    }
    root, folders = tmp_path_factory.mktemp("transformers"), {}
    for kind, model in (("clip", clip), ("siglip", siglip)):
        folders[kind] = root / kind
        for part in (model, words(), prepares[kind]):
            part.save_pretrained(folders[kind])
    return folders
