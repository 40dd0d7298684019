"""E-ViLM: three verbs, ``encode_video``, ``encode_text`` and ``fuse`` (paper 3.1, Figure 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from evilm.model.fusion import Decoder
from evilm.model.text_encoder import TextEncoder
from evilm.model.video_encoder import VideoEncoder

if TYPE_CHECKING:
    from torch import Tensor

    from evilm.model.presets import ModelConfig
    from evilm.types import Encoded, Fused, Text


class EViLM(nn.Module):
    """The model without task heads.

    Args:
        config: see ``presets.ModelConfig``.
        vocabulary: how many word pieces the text encoder knows.
    """

    def __init__(self, config: ModelConfig, vocabulary: int) -> None:
        super().__init__()
        self.config, self.embed_dim = config, config.embed_dim
        self.video_encoder = VideoEncoder(
            name=config.backbone,
            stride=config.stride,
            options=config.backbone_options,
            weights=config.backbone_weights,
            width=config.embed_dim,
            size=config.image_size,
            frames=config.num_frames,
            space_start=config.space_start,
            time_start=config.time_start,
            motion=config.motion,
            mean=config.mean,
            std=config.std,
            layer=config.backbone_layer,
        )
        self.text_encoder = TextEncoder(
            vocabulary=vocabulary,
            width=config.text_embed_dim,
            layers=config.text_layers,
            heads=config.text_num_heads,
            hidden=config.text_mlp_dim,
            positions=config.max_text_len,
            out=config.embed_dim,
            dropout=config.dropout,
            position_start=config.text_position_start,
        )
        self.decoder = Decoder(
            width=config.embed_dim,
            depth=config.depth,
            heads=config.num_heads,
            hidden=config.mlp_dim,
            dropout=config.dropout,
            mean=config.cls_mean,
        )

    def normalise(self, frames: Tensor) -> Tensor:
        """(B, T, 3, H, W) uint8 to the numbers the backbone expects."""
        return self.video_encoder.normalise(frames)

    def encode_video(self, frames: Tensor) -> Encoded:
        """e^V of Eq. 1.

        Args:
            frames: (B, T, 3, H, W) normalised; H and W multiples of the stride, any T.

        Returns:
            tokens (B, N, D) and their grid.

        Raises:
            GridError: a side that is no multiple of the stride.
        """
        return self.video_encoder(frames)

    def encode_text(self, text: Text) -> Encoded:
        """e^L of Eq. 1: ids (B, L) to tokens (B, L, D)."""
        return self.text_encoder(text)

    def fuse(self, video: Encoded | None = None, text: Encoded | None = None) -> Fused:
        """h^CLS, h^L, h^V of Eq. 2 from both modalities, or from one alone (fast retrieval, probes, search)."""
        return self.decoder(video, text)

    def fuse_cls(self, video: Encoded | None = None, text: Encoded | None = None) -> Tensor:
        """h^CLS (B, D) of Eq. 2 alone, for all that needs no other state: nearly one block of the decoder cheaper."""
        return self.decoder(video, text, cls_only=True).cls
