"""E-ViLM: three verbs, ``encode_video``, ``encode_text`` and ``fuse`` (paper 3.1, Figure 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from evilm.model.fusion import Fusion
from evilm.model.text_encoder import TextEncoder, load_text_weights
from evilm.model.video_encoder import VideoEncoder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from evilm.model.presets import ModelConfig
    from evilm.types import Encoded, Fused, Text


class EViLM(nn.Module):
    """The model without task heads.

    Args:
        config: see ``presets.ModelConfig``.
        vocab_size: number of word pieces.

    Raises:
        ConfigError, CheckpointError: a backbone or weights that do not exist or do not fit; see ``build_backbone``.
    """

    def __init__(self, config: ModelConfig, vocab_size: int = 9157) -> None:
        super().__init__()
        self.config, self.embed_dim = config, config.embed_dim
        self.video_encoder = VideoEncoder(config)
        self.text_encoder = TextEncoder(config, vocab_size)
        self.fusion = Fusion(config)

    def normalise(self, frames: Tensor) -> Tensor:
        """(B, T, 3, H, W) uint8 to the pixel values that the backbone was trained on."""
        return self.video_encoder.normalise(frames)

    def encode_video(self, frames: Tensor) -> Encoded:
        """e^V of Eq. 1.

        Args:
            frames: (B, T, 3, H, W) normalised; H and W multiples of the stride, any T.

        Returns:
            patches (B, N, D) and their grid.

        Raises:
            GridError: a side that is no multiple of the stride.
        """
        return self.video_encoder(frames)

    def encode_text(self, text: Text) -> Encoded:
        """e^L of Eq. 1: ids (B, L) to tokens (B, L, D)."""
        return self.text_encoder(text)

    def fuse(self, video: Encoded | None = None, text: Encoded | None = None) -> Fused:
        """h^CLS, h^L, h^V of Eq. 2 from both modalities, or from one alone (fast retrieval, probes, search)."""
        return self.fusion(video, text)

    def fuse_cls(self, video: Encoded | None = None, text: Encoded | None = None) -> Tensor:
        """h^CLS (B, D) of Eq. 2 alone; cheaper than ``fuse`` by nearly one fusion block."""
        return self.fusion(video, text, cls_only=True).cls

    def load_published(self, pieces: Sequence[str]) -> list[str]:
        """Load the text weights that the settings name; the backbone's are loaded when the model is made.

        Args:
            pieces: the word pieces, in the order of their ids.

        Returns:
            for each part of the model, a line that names where its weights come from.

        Raises:
            CheckpointError: see ``load_text_weights``.
        """
        config, backbone = self.config, self.config.backbone_weights
        origin = {"none": "random", "hub": "from timm's hub"}.get(backbone, f"from {backbone}")
        text = ["text encoder: random"]
        if config.text_weights != "none":
            text = load_text_weights(self.text_encoder, pieces, config.text_weights)
        return [f"video backbone {config.backbone}: {origin}", *text, "fusion, projections, positions: random"]
