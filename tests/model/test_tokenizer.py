"""The video tokenizer: labels a region each, the same whoever asks, and none from a codebook that has collapsed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from evilm.errors import CodebookError, ConfigError, GridError
from evilm.model.tokenizer import Tokenizer
from evilm.types import Grid

if TYPE_CHECKING:
    from evilm.model.tokenizer import TokenizerConfig

WORDS = 13


def clips(count: int = 3, frames: int = 2, size: int = 64) -> torch.Tensor:
    random = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, frames, 3, size, size), generator=random, dtype=torch.uint8)


@pytest.fixture
def tokenizer(tiny_tokenizer: TokenizerConfig) -> Tokenizer:
    torch.manual_seed(0)
    return Tokenizer(tiny_tokenizer, WORDS).eval()


def test_shapes(tokenizer: Tokenizer) -> None:
    logits, quantized = tokenizer(clips())
    assert logits.shape == (3, WORDS)
    assert quantized.codes.shape == (3, 2, 4, 4, 8)
    assert quantized.labels.shape == (3, 2, 4, 4)
    assert tokenizer.grid(2, 64, 64) == Grid(2, 4, 4)


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_labels_of_any_number_of_frames(tokenizer: Tokenizer, frames: int) -> None:
    labels = tokenizer.labels(clips(2, frames))
    assert labels.shape == (2, frames, 4, 4)
    assert labels.dtype == torch.int64
    assert int(labels.min()) >= 0
    assert int(labels.max()) < 24


def test_labels_are_those_of_the_forward_pass(tokenizer: Tokenizer) -> None:
    assert torch.equal(tokenizer.labels(clips()), tokenizer(clips())[1].labels)


def test_a_label_does_not_depend_on_its_batch_or_the_frames_beside_it(tokenizer: Tokenizer) -> None:
    frames = clips(6, 3)
    together = tokenizer.labels(frames)
    assert len(together.unique()) > 3
    assert torch.equal(together, tokenizer.labels(frames))
    assert torch.equal(together, torch.cat([tokenizer.labels(frames[i : i + 1]) for i in range(6)]))
    assert torch.equal(together.flip(0), tokenizer.labels(frames.flip(0)))
    assert torch.equal(together.flatten(0, 1)[:, None], tokenizer.labels(frames.flatten(0, 1)[:, None]))


def test_labels_in_a_training_step_under_autocast_are_the_same(tokenizer: Tokenizer) -> None:
    wanted = tokenizer.labels(clips())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(tokenizer.labels(clips()), wanted)
    assert not tokenizer.labels(clips()).requires_grad


def test_labels_lie_where_their_pixels_do(tokenizer: Tokenizer) -> None:
    """A ViT without its blocks sees one patch at a time: only the touched cell's encoding changes."""
    tokenizer.encoder.backbone.model.blocks = torch.nn.ModuleList(torch.nn.Identity() for _ in range(3))
    frames = clips(1)
    before = tokenizer.encode(frames)
    frames[0, 1, :, 16:32, 48:64] = 255
    moved = (tokenizer.encode(frames) - before).norm(dim=-1)[0]
    assert (moved > 1e-4).nonzero().tolist() == [[1, 1, 3]]


def test_frames_of_another_size_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(GridError, match="trained on frames of 64x64, not 32x32"):
        tokenizer.labels(clips(1, 1, 32))


def test_a_model_with_another_grid_is_refused_with_what_would_fit(tokenizer: Tokenizer) -> None:
    tokenizer.check_grid(Grid(2, 4, 4))
    tokenizer.check_grid(Grid(7, 4, 4))
    with pytest.raises(GridError, match="labels 4x4 patches a frame and the model has 8x8") as caught:
        tokenizer.check_grid(Grid(2, 8, 8))
    # Both remedies do what they say.
    assert "size 128 (its stride is 16)" in str(caught.value)
    assert "stride 8 at its size 64" in str(caught.value)


def test_a_collapsed_codebook_gives_no_labels(tokenizer: Tokenizer) -> None:
    assert not tokenizer.collapsed  # nobody has looked yet
    tokenizer.perplexity.fill_(1.3)
    assert tokenizer.collapsed
    with pytest.raises(CodebookError, match=r"collapsed \(perplexity 1\.30 of 24 codes\).*dead_code_threshold"):
        tokenizer.labels(clips())
    tokenizer.perplexity.fill_(9.0)
    tokenizer.labels(clips())


def test_a_fingerprint_names_what_decides_a_label(tokenizer: Tokenizer, tiny_tokenizer: TokenizerConfig) -> None:
    own = tokenizer.fingerprint()
    assert len(own) == 16
    again = Tokenizer(tiny_tokenizer, WORDS)
    assert again.fingerprint() != own
    again.load_state_dict(tokenizer.state_dict())
    assert again.fingerprint() == own
    # Neither the word decoder nor the running counts have a say in labels.
    with torch.no_grad():
        again.words.weight += 1
        again.quantizer.use += 1
    assert again.fingerprint() == own
    for part in (again.quantizer.codes, again.to_code[1].weight, next(again.encoder.parameters())):
        with torch.no_grad():
            part.view(-1)[0] += 1e-3
        assert again.fingerprint() != own
        own = again.fingerprint()
    other = Tokenizer(tiny_tokenizer.model_copy(update={"mean": (0.1, 0.1, 0.1)}), WORDS)
    other.load_state_dict(again.state_dict())
    assert other.fingerprint() != own


def test_gradients_reach_encoder_and_codebook(tokenizer: Tokenizer) -> None:
    logits, quantized = tokenizer.train()(clips())
    (logits.pow(2).sum() + quantized.loss_codebook + quantized.loss_commitment).backward()
    without = [name for name, parameter in tokenizer.named_parameters() if parameter.grad is None]
    assert not without


@pytest.mark.parametrize("frames", [2, 3, 4])
@pytest.mark.parametrize("way", ["repeat", "share"])
def test_video_swin(tiny_tokenizer: TokenizerConfig, way: str, frames: int) -> None:
    config = tiny_tokenizer.model_copy(
        update={"encoder": "swin3d_t", "encoder_options": {}, "stride": 32, "swin_frames": way}
    )
    torch.manual_seed(0)
    tokenizer = Tokenizer(config, WORDS).eval()
    with torch.no_grad():
        encoded = tokenizer.encode(clips(1, frames))
        assert encoded.shape == (1, frames, 2, 2, 8)
        assert tokenizer.grid(frames, 64, 64) == Grid(frames, 2, 2)
        assert tokenizer(clips(1, frames))[0].shape == (1, WORDS)
    paired = torch.equal(encoded[:, 0], encoded[:, 1])
    assert paired == (way == "share")
    if frames > 2:
        assert not torch.equal(encoded[:, 1], encoded[:, 2])


def test_video_swin_has_one_stride(tiny_tokenizer: TokenizerConfig) -> None:
    with pytest.raises(ConfigError, match="has stride 32"):
        Tokenizer(tiny_tokenizer.model_copy(update={"encoder": "swin3d_t", "stride": 16}), WORDS)


def test_any_image_backbone(tiny_tokenizer: TokenizerConfig) -> None:
    options = {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}
    config = tiny_tokenizer.model_copy(update={"encoder": "edgenext_xx_small", "encoder_options": options})
    assert Tokenizer(config, WORDS).eval().labels(clips()).shape == (3, 2, 4, 4)
    with pytest.raises(ConfigError, match="unknown backbone 'nothing_like_it'"):
        Tokenizer(tiny_tokenizer.model_copy(update={"encoder": "nothing_like_it"}), WORDS)
