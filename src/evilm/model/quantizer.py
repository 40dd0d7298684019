"""The vector quantizer: nearest code, straight-through gradient, re-seeding of dead codes (paper 3.3, Eq. 4, 7).

It is written by hand: libraries for vector quantization share neither statistics nor re-seeding across processes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import nn

from evilm import distributed, losses
from evilm.types import Quantized

if TYPE_CHECKING:
    from torch import Tensor

INITIAL_SHARPNESS = 10.0  # of a gumbel codebook: scores are this times the cosine

Codebook = Literal["gradient", "ema", "gumbel"]


class Quantizer(nn.Module):
    """A codebook on the unit sphere.

    Encodings and codes are l2-normalised (paper 4.1), so the nearest code is the one of largest cosine.

    Args:
        codebook_size: M; the paper's is 9,420.
        code_dim: d; the paper's is 32.
        codebook: ``gradient`` trains codes by the second term of Eq. 7 (the paper); ``ema`` sets each code to a running
            mean of the encodings nearest to it; ``gumbel`` belongs to ``GumbelQuantizer``.
        ema_decay: of the running mean, and of the running count of use.
        dead_code_threshold: a code whose running count of use per batch falls below this value is replaced by a random
            encoding of the batch; 0 never replaces one (the paper).
        kmeans: initialise the codes by k-means of the first batch's encodings instead of at random.
    """

    codes: Tensor
    use: Tensor
    sums: Tensor
    started: Tensor

    def __init__(
        self, codebook_size: int, code_dim: int, *, codebook: Codebook = "gradient", ema_decay: float = 0.99,
        dead_code_threshold: float = 0.0, kmeans: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.ema_decay, self.dead_code_threshold, self.ema = ema_decay, dead_code_threshold, codebook == "ema"
        start = F.normalize(torch.randn(codebook_size, code_dim), dim=-1)
        if self.ema:
            self.register_buffer("codes", start)
        else:
            self.codes = nn.Parameter(start)
        self.register_buffer("use", torch.ones(codebook_size))  # one use each, so that no code is dead at the start
        self.register_buffer("sums", start.clone())
        self.register_buffer("started", torch.tensor(not kmeans))

    def forward(self, encoded: Tensor) -> Quantized:
        """Replace each encoding by its nearest code (Eq. 4).

        Args:
            encoded: (..., d); normalised here.
        """
        encoded = F.normalize(encoded.float(), dim=-1)
        flat = encoded.detach().reshape(-1, encoded.shape[-1])
        if self.training and not self.started:
            self._start(flat)
        labels = self.nearest(flat)
        # A copy, because re-seeding writes into the codebook before the backward pass.
        codes = F.normalize(self.codes.float().clone(), dim=-1)[labels].view_as(encoded)
        codebook, commitment = losses.quantization(encoded, codes)
        if self.training:
            self._keep_alive(flat, labels)
        return Quantized(
            codes=encoded + (codes - encoded).detach(),  # straight-through gradient
            labels=labels.view(encoded.shape[:-1]),
            loss_codebook=codebook * 0 if self.ema else codebook,
            loss_commitment=commitment,
        )

    @torch.no_grad()
    def nearest(self, encoded: Tensor) -> Tensor:
        """Index of the nearest code (Eq. 4) of encodings (R, d), (R,) int64.

        Between unit vectors the smallest distance is the largest inner product. Scores (R, M) are computed in chunks,
        because those of a whole batch would not fit in memory.
        """
        encoded, codes = F.normalize(encoded.float(), dim=-1), F.normalize(self.codes.float(), dim=-1)
        starts = range(0, len(encoded), 8192)
        return torch.cat([(encoded[start : start + 8192] @ codes.T).argmax(-1) for start in starts])

    @torch.no_grad()
    def _start(self, encoded: Tensor, rounds: int = 10) -> None:
        """Spherical k-means on one batch of encodings (R, d)."""
        encoded = distributed.all_gather(encoded)
        centres = _drawn(encoded, len(self.codes))
        for _ in range(rounds):
            self.codes.copy_(centres)
            sums = torch.zeros_like(centres).index_add_(0, self.nearest(encoded), encoded)
            centres = torch.where(sums.any(dim=-1, keepdim=True), F.normalize(sums, dim=-1), centres)
        self.codes.copy_(centres)
        self.sums.copy_(centres)
        self.started.fill_(True)

    @torch.no_grad()
    def _keep_alive(self, encoded: Tensor, labels: Tensor) -> None:
        """Count the use of codes, set them to their running means (``ema``), and re-seed dead ones."""
        count = distributed.all_reduce_sum(torch.bincount(labels, minlength=len(self.codes)).to(self.use))
        self.use.lerp_(count, 1 - self.ema_decay)
        if self.ema:
            sums = torch.zeros_like(self.sums).index_add_(0, labels, encoded)
            self.sums.lerp_(distributed.all_reduce_sum(sums), 1 - self.ema_decay)
            self.codes.copy_(F.normalize(self.sums, dim=-1))
        dead = torch.nonzero(self.use < self.dead_code_threshold).flatten()
        if len(dead):
            seeds = _drawn(distributed.all_gather(encoded), len(dead))
            self.codes[dead] = seeds
            self.sums[dead] = seeds
            self.use[dead] = 1.0


def _drawn(encoded: Tensor, count: int) -> Tensor:
    """``count`` random rows, copied; the same rows in all processes."""
    return encoded[distributed.broadcast(torch.randint(len(encoded), (count,), device=encoded.device))]


class GumbelQuantizer(Quantizer):
    """Codes that are sampled in training, as in DALL-E's discrete VAE (Table 6).

    The score of a code is its cosine with the encoding times a learned sharpness. Training samples a code from the
    softmax of the scores by the Gumbel-max trick, with the gradient of the relaxed sample (straight through,
    temperature 1). The decoder gets one whole code from the first step on, so the temperature need not be lowered as
    DALL-E's is. ``loss_codebook`` is ``KL(q || 1 / M)`` in nats, the divergence of the softmaxes from uniform use of
    all codes, as in DALL-E's bound on the likelihood. ``loss_commitment`` is 0. Labels are the most probable codes,
    which are those of Eq. 4. The scores (R, M) of a whole batch are held in memory.

    Args:
        codebook_size, code_dim, ema_decay, dead_code_threshold, kmeans: see ``Quantizer``.
        codebook: ``gumbel``.
    """

    def __init__(
        self, codebook_size: int, code_dim: int, *, codebook: Codebook = "gumbel", ema_decay: float = 0.99,
        dead_code_threshold: float = 0.0, kmeans: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(
            codebook_size, code_dim, codebook=codebook, ema_decay=ema_decay, dead_code_threshold=dead_code_threshold,
            kmeans=kmeans,
        )  # fmt: skip
        self.log_sharpness = nn.Parameter(torch.tensor(math.log(INITIAL_SHARPNESS)))

    def forward(self, encoded: Tensor) -> Quantized:
        """A code for each encoding (..., d): sampled in training, the nearest otherwise."""
        flat = F.normalize(encoded.float(), dim=-1).reshape(-1, encoded.shape[-1])
        if self.training and not self.started:
            self._start(flat.detach())
        codes = F.normalize(self.codes.float().clone(), dim=-1)
        with torch.autocast(encoded.device.type, enabled=False):  # sharp softmaxes need float32
            scores = self.log_sharpness.exp() * flat @ codes.T
            if self.training:
                drawn = F.gumbel_softmax(scores, hard=True)
                labels, chosen = drawn.argmax(-1), drawn @ codes
                self._keep_alive(flat.detach(), labels)
            else:
                labels = self.nearest(flat)
                chosen = codes[labels]
        share = scores.log_softmax(-1)
        divergence = (share.exp() * (share + math.log(len(codes)))).sum(-1).mean()
        return Quantized(
            codes=chosen.view(encoded.shape),
            labels=labels.view(encoded.shape[:-1]),
            loss_codebook=divergence,
            loss_commitment=divergence * 0,
        )
