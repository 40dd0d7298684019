"""Video tokenizers that learn without words, which Table 6 compares the semantic one with.

Each is a ``VideoTokenizer``: the same encoder, codebook and decoder, asked for something else about every region, so
that what differs in their labels is owed to what they had to tell. Frames are decoded one by one, as the published ones
see single pictures.
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
    """The frozen network whose features a ``FeatureTokenizer`` tells."""

    backbone: str = Field(description="any timm backbone with a feature map of the tokenizer's stride")
    options: Options = {}
    weights: str = Field(default="none", description="none (an untrained teacher), hub, or a safetensors file")
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None


class PixelTokenizer(VideoTokenizer):
    """Codes that must redraw the pixels of their region: the role of DALL-E's discrete VAE.

    With ``codebook = "gumbel"`` its codes are drawn as that one's are; with the others it is a VQ-VAE.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__(config)
        self.pixels = nn.Linear(config.embed_dim, 3 * config.stride**2)
        self.init_decoder(self.pixels)

    def targets(self, frames: Tensor) -> Tensor:
        """What to tell: (B, T, 3, H, W) uint8 to the normalised pixels of each region, (B, T, h*w, 3 * stride^2)."""
        cells = F.pixel_unshuffle(self.encoder.normalise(frames).flatten(0, 1), self.config.stride)
        return cells.flatten(2).transpose(1, 2).reshape(*frames.shape[:2], -1, cells.shape[1])

    def forward(self, frames: Tensor) -> tuple[Tensor, Quantized]:
        """What the codes tell, shaped as ``targets``, and the codes (Eq. 4), from frames (B, T, 3, H, W) uint8."""
        quantized = self.quantizer(self.encode(frames))
        return self.pixels(self.decode(quantized.codes, together=False)), quantized

    def pictures(self, told: Tensor) -> Tensor:
        """The inverse of ``targets``: (B, T, h*w, 3 * stride^2) to pictures (B, T, 3, H, W) uint8."""
        side = self.config.image_size // self.config.stride
        cells = told.flatten(0, 1).transpose(1, 2)
        pixels = F.pixel_shuffle(cells.reshape(*cells.shape[:2], side, side), self.config.stride)
        pixels = pixels * self.encoder.normalise.std + self.encoder.normalise.mean
        return pixels.round().clamp(0, 255).to(torch.uint8).view(*told.shape[:2], *pixels.shape[1:])


class FeatureTokenizer(VideoTokenizer):
    """Codes that must tell what a frozen network sees in their region: the role of PeCo's tokenizer, and so of BEVT's.

    PeCo draws pictures and compares features of drawn and true ones; here the features are decoded at once, and no
    painter has to be trained beside the codes.

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
                "task.teacher.backbone = 'swin3d_t': the teacher sees single frames; name a timm backbone"
            )
        self.teacher = FrameEncoder(config.model_copy(update=shape))
        for parameter in self.teacher.parameters():
            parameter.requires_grad_(False)
        self.features = nn.Linear(config.embed_dim, self.teacher.width)
        self.init_decoder(self.features)

    @torch.no_grad()
    def targets(self, frames: Tensor) -> Tensor:
        """What to tell: (B, T, 3, H, W) uint8 to the teacher's features, (B, T, h*w, C).

        Each vector has mean 0 and variance 1, so that loud regions do not drown the others.
        """
        with torch.autocast(frames.device.type, enabled=False):
            seen: Tensor = self.teacher(frames)
        return F.layer_norm(seen.flatten(2, 3).float(), seen.shape[-1:])

    def forward(self, frames: Tensor) -> tuple[Tensor, Quantized]:
        """What the codes tell, shaped as ``targets``, and the codes (Eq. 4), from frames (B, T, 3, H, W) uint8."""
        quantized = self.quantizer(self.encode(frames))
        return self.features(self.decode(quantized.codes, together=False)), quantized
