"""The models by name, each with its facts beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from evilm.config import Config
from evilm.errors import ConfigError
from evilm.model.video_encoder import Layer, Options

if TYPE_CHECKING:
    from evilm.model.evilm import EViLM


class ModelConfig(Config):
    """The shape of an ``EViLM``; the defaults are the paper's model (sections 3.1, 4.1)."""

    backbone: str = "edgenext_small"
    backbone_options: Options = {}
    backbone_weights: str = Field(default="none", description="none, hub, or a safetensors file")
    backbone_layer: Layer = Field(
        default="stage", description="last: a MobileNet's or EfficientNet's convolution after the last stage as well"
    )
    text_weights: str = Field(
        default="none", description="none, a published BERT of this width by its name on the hub, or its files"
    )
    stride: int = Field(default=32, gt=0)
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    image_size: int = Field(default=256, gt=0, description="pixels of a frame's side")
    num_frames: int = Field(default=4, gt=0)
    embed_dim: int = Field(default=384, gt=0, description="D, of the fusion decoder")
    depth: int = Field(default=4, gt=0)
    num_heads: int = Field(default=6, gt=0)
    mlp_dim: int = Field(default=1536, gt=0)
    cls_mean: bool = Field(
        default=False, description="[CLS] begins as the mean of what is fused, beside what is learned"
    )
    text_embed_dim: int = Field(default=128, gt=0)
    text_layers: int = Field(default=6, gt=0)
    text_num_heads: int = Field(default=4, gt=0)
    text_mlp_dim: int = Field(default=512, gt=0)
    max_text_len: int = Field(default=512, gt=0)
    text_position_start: float = Field(
        default=0.02, ge=0, description="standard deviation of untrained positions in a text; words start with 0.02"
    )
    space_start: float = Field(default=0.02, ge=0, description="standard deviation of untrained spatial positions")
    time_start: float = Field(default=0.0, ge=0, description="the same for positions in time")
    motion: bool = Field(
        default=False, description="beyond the paper: regions also tell how they differ from the frames beside theirs"
    )
    dropout: float = Field(default=0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _fits(self) -> ModelConfig:
        if self.embed_dim % self.num_heads or self.text_embed_dim % self.text_num_heads:
            raise ValueError("heads must divide width, and text_heads must divide text_width")
        if self.image_size % self.stride:
            raise ValueError(f"size {self.image_size} is no multiple of the stride {self.stride}")
        return self


# Parameters without heads and MACs for 4 frames and 30 words at the preset's own size, held by a test.
PRESETS: dict[str, ModelConfig] = {
    # The paper's model.
    "evilm-small": ModelConfig(),
    # Figure 2's size axis.
    "evilm-x-small": ModelConfig(backbone="edgenext_x_small", embed_dim=256, num_heads=4, mlp_dim=1024),
    "evilm-xx-small": ModelConfig(backbone="edgenext_xx_small", embed_dim=192, num_heads=3, mlp_dim=768),
    # For tests and the demo, on a CPU: cells of 16 pixels on frames of 64. A small ResNet, because EdgeNeXt's layer
    # scale of 1e-6 needs many more steps from scratch than a demo has (docs/decisions.md).
    "evilm-tiny": ModelConfig(
        backbone="resnet10t",
        space_start=0.5,  # as loud as the features: from scratch, motion is learned from where and when
        time_start=0.5,
        motion=True,  # else hardly any is learned in a demo's time (docs/decisions.md)
        stride=16,
        image_size=64,
        embed_dim=192,
        depth=2,
        num_heads=6,
        mlp_dim=768,
        text_layers=3,
        max_text_len=64,
        dropout=0.0,
    ),
}


def preset(name: str) -> ModelConfig:
    """The shape called ``name``.

    Raises:
        ConfigError: no such preset; lists those there are.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}: there are {', '.join(PRESETS)}")
    return PRESETS[name]


def build(config: ModelConfig, vocabulary: int = 9157) -> EViLM:
    """The model of that shape for a vocabulary of that many word pieces, started at random or from its weights."""
    from evilm.model.evilm import EViLM

    return EViLM(config, vocabulary)
