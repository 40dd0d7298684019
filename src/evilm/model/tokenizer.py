"""The semantic vector-quantized video tokenizer (paper 3.3, Figure 4, Eq. 4, 5).

It learns to predict the words of a clip's caption from one code for each patch. After training only the encoder and
the codebook are used: they label the patches that pre-training hides. ``VideoTokenizer`` is the base class of all
tokenizers of Table 6 (see ``reconstruction``).
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from evilm import metrics
from evilm.errors import CodebookError, ConfigError, GridError
from evilm.model.layers import Block, Normalise, init_weights
from evilm.model.presets import Options, ShapeConfig
from evilm.model.quantizer import Codebook, GumbelQuantizer, Quantizer
from evilm.model.video_encoder import backbone_features, build_backbone, freeze_batch_norm, pixel_statistics
from evilm.model.video_swin import SWIN_MEAN, SWIN_STD, VideoSwinEncoder
from evilm.types import Grid

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from evilm.types import Quantized

COLLAPSED = 2.0  # perplexity below which nearly all patches have the same code


class TokenizerConfig(ShapeConfig):
    """The shape of a ``Tokenizer``; the defaults are the paper's (sections 3.3, 4.1)."""

    encoder: str = Field(
        default="vit_base_patch32_clip_224", description="any timm backbone, or swin3d_t (Video Swin-T)"
    )
    encoder_options: Options = {}
    encoder_weights: str = Field(default="none", description="none, hub, or a safetensors file")
    codebook_size: int = Field(default=9420, gt=1, description="M")
    code_dim: int = Field(default=32, gt=0, description="d")
    codebook: Codebook = Field(default="gradient", description="how codes are trained, see Quantizer")
    ema_decay: float = Field(default=0.99, gt=0, lt=1, description="of running means and counts of use")
    dead_code_threshold: float = Field(
        default=0.5, ge=0, description="uses per batch below which a code is re-seeded; 0 (the paper) never does"
    )
    kmeans: bool = Field(default=False, description="initialise codes by k-means of the first batch")
    centre: bool = Field(default=True, description="batch-normalise encodings before the codebook; the paper does not")
    depth: int = Field(default=8, gt=0, description="number of blocks of the word decoder")
    swin_frames: Literal["repeat", "share"] = Field(
        default="repeat", description="Video Swin halves time: show each frame twice, or let two frames share a label"
    )


class FrameEncoder(nn.Module):
    """E of Eq. 4 as an image backbone on each frame (the paper's ViT)."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        options = dict(config.encoder_options)
        if "vit" in config.encoder:
            options = {"img_size": config.image_size, **options}
        self.stride = config.stride
        self.backbone, self.width = build_backbone(config.encoder, config.stride, options, config.encoder_weights)
        mean, std = pixel_statistics(self.backbone)
        self.normalise = Normalise(config.mean or mean, config.std or std)

    def train(self, mode: bool = True) -> FrameEncoder:
        """Set the mode; a frozen backbone stays in evaluation mode, as in ``VideoEncoder``."""
        super().train(mode)
        freeze_batch_norm(self.backbone)
        return self

    def forward(self, frames: Tensor) -> Tensor:
        """(B, T, 3, H, W) uint8 to (B, T, h, w, width)."""
        batch, count = frames.shape[:2]
        features = backbone_features(self.backbone, self.normalise(frames.flatten(0, 1)))
        if features.shape[-1] != self.width:
            features = features.permute(0, 2, 3, 1)
        return features.view(batch, count, *features.shape[1:])


def _video_swin(config: TokenizerConfig) -> VideoSwinEncoder:
    """E of Eq. 4 as Video Swin-T.

    Raises:
        ConfigError: a stride or weights that Video Swin does not have.
    """
    if config.stride != VideoSwinEncoder.stride:
        raise ConfigError(f"tokenizer.stride = {config.stride}: Video Swin has stride {VideoSwinEncoder.stride}")
    if config.encoder_weights not in ("none", "hub"):
        raise ConfigError("tokenizer.encoder_weights: Video Swin takes none or hub")
    return VideoSwinEncoder(
        published=config.encoder_weights == "hub",
        share=config.swin_frames == "share",
        mean=config.mean or SWIN_MEAN,
        std=config.std or SWIN_STD,
    )


class VideoTokenizer(nn.Module):
    """Frames to one code for each patch: encoder, codebook and decoder. A subclass defines what the codes must predict.

    Args:
        config: see ``TokenizerConfig``.
    """

    perplexity: Tensor

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = _video_swin(config) if config.encoder == "swin3d_t" else FrameEncoder(config)
        self.to_code = nn.Sequential(nn.LayerNorm(self.encoder.width), nn.Linear(self.encoder.width, config.code_dim))
        # An untrained encoder gives all patches nearly the same direction, so that one code would be nearest to all of
        # them. Centred and scaled, its encodings spread over the sphere from the first step (docs/decisions.md).
        self.centre = nn.BatchNorm1d(config.code_dim, affine=False) if config.centre else nn.Identity()
        kind = GumbelQuantizer if config.codebook == "gumbel" else Quantizer
        self.quantizer = kind(
            config.codebook_size,
            config.code_dim,
            codebook=config.codebook,
            ema_decay=config.ema_decay,
            dead_code_threshold=config.dead_code_threshold,
            kmeans=config.kmeans,
        )
        side = config.image_size // config.stride
        self.from_code = nn.Linear(config.code_dim, config.embed_dim)
        self.positions = nn.Parameter(torch.zeros(1, 1, side * side, config.embed_dim))
        self.decoder = nn.ModuleList(
            Block(config.embed_dim, config.num_heads, config.mlp_dim) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.embed_dim)
        # Set by ``measure``; NaN before the first evaluation.
        self.register_buffer("perplexity", torch.tensor(float("nan")))

    def init_decoder(self, head: nn.Linear) -> None:
        """Initialise the decoder and a subclass's head."""
        for part in (self.from_code, self.decoder, head):
            init_weights(part)

    def grid(self, frames: int, height: int, width: int) -> Grid:
        """The patches that this tokenizer labels in a clip of this size.

        Raises:
            GridError: frames of another size than the tokenizer was trained on.
        """
        stride, size = self.encoder.stride, self.config.image_size
        if (height, width) != (size, size):
            raise GridError(f"this tokenizer was trained on frames of {size}x{size}, not {height}x{width}")
        return Grid(frames, height // stride, width // stride)

    def check_grid(self, wanted: Grid) -> None:
        """Check that a model has the same patches as this tokenizer.

        Raises:
            GridError: it has not; the message names sizes and strides that fit.
        """
        own = self.grid(wanted.frames, self.config.image_size, self.config.image_size)
        if own == wanted:
            return
        stride = self.encoder.stride
        raise GridError(
            f"the tokenizer labels {own.height}x{own.width} patches a frame and the model has "
            f"{wanted.height}x{wanted.width}: train the tokenizer at size {wanted.height * stride} (its stride is "
            f"{stride}), or take one of stride {max(1, self.config.image_size // wanted.height)} at its size "
            f"{self.config.image_size}"
        )

    def encode(self, frames: Tensor) -> Tensor:
        """E(X) before normalisation: (B, T, 3, H, W) uint8 to (B, T, h, w, d).

        Raises:
            GridError: frames of another size than the tokenizer's.
        """
        self.grid(frames.shape[1], *frames.shape[-2:])
        states = self.to_code(self.encoder(frames))
        return self.centre(states.flatten(0, -2)).view(states.shape)

    def decode(self, codes: Tensor, *, across_frames: bool) -> Tensor:
        """D of Eq. 5: codes (B, T, h, w, d) to (B, T, h*w, width).

        Args:
            codes: of the quantizer.
            across_frames: whether patches attend to those of all frames of the clip, or of their own frame only.
        """
        states = self.from_code(codes).flatten(2, 3) + self.positions  # (B, T, h*w, width)
        shape = states.shape
        states = states.flatten(1, 2) if across_frames else states.flatten(0, 1)
        for block in self.decoder:
            states = block(states)
        return self.norm(states).view(shape)

    @torch.no_grad()
    def labels(self, frames: Tensor) -> Tensor:
        """The code of every patch (Eq. 4), without a gradient: (B, T, 3, H, W) uint8 to (B, T, h, w) int64.

        Always in float32, so that cached labels equal those computed in training.

        Raises:
            CodebookError: the codebook has collapsed.
        """
        self.check_not_collapsed()
        with torch.autocast(frames.device.type, enabled=False):
            encoded = self.encode(frames)
            return self.quantizer.nearest(encoded.flatten(0, -2)).view(encoded.shape[:-1])

    def measure(self, labels: NDArray[np.int64]) -> tuple[dict[str, float], NDArray[np.int64]]:
        """VOC. RATE (Table 6, percent) and perplexity of the labels of a whole split, and the count of each code.

        The perplexity is stored in the checkpoint, by which a collapsed codebook is recognised.
        """
        counts = np.bincount(labels.ravel(), minlength=self.config.codebook_size)
        perplexity = metrics.perplexity(counts)
        self.perplexity.fill_(perplexity)
        return {"voc_rate": 100 * metrics.usage(counts), "perplexity": perplexity}, counts

    @property
    def collapsed(self) -> bool:
        """Whether nearly all patches had the same code in the last evaluation."""
        return bool(self.perplexity < COLLAPSED)

    def check_not_collapsed(self) -> None:
        """Raise ``CodebookError`` if the codebook has collapsed."""
        if self.collapsed:
            raise CodebookError(
                f"the tokenizer's codebook has collapsed (perplexity {float(self.perplexity):.2f} of "
                f"{self.config.codebook_size} codes): its labels carry no information; train it with "
                "tokenizer.dead_code_threshold=0.5 or tokenizer.kmeans=true"
            )

    def fingerprint(self) -> str:
        """16 hex digits that change with whatever decides a label: encoder, projection, codes."""
        digest = hashlib.sha256(self.config.model_dump_json().encode())
        for part in (self.encoder, self.to_code, self.centre, self.quantizer):
            for name, tensor in sorted(part.state_dict().items()):
                if name not in ("use", "sums", "started"):
                    digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


class Tokenizer(VideoTokenizer):
    """The paper's tokenizer: its codes must predict the words of the clip's caption.

    Args:
        config: see ``TokenizerConfig``.
        num_words: K of Eq. 5, the size of the caption-word vocabulary.
    """

    def __init__(self, config: TokenizerConfig, num_words: int) -> None:
        super().__init__(config)
        self.words = nn.Linear(config.embed_dim, num_words)
        self.init_decoder(self.words)

    def forward(self, frames: Tensor) -> tuple[Tensor, Quantized]:
        """Word logits (B, K) of Eq. 5 and the codes of Eq. 4, from frames (B, T, 3, H, W) uint8."""
        quantized = self.quantizer(self.encode(frames))
        states = self.decode(quantized.codes, across_frames=True)
        return self.words(states.flatten(1, 2).mean(1)), quantized
