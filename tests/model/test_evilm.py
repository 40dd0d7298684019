"""The three verbs: shapes, what depends on what, other sizes, other backbones, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from evilm.errors import CheckpointError, ConfigError, GridError
from evilm.model.evilm import EViLM
from evilm.model.layers import Attention, fused_attention_is_slow
from evilm.model.presets import PRESETS, ModelConfig, preset
from evilm.model.video_encoder import build_backbone
from evilm.types import Encoded, Grid, Text

if TYPE_CHECKING:
    from pathlib import Path

    from evilm.data.vocabulary import Vocabulary

VIT = {"embed_dim": 32, "depth": 3, "num_heads": 2, "img_size": 64}
SWIN = {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "img_size": 64, "window_size": 2}
EDGENEXT = {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}


@pytest.fixture
def model(tiny: ModelConfig, vocabulary: Vocabulary) -> EViLM:
    torch.manual_seed(0)
    made = EViLM(tiny, vocabulary.size).eval()
    with torch.no_grad():  # they start at zero, which would hide what they do
        made.video_encoder.time.normal_()
    return made


def clips(count: int = 2, frames: int = 2, height: int = 64, width: int = 64) -> torch.Tensor:
    random = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, frames, 3, height, width), generator=random, dtype=torch.uint8)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_three_verbs(name: str) -> None:
    config = preset(name)
    small = config.model_copy(update={"image_size": 2 * config.stride})
    made = EViLM(small, 50).eval()
    text = Text(torch.randint(5, 50, (2, 6)), torch.ones(2, 6, dtype=torch.bool), torch.ones(2, 6, dtype=torch.bool))
    with torch.no_grad():
        video = made.encode_video(made.normalise(clips(2, 2, small.image_size, small.image_size)))
        words = made.encode_text(text)
        fused = made.fuse(video, words)
    assert video.grid == Grid(2, 2, 2)
    assert video.tokens.shape == (2, 8, config.embed_dim)
    assert words.tokens.shape == (2, 6, config.embed_dim)
    assert fused.cls.shape == (2, config.embed_dim)
    assert fused.video is not None
    assert fused.text is not None
    assert fused.video.shape == (2, 8, config.embed_dim)
    assert fused.text.shape == (2, 6, config.embed_dim)
    assert torch.isfinite(fused.cls).all()


def test_an_unknown_preset_lists_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"unknown preset 'evilm-huge'.*evilm-small"):
        preset("evilm-huge")


@pytest.mark.parametrize("frames", [1, 2, 3, 5, 8])
def test_any_number_of_frames(model: EViLM, frames: int) -> None:
    found = model.encode_video(model.normalise(clips(2, frames)))
    assert found.grid == Grid(frames, 4, 4)
    assert found.tokens.shape == (2, frames * 16, 32)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (32, 80), (128, 64)])
def test_other_sizes_that_the_stride_divides(model: EViLM, height: int, width: int) -> None:
    found = model.encode_video(model.normalise(clips(1, 2, height, width)))
    assert found.grid == Grid(2, height // 16, width // 16)
    assert found.tokens.shape == (1, 2 * (height // 16) * (width // 16), 32)


@pytest.mark.parametrize("parts", ["both", "video", "text"])
@pytest.mark.parametrize("bf16", [False, True])
def test_cls_alone_is_that_of_the_whole_fusion(model: EViLM, vocabulary: Vocabulary, parts: str, bf16: bool) -> None:
    """Also its gradient: the last block of all other places changes nothing."""
    text = vocabulary.encode(["a red square moves left", "a circle"], 12)
    given: dict[str, Encoded] = {}
    if parts != "text":
        given["video"] = model.encode_video(model.normalise(clips()))
    if parts != "video":
        given["text"] = model.encode_text(text)
    given = {name: replace(one, tokens=one.tokens.detach()) for name, one in given.items()}
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        whole, alone = model.fuse(**given).cls, model.fuse_cls(**given)
    close = {"rtol": 2e-2, "atol": 2e-2} if bf16 else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(alone, whole, **close)
    if bf16:
        return
    weights = list(model.fusion.parameters())
    some = torch.randn(whole.shape, generator=torch.Generator().manual_seed(0))
    found = [torch.autograd.grad((one * some).sum(), weights, allow_unused=True) for one in (alone, whole)]
    for ours, theirs in zip(*found, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None and theirs is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("height", "width", "named"), [(60, 64, "48 or 64"), (64, 100, "96 or 112"), (8, 64, "16 or 32")]
)
def test_sizes_that_do_not_fit_are_refused_with_those_that_do(
    model: EViLM, height: int, width: int, named: str
) -> None:
    with pytest.raises(GridError, match=f"stride 16.*such as {named}"):
        model.encode_video(model.normalise(clips(1, 1, height, width)))


def test_settings_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(ValueError, match=r"num_heads .* must divide embed_dim"):
        ModelConfig(embed_dim=100, num_heads=3)
    with pytest.raises(ValueError, match="must be a multiple of the stride"):
        ModelConfig(image_size=100, stride=32)


def test_normalisation_is_the_backbone_s_own(model: EViLM) -> None:
    white = model.normalise(torch.full((1, 1, 3, 1, 1), 255, dtype=torch.uint8)).flatten()
    wanted = [(1 - mean) / std for mean, std in zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)]
    assert white.tolist() == pytest.approx(wanted, rel=1e-5)


def test_a_frame_is_encoded_by_itself_and_marked_with_its_time(model: EViLM) -> None:
    with torch.no_grad():
        frames = model.normalise(clips(1, 2))
        together = model.encode_video(frames).tokens[0].view(2, 16, 32)
        other = frames.clone()
        other[0, 1] = 0
        changed = model.encode_video(other).tokens[0].view(2, 16, 32)
        assert torch.allclose(changed[0], together[0], atol=1e-5)
        assert not torch.allclose(changed[1], together[1], atol=1e-2)
        twice = model.encode_video(frames[:, :1].repeat(1, 2, 1, 1, 1)).tokens[0].view(2, 16, 32)
        time = model.video_encoder.time[0].T
        assert torch.allclose(twice[1] - twice[0], (time[1] - time[0]).expand(16, 32), atol=1e-5)


def test_regions_come_in_order_of_frame_row_column(model: EViLM) -> None:
    """Region (t, y, x) changes most when the pixels of that cell change."""
    with torch.no_grad():
        frames = model.normalise(clips(1, 2))
        before = model.encode_video(frames).tokens[0]
        touched = frames.clone()
        touched[0, 1, :, 32:48, 48:64] = 3.0  # frame 1, row 2, column 3
        moved = (model.encode_video(touched).tokens[0] - before).norm(dim=-1)
    assert int(moved.argmax()) == 16 + 2 * 4 + 3


def test_positions_are_interpolated(model: EViLM) -> None:
    encoder = model.video_encoder
    with torch.no_grad():
        encoder.time[0, :, 0], encoder.time[0, :, 1] = 1.0, 3.0
        encoder.space.zero_()
        three = encoder._positions(Grid(3, 4, 4))
        assert three[:, 0, 0].tolist() == pytest.approx([1.0, 2.0, 3.0])
        encoder.time.zero_()
        encoder.space.copy_(torch.linspace(0, 1, 4)[None, None, :, None].expand(1, 32, 4, 4))
        own = encoder._positions(Grid(1, 4, 4)).view(4, 4, 32)
        assert own[:, 0, 0].tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])
        finer = encoder._positions(Grid(1, 8, 8)).view(8, 8, 32)
    assert (finer[1:, 0, 0] > finer[:-1, 0, 0]).all()
    assert torch.allclose(finer[:, 0], finer[:, 7], atol=1e-6)
    assert finer.mean().item() == pytest.approx(0.5, abs=0.01)


def test_one_modality_alone(model: EViLM, vocabulary: Vocabulary) -> None:
    with torch.no_grad():
        video = model.encode_video(model.normalise(clips()))
        text = model.encode_text(vocabulary.encode(["a red disc", "the blue square"], 30))
        only_video, only_text = model.fuse(video=video), model.fuse(text=text)
        both = model.fuse(video, text)
    assert only_video.text is None
    assert only_text.video is None
    assert only_video.cls.shape == only_text.cls.shape == (2, 32)
    assert not torch.allclose(both.cls, only_video.cls, atol=1e-3)
    with pytest.raises(ValueError, match="a video, a text, or both"):
        model.fuse()


def test_pooled_features_are_worked_out_by_hand(tiny: ModelConfig, vocabulary: Vocabulary) -> None:
    torch.manual_seed(0)
    model = EViLM(tiny.model_copy(update={"embedding": "both"}), vocabulary.size).eval()
    encoder, text = model.text_encoder, vocabulary.encode(["a red disc", "a disc"], 16)
    encoder.piece_weights[text.ids[0, 2]] = 2.0  # red
    encoder.piece_weights[text.ids[0, 3]] = 1.0  # disc
    with torch.no_grad():
        pooled, alone = encoder(text).pooled, encoder(vocabulary.encode(["a disc"], 16)).pooled
        states = encoder.bert(input_ids=text.ids, attention_mask=text.mask.long()).last_hidden_state
        features = torch.rand(2, 2, 4, 4, model.video_encoder.channels)
        video = model.video_encoder.patches(features)
    assert pooled is not None
    assert alone is not None
    red, disc = encoder.bag_embeddings.weight[text.ids[0, 2:4]].detach()
    for row, bag, mean in ((0, 2 * red + disc, states[0, :5].mean(0)), (1, disc, states[1, :4].mean(0))):
        parts = [part / part.square().mean().sqrt() for part in (bag, mean)]
        torch.testing.assert_close(pooled[row], torch.cat(parts))
    torch.testing.assert_close(alone[0], pooled[1])  # padding does not count
    torch.testing.assert_close(video.pooled, features.mean((1, 2, 3)))
    assert model.encode_text(text)[:1].pooled is not None
    assert EViLM(tiny, vocabulary.size).encode_text(text).pooled is None


def test_padding_changes_nothing(model: EViLM, vocabulary: Vocabulary) -> None:
    text = vocabulary.encode(["a red disc moves left"], 30)
    width = text.ids.shape[1]

    def longer(rows: torch.Tensor, by: int) -> torch.Tensor:
        return torch.nn.functional.pad(rows, (0, by))

    padded = Text(longer(text.ids, 20), longer(text.mask, 20), longer(text.starts, 20))
    padded.ids[0, width:] = 9  # whatever stands there
    with torch.no_grad():
        video = model.encode_video(model.normalise(clips(1)))
        short, long = model.fuse(video, model.encode_text(text)), model.fuse(video, model.encode_text(padded))
        assert torch.allclose(short.cls, long.cls, atol=1e-5)
        assert short.video is not None
        assert long.video is not None
        assert torch.allclose(short.video, long.video, atol=1e-5)
        alone = model.fuse(text=model.encode_text(text)).cls
        assert torch.allclose(alone, model.fuse(text=model.encode_text(padded)).cls, atol=1e-5)


def test_a_row_does_not_depend_on_the_rest_of_its_batch(model: EViLM, vocabulary: Vocabulary) -> None:
    frames = clips(3)
    texts = ["a red disc moves left and the blue square grows", "red", "the star jumps"]
    with torch.no_grad():
        video, text = model.encode_video(model.normalise(frames)), model.encode_text(vocabulary.encode(texts, 30))
        together = model.fuse(video, text).cls
        for i in range(3):
            own = model.encode_text(vocabulary.encode(texts[i : i + 1], 30))
            alone = model.fuse(model.encode_video(model.normalise(frames[i : i + 1])), own).cls
            assert torch.allclose(alone[0], together[i], atol=1e-4)
            picked = model.fuse(video[torch.tensor([i])], text[torch.tensor([i])]).cls
            assert torch.allclose(picked[0], together[i], atol=1e-5)


def test_it_runs_in_float64(model: EViLM, vocabulary: Vocabulary) -> None:
    """And float32 agrees with it: nothing inside loses more than rounding."""
    text = vocabulary.encode(["a red disc"], 30)
    pixels = model.normalise(clips(1))
    with torch.no_grad():
        single = model.fuse(model.encode_video(pixels), model.encode_text(text)).cls
        model.double()
        double = model.fuse(model.encode_video(pixels.double()), model.encode_text(text)).cls
    assert double.dtype == torch.float64
    assert torch.allclose(single.double(), double, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "stride", "options"),
    [
        ("edgenext_xx_small", 16, EDGENEXT),
        ("edgenext_xx_small", 32, EDGENEXT),
        ("test_resnet", 16, {}),
        ("swin_tiny_patch4_window7_224", 16, SWIN),
        ("swin_tiny_patch4_window7_224", 32, SWIN),
        ("vit_tiny_patch16_224", 16, VIT),
    ],
)
def test_any_backbone(tiny: ModelConfig, name: str, stride: int, options: dict[str, int | list[int]]) -> None:
    config = tiny.model_copy(update={"backbone": name, "backbone_options": options, "stride": stride})
    torch.manual_seed(0)
    made = EViLM(config, 50).eval()
    with torch.no_grad():
        frames = made.normalise(clips(1))
        found = made.encode_video(frames)
        assert found.grid == Grid(2, 64 // stride, 64 // stride)
        assert found.tokens.shape == (1, found.grid.patches, 32)
        # Channels last or first, a cell is a cell: the one that is touched is the one that answers most.
        cells = 64 // stride
        touched = frames.clone()
        touched[0, 1, :, :stride, (cells - 1) * stride :] = 3.0
        moved = (made.encode_video(touched).tokens[0] - found.tokens[0]).norm(dim=-1)
    assert int(moved.argmax()) == cells * cells + cells - 1


def test_backbones_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="unknown backbone 'edgenext_gigantic': timm has edgenext"):
        build_backbone("edgenext_gigantic", 32, {})
    with pytest.raises(ConfigError, match="nothing of that name"):
        build_backbone("zzz", 32, {})
    with pytest.raises(ConfigError, match=r"no feature map of stride 64: it has \[4, 8, 16, 32\]"):
        build_backbone("edgenext_xx_small", 64, EDGENEXT)
    with pytest.raises(ConfigError, match="wings"):
        build_backbone("edgenext_xx_small", 32, {**EDGENEXT, "wings": 2})


def test_weights_from_a_file(tmp_path: Path) -> None:
    torch.manual_seed(3)
    source = timm.create_model("edgenext_xx_small", num_classes=7, **EDGENEXT).state_dict()
    path = tmp_path / "weights.safetensors"
    save_file(source, path)
    made, channels = build_backbone("edgenext_xx_small", 16, EDGENEXT, str(path))
    assert channels == 24
    by_name = {name.replace("_", "."): tensor for name, tensor in source.items()}
    own = made.state_dict()
    assert len(own) > 20
    for name, tensor in own.items():
        assert torch.equal(tensor, by_name[name.replace("_", ".")]), name


def test_weights_files_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    with pytest.raises(CheckpointError, match=r"weights\.safetensors: not a readable safetensors file"):
        build_backbone("edgenext_xx_small", 16, EDGENEXT, str(path))
    path.write_bytes(b"\x00" * 100)
    with pytest.raises(CheckpointError, match=r"weights\.safetensors: not a readable safetensors file"):
        build_backbone("edgenext_xx_small", 16, EDGENEXT, str(path))
    source = timm.create_model("edgenext_xx_small", num_classes=0, **EDGENEXT).state_dict()
    save_file(source, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        build_backbone("edgenext_xx_small", 16, EDGENEXT, str(path))
    save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), path)
    with pytest.raises(CheckpointError, match=r"not weights of edgenext_xx_small: \d+ of \d+ tensors are missing"):
        build_backbone("edgenext_xx_small", 16, EDGENEXT, str(path))
    # One tensor of another shape is enough: timm itself would take the rest and start this one at random.
    name = next(key for key in source if key.endswith("weight") and source[key].ndim == 4)
    save_file(source | {name: torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match=f"1 of .*{name}"):
        build_backbone("edgenext_xx_small", 16, EDGENEXT, str(path))


@pytest.mark.parametrize("hidden", [False, True])
def test_plain_attention_equals_the_fused_one(hidden: bool) -> None:
    """Training in bfloat16 on a CPU takes three plain operations; the answer and the gradient are the same."""
    torch.manual_seed(0)
    attention, x = Attention(32, 4), torch.randn(3, 9, 32)
    mask = torch.arange(9)[None] < torch.tensor([[9], [5], [1]]) if hidden else None
    wanted = attention(x, mask)
    wanted.sum().backward()
    gradient = attention.qkv.weight.grad
    assert gradient is not None
    slow = gradient.clone()
    attention.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        assert fused_attention_is_slow(x)
        found = attention(x, mask)
    found.float().sum().backward()
    torch.testing.assert_close(found.float(), wanted, rtol=0.05, atol=0.02)
    assert attention.qkv.weight.grad is not None
    assert float(F.cosine_similarity(attention.qkv.weight.grad.flatten(), slow.flatten(), dim=0)) > 0.999


def test_the_fused_attention_is_kept_where_it_is_fast() -> None:
    x = torch.zeros(1)
    assert not fused_attention_is_slow(x)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert not fused_attention_is_slow(x)
