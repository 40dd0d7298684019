"""``ModelConfig``, the settings of an ``EViLM``, and the models that have a name."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from evilm.config import Config
from evilm.errors import ConfigError

Options = dict[str, int | float | bool | str | list[int]]


class ShapeConfig(Config):
    """Frames and transformer blocks, of an ``EViLM`` and of a ``Tokenizer``."""

    stride: int = Field(default=32, gt=0, description="pixels of a patch's side")
    image_size: int = Field(default=256, gt=0, description="pixels of a frame's side")
    mean: tuple[float, float, float] | None = Field(default=None, description="pixel mean; none takes the backbone's")
    std: tuple[float, float, float] | None = Field(default=None, description="pixel standard deviation, likewise")
    embed_dim: int = Field(default=384, gt=0, description="D, width of the blocks")
    depth: int = Field(default=4, gt=0, description="number of blocks: fusion blocks, or those of the word decoder")
    num_heads: int = Field(default=6, gt=0, description="attention heads of a block")
    mlp_dim: int = Field(default=1536, gt=0, description="width of a block's feed-forward layer")

    @model_validator(mode="after")
    def _check_shape(self) -> ShapeConfig:
        if self.embed_dim % self.num_heads:
            raise ValueError(f"num_heads {self.num_heads} must divide embed_dim {self.embed_dim}")
        if self.image_size % self.stride:
            raise ValueError(f"image_size {self.image_size} must be a multiple of the stride {self.stride}")
        return self


class ModelConfig(ShapeConfig):
    """The shape of an ``EViLM``; the defaults are the paper's model (sections 3.1, 4.1)."""

    backbone: str = Field(default="edgenext_small", description="any timm model that has feature maps")
    backbone_options: Options = Field(default={}, description="arguments of the timm model's constructor")
    backbone_weights: str = Field(default="none", description="none (random), hub, or a file of weights")
    backbone_conv_head: bool = Field(
        default=False, description="include the last 1x1 convolution (conv_head) of a MobileNet or EfficientNet"
    )
    num_frames: int = Field(default=4, gt=0, description="T, frames of a clip")
    motion: bool = Field(
        default=False, description="beyond the paper: add projected frame differences to the patches (TDN)"
    )
    position_std: float | None = Field(
        default=None, ge=0, description="initial standard deviation of video positions; none: 0.02 in space, 0 in time"
    )
    text_weights: str = Field(
        default="none", description="none (random), or a BERT of this width: its files or its name on the hub"
    )
    text_embed_dim: int = Field(default=128, gt=0, description="width of BERT")
    text_depth: int = Field(default=6, gt=0, description="layers of BERT")
    text_num_heads: int = Field(default=4, gt=0)
    text_mlp_dim: int = Field(default=512, gt=0)
    max_text_len: int = Field(default=512, gt=0, description="word pieces of the longest text")
    dropout: float = Field(default=0.1, ge=0, lt=1, description="of BERT and of the fusion blocks")
    embedding: Literal["fused", "pooled", "both"] = Field(
        default="fused",
        description="what embeddings are made of: [CLS] of fusion (the paper), pooled features that skip it, or both",
    )
    pooled_dropout: float = Field(default=0.0, ge=0, lt=1, description="of pooled features, where embeddings use them")

    @model_validator(mode="after")
    def _check_text(self) -> ModelConfig:
        if self.text_embed_dim % self.text_num_heads:
            raise ValueError("text_num_heads must divide text_embed_dim")
        return self

    @property
    def pools(self) -> bool:
        """Whether embeddings use pooled features."""
        return self.embedding != "fused"


# Parameters without heads, and MACs for 4 frames and 30 words, are held by a test (tests/report/test_cost.py).
PRESETS: dict[str, ModelConfig] = {
    # The paper's model: 15.00 M parameters, 7.36 GMAC.
    "evilm-small": ModelConfig(),
    # Figure 2's smaller models.
    "evilm-x-small": ModelConfig(backbone="edgenext_x_small", embed_dim=256, num_heads=4, mlp_dim=1024),
    "evilm-xx-small": ModelConfig(backbone="edgenext_xx_small", embed_dim=192, num_heads=3, mlp_dim=768),
    # For real photographs and videos: a backbone and a text encoder that start from published weights
    # (recipes/photo-*). 16.0 M parameters with its embeddings.
    "evilm-photo": ModelConfig(
        backbone="tf_efficientnet_lite2",
        backbone_conv_head=True,
        mean=(127 / 255, 127 / 255, 127 / 255),
        std=(128 / 255, 128 / 255, 128 / 255),
        image_size=224,
        depth=2,
        mlp_dim=768,
        text_embed_dim=384,
        text_depth=2,
        text_num_heads=12,
        text_mlp_dim=1536,
        max_text_len=64,
        embedding="pooled",
        pooled_dropout=0.3,
    ),
    # For tests and the demo, trained from scratch on a CPU: patches of 16 pixels on frames of 64. Its backbone is a
    # small ResNet, because EdgeNeXt's layer scale of 1e-6 needs more steps than a demo has (docs/decisions.md).
    "evilm-tiny": ModelConfig(
        backbone="resnet10t",
        position_std=0.5,  # as large as the features: loss 1.83 against 1.90 after 400 steps (docs/decisions.md)
        motion=True,  # R@1 37.6 against 19.6 in the demo's time (docs/decisions.md)
        stride=16,
        image_size=64,
        embed_dim=192,
        depth=2,
        num_heads=6,
        mlp_dim=768,
        text_depth=3,
        max_text_len=64,
        dropout=0.0,
    ),
}


def preset(name: str) -> ModelConfig:
    """The settings of the model called ``name``.

    Raises:
        ConfigError: no such preset; lists those there are.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}: there are {', '.join(PRESETS)}")
    return PRESETS[name]
