"""Captions of a batch, and losses over the global batch of several processes; see ``evilm.distributed``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from evilm import distributed, losses
from evilm.data import sampling
from evilm.losses import IGNORE
from evilm.types import Encoded, Losses

if TYPE_CHECKING:
    from torch import Tensor

    from evilm.model.quantizer import Quantized
    from evilm.tasks.settings import TokenizerTrainingConfig
    from evilm.types import Batch, Example


def caption_of(example: Example, seed: int | None) -> str:
    """A caption of the row, or an empty text if it has none."""
    if not example.captions:
        return ""
    return example.captions[0 if seed is None else sampling.derive_seed(seed, "caption") % len(example.captions)]


def captions_of(example: Example, seed: int | None, count: int) -> list[str]:
    """``count`` captions of the row, repeated only if it has fewer; the first is that of ``caption_of``."""
    first = caption_of(example, seed)
    if count == 1 or len(example.captions) < 2:
        return [first] * count
    start = example.captions.index(first)
    rest = np.delete(np.arange(len(example.captions)), start)
    order = [start, *(rest if seed is None else sampling.generator(seed, "captions").permutation(rest)).tolist()]
    return [example.captions[order[i % len(order)]] for i in range(count)]


def masked_prediction(logits: Tensor, labels: Tensor, focal_gamma: float = 0.0) -> Tensor:
    """``losses.masked_prediction`` whose mean over all processes is the loss of the global batch."""
    count = distributed.all_reduce_mean((labels != IGNORE).sum())
    return losses.masked_prediction(logits, labels, count, focal_gamma)


def same_video(batch: Batch) -> Tensor:
    """(B, B) bool over the global batch: True for rows of one video, whose captions describe each other."""
    names = [sampling.derive_seed("video", example.video) for example in batch.examples]
    rows = distributed.all_gather(torch.tensor(names, device=batch.frames.device))
    return rows[:, None] == rows[None]


def gather_texts(text: Encoded) -> Encoded:
    """The encoded texts of the global batch (B, L, D), padded to one length."""
    if distributed.world_size() == 1:
        return text
    assert text.mask is not None
    padding = distributed.all_reduce_max(text.mask.shape[1]) - text.mask.shape[1]
    tokens, mask = F.pad(text.tokens, (0, 0, 0, padding)), F.pad(text.mask, (0, padding))
    return Encoded(distributed.all_gather(tokens), distributed.all_gather(mask))


def local_rows(gathered: Tensor, batch: Batch) -> Tensor:
    """The rows of this process out of those of the global batch."""
    return gathered[distributed.rank() * len(batch) :][: len(batch)]


def with_codebook_losses(
    name: str, loss: Tensor, weight: float, quantized: Quantized, config: TokenizerTrainingConfig
) -> Losses:
    """The weighted sum of a tokenizer's own loss, called ``name``, and of the losses of its codebook (Eq. 7)."""
    total = (
        weight * loss
        + config.codebook_weight * quantized.loss_codebook
        + config.commitment_weight * quantized.loss_commitment
    )
    counts = torch.bincount(quantized.labels.flatten(), minlength=config.tokenizer.codebook_size)
    return Losses(
        total,
        {
            name: loss.detach(),
            "codebook": quantized.loss_codebook.detach(),
            "commitment": quantized.loss_commitment.detach(),
            "codes_in_batch": (distributed.all_reduce_sum(counts) > 0).sum(),
        },
    )
