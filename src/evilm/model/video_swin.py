"""Video Swin-T, an encoder of the video tokenizer that spans frames (paper 3.3; torchvision's ``swin3d_t``)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from evilm import hub
from evilm.errors import CheckpointError
from evilm.model.layers import Normalise

if TYPE_CHECKING:
    from torch import Tensor

SWIN_MEAN, SWIN_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class VideoSwinEncoder(nn.Module):
    """E of Eq. 4 as Video Swin-T, whose patches span two frames.

    Args:
        published: start from torchvision's weights, which are downloaded once.
        share: let frames 2i and 2i + 1 have the same labels, at half the cost; otherwise every frame is repeated, so
            that each has its own labels.
        mean, std: pixel statistics.

    Raises:
        CheckpointError: the weights are not on this machine and cannot be downloaded.
    """

    stride = 32

    def __init__(
        self, *, published: bool, share: bool, mean: tuple[float, ...] = SWIN_MEAN, std: tuple[float, ...] = SWIN_STD
    ) -> None:
        super().__init__()
        from torchvision.models.video import Swin3D_T_Weights, swin3d_t

        weights = Swin3D_T_Weights.DEFAULT if published else None
        try:
            if weights is not None:
                cached = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rsplit("/", 1)[-1]
                if not cached.is_file() and not hub.reachable(weights.url):
                    raise ConnectionError
            self.swin = swin3d_t(weights=weights)
        except OSError as error:
            raise CheckpointError(
                f"tokenizer.encoder 'swin3d_t': its weights cannot be fetched ({type(error).__name__}); without a "
                "network, use another encoder, or start at random with encoder_weights = 'none'"
            ) from None
        del self.swin.head  # the classifier of Kinetics-400
        self.share = share
        self.width = int(self.swin.num_features)
        self.normalise = Normalise(mean, std)

    def forward(self, frames: Tensor) -> Tensor:
        """(B, T, 3, H, W) uint8 to (B, T, h, w, width)."""
        count = frames.shape[1]
        pixels = self.normalise(frames)
        if not self.share:
            pixels = pixels.repeat_interleave(2, 1)
        states = self.swin.pos_drop(self.swin.patch_embed(pixels.transpose(1, 2)))
        states = self.swin.norm(self.swin.features(states))  # (B, ceil(T / 2) or T, h, w, width)
        return states.repeat_interleave(2, 1)[:, :count] if self.share else states
