from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from evilm import cli
from evilm.errors import ConfigError, GridError
from evilm.model.evilm import EViLM
from evilm.model.presets import PRESETS
from evilm.report import latency
from evilm.report.cost import CONVENTION, Cost, cost_of, count_macs, count_parameters, macs_by_module
from evilm.tasks.pretrain import Pretrain, PretrainConfig


@pytest.fixture(scope="module")
def small() -> Cost:
    return cost_of("evilm-small")


def test_a_convolution_by_hand() -> None:
    # 10x10 outputs (padding keeps the size), 16 channels, each of 8 * 3 * 3 products.
    layer = nn.Conv2d(8, 16, 3, padding=1)
    assert count_macs(lambda: layer(torch.zeros(2, 8, 10, 10))) == 2 * 10 * 10 * 16 * 8 * 9


def test_a_depthwise_and_a_grouped_convolution_by_hand() -> None:
    depthwise, grouped = nn.Conv2d(8, 8, 7, padding=3, groups=8), nn.Conv2d(8, 16, 1, stride=2, groups=4)
    x = torch.zeros(1, 8, 10, 10)
    assert count_macs(lambda: depthwise(x)) == 10 * 10 * 8 * 49
    assert count_macs(lambda: grouped(x)) == 5 * 5 * 16 * 2


def test_a_linear_layer_by_hand() -> None:
    layer = nn.Linear(12, 7)
    assert count_macs(lambda: layer(torch.zeros(3, 5, 12))) == 3 * 5 * 12 * 7


@pytest.mark.parametrize("masked", [False, True])
def test_attention_by_hand(masked: bool) -> None:
    # Two products, query with key and weights with value: 2 clips, 4 heads, 5 queries, 9 keys of width 6.
    query, key = torch.zeros(2, 4, 5, 6), torch.zeros(2, 4, 9, 6)
    mask = torch.ones(2, 1, 1, 9, dtype=torch.bool) if masked else None
    macs = count_macs(lambda: F.scaled_dot_product_attention(query, key, key, attn_mask=mask))
    assert macs == 2 * (2 * 4 * 5 * 9 * 6)


def test_a_fused_encoder_layer_counts_like_a_plain_one() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    by_hand = 5 * 8 * 24 + 2 * (5 * 5 * 8) + 5 * 8 * 8 + 2 * (5 * 8 * 16)
    assert count_macs(lambda: layer(torch.zeros(1, 5, 8))) == by_hand
    assert torch.backends.mha.get_fastpath_enabled()


def test_the_counter_on_known_networks() -> None:
    edgenext = timm.create_model("edgenext_small").eval()
    vit = timm.create_model("vit_base_patch16_224").eval()
    assert 1.25e9 < count_macs(lambda: edgenext(torch.zeros(1, 3, 256, 256))) < 1.27e9
    assert 17.5e9 < count_macs(lambda: vit(torch.zeros(1, 3, 224, 224))) < 17.7e9


def test_shared_parameters_count_once() -> None:
    first, second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    assert count_parameters(first, second) == 32
    second.weight = first.weight
    assert count_parameters(first, second) == 16


def test_macs_by_module() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 5))
    spent = macs_by_module(model, lambda: model(model(torch.zeros(1, 2))[:, :2]), {"first": ("0",), "second": ("1",)})
    assert spent == {"first": 12, "second": 30}
    assert not model[0]._forward_hooks
    assert not model[0]._forward_pre_hooks


def test_evilm_small_has_the_size_of_the_paper(small: Cost) -> None:
    assert 14.9e6 < small.parameters < 16.0e6
    assert 7.2e9 < small.macs < 7.6e9
    assert small.flops == 2 * small.macs
    # design: EdgeNeXt-small without its head, BERT, learned positions, four blocks.
    assert round(small.parts["video_encoder"].parameters / 1e6, 2) == 5.28
    assert round(small.parts["text_encoder"].parameters / 1e6, 2) == 2.43
    assert small.parts["positions"].parameters == 8 * 8 * 384 + 4 * 384
    assert round(small.parts["fusion"].parameters / 1e6, 2) == 7.10


def test_projections_by_hand(small: Cost) -> None:
    assert small.parts["projections"] == (304 * 384 + 384 + 128 * 384 + 384, 256 * 304 * 384 + 30 * 128 * 384)


def test_heads_by_hand(small: Cost) -> None:
    words = (384 * 128 + 128) + 2 * 128 + 9157  # to the text's width, a norm, a bias a word; word embeddings are shared
    regions, match = 384 * 9420 + 9420, (384 * 384 + 384) + (384 + 1)
    assert small.parameters_with_heads - small.parameters == words + regions + match
    macs = 30 * (384 * 128 + 128 * 9157) + 256 * 384 * 9420 + 384 * 384 + 384
    assert small.macs_with_heads - small.macs == macs


def test_heads_are_those_of_pretraining() -> None:
    model = EViLM(PRESETS["evilm-tiny"])
    task = Pretrain(model, SimpleNamespace(size=9157), PretrainConfig(), {"codes": 100}, None)
    cost = cost_of("evilm-tiny", size=64, codes=100)
    assert cost.parameters_with_heads == count_parameters(task)


def test_the_parts_add_up(small: Cost) -> None:
    assert small.parameters == count_parameters(EViLM(PRESETS["evilm-small"]))
    assert sum(part.macs for part in small.parts.values()) == small.macs


def test_macs_grow_with_frames() -> None:
    one, two = cost_of("evilm-tiny", frames=1, size=64, words=8), cost_of("evilm-tiny", frames=2, size=64, words=8)
    assert two.parts["video_encoder"].macs == 2 * one.parts["video_encoder"].macs
    assert two.parts["text_encoder"] == one.parts["text_encoder"]
    assert two.parameters == one.parameters


def test_json_and_text_agree(small: Cost) -> None:
    values = json.loads(json.dumps(small.as_json()))
    assert {
        "preset",
        "frames",
        "size",
        "words",
        "parameters",
        "parameters_with_heads",
        "macs",
        "flops",
        "parts",
    } <= set(values)
    assert (values["preset"], values["frames"], values["size"], values["words"]) == ("evilm-small", 4, 256, 30)
    assert values["parts"]["fusion"] == {
        "parameters": small.parts["fusion"].parameters,
        "macs": small.parts["fusion"].macs,
    }
    text = small.as_text()
    assert "evilm-small: 4 frames of 256x256, 30 words" in text
    (total,) = [line for line in text.splitlines() if line.startswith("total without heads")]
    assert total.split()[3:] == [
        f"{small.parameters / 1e6:.3f}",
        "M",
        f"{small.macs / 1e9:.3f}",
        f"{small.flops / 1e9:.3f}",
    ]


def test_a_preset_is_counted_at_its_own_clip_shape(capsys: pytest.CaptureFixture[str]) -> None:
    own = PRESETS["evilm-tiny"]
    assert cost_of("evilm-tiny") == cost_of("evilm-tiny", own.num_frames, own.image_size)
    assert cli.run(["cost", "evilm-tiny"]) == 0
    assert capsys.readouterr().out.startswith(f"evilm-tiny: {own.num_frames} frames of 64x64, 30 words")


def test_the_random_state_of_the_caller_is_unchanged() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    cost_of("evilm-tiny", frames=1, size=64, words=4)
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"preset": "evilm-smal"}, ConfigError, "evilm-smal"),
        ({"preset": "evilm-tiny", "words": 65}, ConfigError, "65 words.*1 to 64"),
        ({"preset": "evilm-tiny", "words": 0}, ConfigError, "0 words"),
        ({"preset": "evilm-tiny", "frames": 0}, ConfigError, "0 frames"),
        ({"preset": "evilm-tiny", "size": 100}, GridError, "100"),
        ({"preset": "evilm-tiny", "size": -16}, GridError, "-16"),
    ],
)
def test_errors(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        cost_of(**arguments)


def test_the_note_on_the_papers_convention_agrees_with_the_counts(small: Cost) -> None:
    assert f"{small.macs / 1e9:.1f} GMAC, or {small.flops / 1e9:.1f} GFLOP" in CONVENTION
    assert f"{small.frames} frames of {small.size}x{small.size} and {small.words} words" in CONVENTION
    assert small.as_text().endswith(CONVENTION)
    # all-in-one-B: ViT-B/16 on 3 frames of 196 patches, a class token and 40 words each.
    model = timm.create_model("vit_base_patch16_224").eval()
    blocks = count_macs(lambda: model.blocks(torch.zeros(3, 197 + 40, 768)))
    patches = count_macs(lambda: model.patch_embed(torch.zeros(3, 3, 224, 224)))
    assert f"{(blocks + patches) / 1e9:.1f} GMAC or {2 * (blocks + patches) / 1e9:.1f} GFLOP" in CONVENTION


def test_latency_and_memory_are_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["cost", "evilm-tiny", "--size", "64", "--frames", "2", "--measure", "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)["measured"]
    for times in measured["seconds"].values():
        assert 0 < times["fastest"] <= times["median"] <= times["slowest"]
    assert measured["seconds"].keys() == {"encode_video", "encode_text", "fuse", "all"}
    assert 50 < measured["memory_mib"]["before"] < measured["memory_mib"]["peak"] < 4000
    shown = latency.as_text(measured)
    assert "median ms" in shown
    assert "peak memory" in shown
    with pytest.raises(ConfigError, match="evilm-tiny: cannot be measured with 2 frames of 7x7"):
        latency.measure("evilm-tiny", 2, 7, 30)
