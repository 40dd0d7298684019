"""The vector quantizer: nearest code, straight-through gradient, and what keeps codes alive (paper 3.3, Eq. 4, 7)."""

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

SHARPNESS = 10.0  # of a gumbel codebook before training: scores are this times the cosine

Codebook = Literal["gradient", "ema", "gumbel"]


class Quantizer(nn.Module):
    """A codebook on the unit sphere.

    Encodings and codes are l2-normalised (paper 4.1), so the nearest code is the one of largest cosine.

    Args:
        codes: M; the paper's is 9,420.
        width: d; the paper's is 32.
        codebook: ``gradient`` moves codes by the second term of Eq. 7 (the paper); ``ema`` by a running mean of
            the encodings they are chosen for; ``gumbel`` is ``GumbelQuantizer``'s.
        decay: of the running mean, and of the running count of use.
        restart_below: a code whose running count of use per batch falls below this is put on a random encoding
            of the batch; 0 never does (the paper).
        kmeans: start from k-means of the first batches' encodings instead of at random.
    """

    codes: Tensor
    use: Tensor
    sums: Tensor
    started: Tensor

    def __init__(
        self, codes: int, width: int, *, codebook: Codebook = "gradient", decay: float = 0.99,
        restart_below: float = 0.0, kmeans: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.ema_decay, self.dead_code_threshold, self.ema = decay, restart_below, codebook == "ema"
        start = F.normalize(torch.randn(codes, width), dim=-1)
        if self.ema:
            self.register_buffer("codes", start)
        else:
            self.codes = nn.Parameter(start)
        # One use a code: neither dead at the start nor immortal.
        self.register_buffer("use", torch.ones(codes))
        self.register_buffer("sums", start.clone())
        self.register_buffer("started", torch.tensor(not kmeans))

    def forward(self, encoded: Tensor) -> Quantized:
        """Replace each encoding by its nearest code (Eq. 4).

        Args:
            encoded: (..., d), of any length; normalised here.
        """
        encoded = F.normalize(encoded.float(), dim=-1)
        flat = encoded.detach().reshape(-1, encoded.shape[-1])
        if self.training and not self.started:
            self._start(flat)
        labels = self.nearest(flat)
        # A copy: re-seeding writes into the codebook before the gradient has passed through it.
        codes = F.normalize(self.codes.float().clone(), dim=-1)[labels].view_as(encoded)
        codebook, commitment = losses.quantization(encoded, codes)
        if self.training:
            self._keep_alive(flat, labels)
        return Quantized(
            codes=encoded + (codes - encoded).detach(),  # straight through: the gradient skips the choice
            labels=labels.view(encoded.shape[:-1]),
            loss_codebook=codebook * 0 if self.ema else codebook,
            loss_commitment=commitment,
        )

    @torch.no_grad()
    def nearest(self, encoded: Tensor) -> Tensor:
        """Index of the nearest code (Eq. 4) of encodings (R, d), (R,) int64.

        Between unit vectors the smallest distance is the largest inner product. In chunks: R x M scores of a
        whole batch would not fit.
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
        """Count use; move the codes by their running mean (``ema``); re-seed those that died."""
        count = distributed.all_reduce_sum(torch.bincount(labels, minlength=len(self.codes)).to(self.use))
        self.use.lerp_(count, 1 - self.ema_decay)
        if self.ema:
            fresh = torch.zeros_like(self.sums).index_add_(0, labels, encoded)
            self.sums.lerp_(distributed.all_reduce_sum(fresh), 1 - self.ema_decay)
            self.codes.copy_(F.normalize(self.sums, dim=-1))
        dead = torch.nonzero(self.use < self.dead_code_threshold).flatten()
        if len(dead):
            seeds = _drawn(distributed.all_gather(encoded), len(dead))
            self.codes[dead] = seeds
            self.sums[dead] = seeds
            self.use[dead] = 1.0


def _drawn(encoded: Tensor, count: int) -> Tensor:
    """That many rows at random, the same in all processes; a copy."""
    return encoded[distributed.broadcast(torch.randint(len(encoded), (count,), device=encoded.device))]


class GumbelQuantizer(Quantizer):
    """Codes that are drawn in training, not looked up: how DALL-E's discrete VAE learns its codebook (Table 6).

    An encoding scores each code by its cosine times a learned sharpness. Training draws a code from the softmax of the
    scores by the Gumbel-max trick, with the gradient of the relaxed draw (straight through, temperature 1). The decoder
    sees one whole code from the first step, so no temperature has to fall, as DALL-E's does. ``loss_codebook`` is the
    divergence of these softmaxes from even use of all codes, ``KL(q || 1 / M)`` in nats, as in its bound on the
    likelihood; nothing commits, and ``loss_commitment`` is 0. Labels are the likeliest code, which is Eq. 4 again.

    It holds R x M scores of a batch at once.

    Args:
        codes, width, decay, restart_below, kmeans: see ``Quantizer``.
        codebook: there is one kind, ``gumbel``.
    """

    def __init__(
        self, codes: int, width: int, *, codebook: Codebook = "gumbel", decay: float = 0.99,
        restart_below: float = 0.0, kmeans: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(codes, width, codebook=codebook, decay=decay, restart_below=restart_below, kmeans=kmeans)
        self.log_sharpness = nn.Parameter(torch.tensor(math.log(SHARPNESS)))

    def forward(self, encoded: Tensor) -> Quantized:
        """A code for each encoding (..., d): drawn in training, the nearest otherwise."""
        flat = F.normalize(encoded.float(), dim=-1).reshape(-1, encoded.shape[-1])
        if self.training and not self.started:
            self._start(flat.detach())
        codes = F.normalize(self.codes.float().clone(), dim=-1)
        with torch.autocast(encoded.device.type, enabled=False):  # sharp softmaxes want all their digits
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
