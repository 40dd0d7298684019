"""Video tokenizers trained without words, for the comparison of Table 6.

Each is a ``VideoTokenizer`` with the encoder, codebook and decoder of the semantic one; only the target of its decoder
differs. Frames are decoded one by one, because the published tokenizers encode single pictures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from evilm.config import Config
from evilm.errors import ConfigError
from evilm.model.presets import Options
from evilm.model.tokenizer import FrameEncoder, TokenizerConfig, VideoTokenizer

if TYPE_CHECKING:
    from torch import Tensor

    from evilm.types import Quantized


class TeacherConfig(Config):
    """The frozen network whose features a ``FeatureTokenizer`` predicts."""

    backbone: str = Field(description="any timm backbone with a feature map of the tokenizer's stride")
    options: Options = {}
    weights: str = Field(default="none", description="none (an untrained teacher), hub, or a safetensors file")
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None


class PixelTokenizer(VideoTokenizer):
    """Codes that must reconstruct the pixels of their patch, in the role of DALL-E's discrete VAE.

    With ``codebook = "gumbel"`` codes are sampled as in DALL-E; with the other codebooks it is a VQ-VAE.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__(config)
        self.pixels = nn.Linear(config.embed_dim, 3 * config.stride**2)
        self.init_decoder(self.pixels)

    def targets(self, frames: Tensor) -> Tensor:
        """(B, T, 3, H, W) uint8 to the normalised pixels of each patch, (B, T, h*w, 3 * stride^2)."""
        patches = F.pixel_unshuffle(self.encoder.normalise(frames).flatten(0, 1), self.config.stride)
        return patches.flatten(2).transpose(1, 2).reshape(*frames.shape[:2], -1, patches.shape[1])

    def forward(self, frames: Tensor) -> tuple[Tensor, Quantized]:
        """The prediction, shaped like ``targets``, and the codes (Eq. 4), from frames (B, T, 3, H, W) uint8."""
        quantized = self.quantizer(self.encode(frames))
        return self.pixels(self.decode(quantized.codes, across_frames=False)), quantized

    def pictures(self, pixels: Tensor) -> Tensor:
        """The inverse of ``targets``: (B, T, h*w, 3 * stride^2) to pictures (B, T, 3, H, W) uint8."""
        side = self.config.image_size // self.config.stride
        patches = pixels.flatten(0, 1).transpose(1, 2)
        frames = F.pixel_shuffle(patches.reshape(*patches.shape[:2], side, side), self.config.stride)
        frames = frames * self.encoder.normalise.std + self.encoder.normalise.mean
        return frames.round().clamp(0, 255).to(torch.uint8).view(*pixels.shape[:2], *frames.shape[1:])


class FeatureTokenizer(VideoTokenizer):
    """Codes that must predict a frozen network's features of their patch, in the role of PeCo's (and BEVT's) tokenizer.

    PeCo decodes pictures and compares the features of decoded and true ones. Here the features are decoded directly,
    which needs no picture decoder.

    Args:
        config: see ``TokenizerConfig``.
        teacher: the frozen network.

    Raises:
        ConfigError: a teacher that does not exist, or has no feature map of the tokenizer's stride.
        CheckpointError: weights that do not fit it.
    """

    def __init__(self, config: TokenizerConfig, teacher: TeacherConfig) -> None:
        super().__init__(config)
        shape = {
            "encoder": teacher.backbone,
            "encoder_options": teacher.options,
            "encoder_weights": teacher.weights,
            "mean": teacher.mean,
            "std": teacher.std,
        }
        if teacher.backbone == "swin3d_t":
            raise ConfigError(
                "task.teacher.backbone = 'swin3d_t': the teacher takes single frames; name a timm backbone"
            )
        self.teacher = FrameEncoder(config.model_copy(update=shape))
        for parameter in self.teacher.parameters():
            parameter.requires_grad_(False)
        self.features = nn.Linear(config.embed_dim, self.teacher.width)
        self.init_decoder(self.features)

    @torch.no_grad()
    def targets(self, frames: Tensor) -> Tensor:
        """(B, T, 3, H, W) uint8 to the teacher's features, (B, T, h*w, C).

        Each vector is scaled to mean 0 and variance 1, so that all patches weigh the same in the loss.
        """
        with torch.autocast(frames.device.type, enabled=False):
            features: Tensor = self.teacher(frames)
        return F.layer_norm(features.flatten(2, 3).float(), features.shape[-1:])

    def forward(self, frames: Tensor) -> tuple[Tensor, Quantized]:
        """The prediction, shaped like ``targets``, and the codes (Eq. 4), from frames (B, T, 3, H, W) uint8."""
        quantized = self.quantizer(self.encode(frames))
        return self.features(self.decode(quantized.codes, across_frames=False)), quantized
