"""Tokenizers that learn without words: what they must tell, by hand, and labels like every tokenizer's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from evilm.errors import ConfigError, GridError
from evilm.model.quantizer import GumbelQuantizer
from evilm.model.reconstruction import FeatureTokenizer, PixelTokenizer, TeacherConfig
from evilm.types import Grid

if TYPE_CHECKING:
    from evilm.model.tokenizer import TokenizerConfig

TEACHER = TeacherConfig(backbone="edgenext_xx_small", options={"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]})


def clips(count: int = 3, frames: int = 2, size: int = 64) -> torch.Tensor:
    random = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, frames, 3, size, size), generator=random, dtype=torch.uint8)


@pytest.fixture
def pixels(tiny_tokenizer: TokenizerConfig) -> PixelTokenizer:
    torch.manual_seed(0)
    plain = {"codebook": "gumbel", "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
    return PixelTokenizer(tiny_tokenizer.model_copy(update=plain)).eval()


@pytest.fixture
def features(tiny_tokenizer: TokenizerConfig) -> FeatureTokenizer:
    torch.manual_seed(0)
    return FeatureTokenizer(tiny_tokenizer, TEACHER).eval()


def test_a_region_s_target_is_its_own_pixels(pixels: PixelTokenizer) -> None:
    """White is (1 - 0.5) / 0.25 = 2; one white pixel in the second column, third row of patches."""
    frames = torch.full((1, 2, 3, 64, 64), 0, dtype=torch.uint8)
    frames[0, 1, 1, 2 * 16 + 5, 1 * 16 + 3] = 255
    found = pixels.targets(frames)
    assert found.shape == (1, 2, 16, 3 * 256)
    assert (found[0, 0] == -2).all()
    [place] = (found[0, 1] > 0).nonzero().tolist()
    assert place == [2 * 4 + 1, 1 * 256 + 5 * 16 + 3]  # cell, then colour, row, column
    assert found[0, 1].max().item() == pytest.approx(2)


def test_pictures_are_the_inverse_of_targets(pixels: PixelTokenizer) -> None:
    frames = clips()
    assert torch.equal(pixels.pictures(pixels.targets(frames)), frames)


def test_a_feature_target_is_the_teacher_s_with_mean_0_and_variance_1(features: FeatureTokenizer) -> None:
    frames = clips()
    found = features.targets(frames)
    seen = features.teacher(frames).flatten(2, 3)
    assert found.shape == seen.shape == (3, 2, 16, 24)
    wanted = (seen - seen.mean(-1, keepdim=True)) / (seen.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert not found.requires_grad


@pytest.mark.parametrize("kind", ["pixels", "features"])
def test_shapes_labels_and_gradients(kind: str, request: pytest.FixtureRequest) -> None:
    tokenizer: PixelTokenizer | FeatureTokenizer = request.getfixturevalue(kind)
    frames = clips()
    told, quantized = tokenizer(frames)
    assert told.shape == tokenizer.targets(frames).shape
    labels = tokenizer.labels(frames)
    assert labels.shape == (3, 2, 4, 4)
    assert torch.equal(labels, quantized.labels)
    assert tokenizer.grid(2, 64, 64) == Grid(2, 4, 4)
    tokenizer.train()
    told, quantized = tokenizer(frames)
    (told.pow(2).sum() + quantized.loss_codebook + quantized.loss_commitment).backward()
    trained = [(name, p) for name, p in tokenizer.named_parameters() if p.requires_grad]
    assert [name for name, p in trained if p.grad is None] == []
    assert not [name for name, p in tokenizer.named_parameters() if p.requires_grad and name.startswith("teacher")]


def test_frames_are_told_one_by_one(pixels: PixelTokenizer) -> None:
    frames = clips(1, 3)
    together = pixels(frames)[0]
    alone = torch.cat([pixels(frames[:, t : t + 1])[0] for t in range(3)], 1)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_the_teacher_stays_as_it_is(features: FeatureTokenizer, tiny_tokenizer: TokenizerConfig) -> None:
    """In training too: its batch norms see other statistics and must not take them for their own."""
    teacher = TeacherConfig(backbone="resnet10t")
    tokenizer = FeatureTokenizer(tiny_tokenizer, teacher).train()
    before = {name: value.clone() for name, value in tokenizer.teacher.state_dict().items()}
    first = tokenizer.targets(clips())
    assert torch.equal(tokenizer.targets(clips()), first)
    assert all(torch.equal(before[name], value) for name, value in tokenizer.teacher.state_dict().items())
    assert features.fingerprint() != tokenizer.fingerprint()


def test_the_teacher_has_no_say_in_a_label(features: FeatureTokenizer) -> None:
    own = features.fingerprint()
    with torch.no_grad():
        next(features.teacher.parameters()).add_(1)
    assert features.fingerprint() == own


def test_codes_are_drawn_where_the_recipe_says(pixels: PixelTokenizer, features: FeatureTokenizer) -> None:
    assert isinstance(pixels.quantizer, GumbelQuantizer)
    assert not isinstance(features.quantizer, GumbelQuantizer)


@pytest.mark.parametrize(
    ("teacher", "complaint"),
    [
        ({"backbone": "nothing_like_it"}, "unknown backbone 'nothing_like_it'"),
        ({"backbone": "swin3d_t"}, "the teacher takes single frames"),
        (
            {"backbone": "vit_small_patch32_224", "options": {"embed_dim": 32, "depth": 3, "num_heads": 2}},
            "has no feature map of stride 16",
        ),
    ],
)
def test_a_teacher_that_does_not_fit(
    tiny_tokenizer: TokenizerConfig, teacher: dict[str, object], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        FeatureTokenizer(tiny_tokenizer, TeacherConfig.model_validate(teacher))


def test_frames_of_another_size_are_refused(pixels: PixelTokenizer) -> None:
    with pytest.raises(GridError, match="trained on frames of 64x64"):
        pixels(clips(1, 1, 32))
