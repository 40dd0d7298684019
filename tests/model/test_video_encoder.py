"""The backbone: the right block of a ViT, however many it has, and statistics that stay when it is frozen."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import timm
import torch

from evilm.errors import CheckpointError, ConfigError
from evilm.model import video_encoder
from evilm.model.evilm import EViLM
from evilm.model.presets import PRESETS, ModelConfig
from evilm.model.tokenizer import FrameEncoder, TokenizerConfig
from evilm.model.video_encoder import backbone_features, build_backbone, frame_differences, freeze_batch_norm

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

SMALL = {"img_size": 64, "embed_dim": 32, "num_heads": 2}


@pytest.mark.parametrize("depth", [1, 2, 3, 7])
def test_a_vit_answers_its_last_block(depth: int) -> None:
    """Not its third, of which timm's list of three is easily taken to be the number."""
    model, width = build_backbone("vit_tiny_patch16_224", 16, {**SMALL, "depth": depth})
    assert width == 32
    frames = torch.rand(2, 3, 64, 64)
    [found] = model.eval()(frames)
    assert found.shape == (2, 32, 4, 4)
    vit: nn.Module = model.model
    assert len(vit.blocks) == depth
    seen: list[torch.Tensor] = []
    vit.blocks[-1].register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    model(frames)
    assert len(seen) == 1


def test_conv_head_is_what_the_backbone_pools() -> None:
    torch.manual_seed(0)
    model, width = build_backbone("mobilenetv2_050", 32, {}, conv_head=True)
    stage, narrow = build_backbone("mobilenetv2_050", 32, {})
    assert (narrow, width) == (160, 1280)
    pixels = torch.rand(2, 3, 64, 96)
    [found] = model.eval()(pixels)
    assert found.shape == (2, 1280, 2, 3)
    net = model.net
    torch.testing.assert_close(net(pixels), found.mean((2, 3)))  # its own pooling, and no classes
    own = {name.removeprefix("net."): tensor for name, tensor in model.state_dict().items()}
    stage.load_state_dict({name: own[name] for name in stage.state_dict()})
    [before] = stage.eval()(pixels)
    torch.testing.assert_close(net.bn2(net.conv_head(before)), found)


def test_a_backbone_without_conv_head_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'resnet10t' has no conv_head: set model.backbone_conv_head=false"):
        build_backbone("resnet10t", 32, {}, conv_head=True)
    with pytest.raises(ConfigError, match="its conv_head has stride 32, not 16"):
        build_backbone("mobilenetv2_050", 16, {}, conv_head=True)


def encoder() -> FrameEncoder:
    return FrameEncoder(TokenizerConfig(encoder="resnet10t", stride=16, image_size=64))


def running(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items() if "running" in name}


def test_a_frozen_backbone_keeps_its_statistics_in_training() -> None:
    frames = torch.randint(0, 256, (2, 1, 3, 64, 64), dtype=torch.uint8)
    frozen = encoder()
    for parameter in frozen.backbone.parameters():
        parameter.requires_grad_(False)
    frozen.train()
    assert frozen.training
    assert not any(part.training for part in frozen.backbone.modules())
    before = running(frozen)
    first = frozen(frames)
    assert before
    assert all(torch.equal(before[name], value) for name, value in running(frozen).items())
    assert torch.equal(frozen(frames), first)
    # One that is trained takes each batch's.
    free = encoder().train()
    before = running(free)
    free(frames)
    assert any(not torch.equal(before[name], value) for name, value in running(free).items())


def test_the_model_s_own_encoder_does_too() -> None:
    shape = ModelConfig(
        backbone="resnet10t", stride=16, image_size=64, num_frames=1, embed_dim=32, depth=1, num_heads=2, mlp_dim=32,
        text_embed_dim=16, text_depth=1, text_num_heads=2, text_mlp_dim=32, max_text_len=16,
    )  # fmt: skip
    model = EViLM(shape, 50)
    video = model.video_encoder
    for parameter in video.backbone.parameters():
        parameter.requires_grad_(False)
    model.train()
    assert model.fusion.training
    assert not video.backbone.training
    next(video.backbone.parameters()).requires_grad_(True)
    model.train()
    assert video.backbone.training


def test_one_trainable_weight_is_enough_to_be_trained() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)).train()
    freeze_batch_norm(module)
    assert module.training
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    freeze_batch_norm(module)
    assert not module[1].training


def test_a_few_pictures_at_a_time_are_seen_as_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = encoder().eval()
    made.backbone.requires_grad_(False)
    pixels = torch.rand(7, 3, 64, 64)
    whole = backbone_features(made.backbone, pixels)
    sizes: list[int] = []
    made.backbone.register_forward_pre_hook(lambda _module, inputs: sizes.append(len(inputs[0])))
    monkeypatch.setattr(video_encoder, "_CHUNK_PIXELS", 3 * 64 * 64)
    torch.testing.assert_close(backbone_features(made.backbone, pixels), whole)
    assert sizes == [3, 3, 1]
    sizes.clear()
    # The statistics of a batch are of all of it, and so is a gradient's pass.
    backbone_features(made.backbone.train(), pixels)
    backbone_features(made.backbone.eval().requires_grad_(True), pixels)
    assert sizes == [7, 7]


def test_a_fingerprint_names_backbone_pixels_and_precision() -> None:
    torch.manual_seed(0)
    config = ModelConfig(backbone="resnet10t", stride=16, image_size=64, embed_dim=32, depth=1, num_heads=2)
    first, second = (EViLM(config, 50).video_encoder for _ in range(2))
    assert first.fingerprint("fp32") != second.fingerprint("fp32")
    second.backbone.load_state_dict(first.backbone.state_dict())
    assert first.fingerprint("fp32") == second.fingerprint("fp32")
    assert first.fingerprint("fp32") != first.fingerprint("bf16")
    second.normalise.mean += 1
    assert first.fingerprint("fp32") != second.fingerprint("fp32")


def test_differences_by_hand() -> None:
    patches = torch.tensor([1.0, 4.0, 9.0]).view(1, 3, 1, 1)
    by_hand = [[0.0, 3.0, 3.0, 5.0, 5.0, 0.0]]  # of each frame: from the previous one, to the next one
    assert frame_differences(patches).flatten(1).tolist() == by_hand


def test_motion_tells_the_order_of_frames() -> None:
    """With ``motion`` a patch changes when frames are reversed; without it only its position in time does."""
    shape = PRESETS["evilm-tiny"].model_copy(update={"position_std": 0.0})
    features = torch.rand(2, 4, 4, 4, 256, generator=torch.Generator().manual_seed(0))
    for motion in (False, True):
        own = EViLM(shape.model_copy(update={"motion": motion}), 100).video_encoder
        there, back = (own.patches(each).tokens.view(2, 4, 16, -1) for each in (features, features.flip(1)))
        assert torch.allclose(there, back.flip(1), atol=1e-5) is not motion
        still = features[:, :1].expand(-1, 4, -1, -1, -1)
        assert torch.allclose(own.patches(still).tokens[:, :16], own.patches(still[:, :1]).tokens, atol=1e-5)


def test_weights_under_other_names_are_taken_by_their_order(tmp_path: Path) -> None:
    torch.manual_seed(1)
    net = timm.create_model("mobilenetv2_050", num_classes=7)
    file = tmp_path / "other.pth"
    torch.save({f"layer{i}": tensor for i, tensor in enumerate(net.state_dict().values())}, file)
    torch.manual_seed(2)
    model, _ = build_backbone("mobilenetv2_050", 32, {}, str(file), conv_head=True)
    pixels = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(model.eval()(pixels)[0], net.eval().forward_features(pixels))
    with pytest.raises(CheckpointError, match=r"not weights of mobilenetv2_100"):
        build_backbone("mobilenetv2_100", 32, {}, str(file))
    file.write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match=r"other\.pth: not readable as a state dict of torch"):
        build_backbone("mobilenetv2_050", 32, {}, str(file))
