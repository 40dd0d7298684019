"""The paper's losses (Eq. 3, 6, 7, 8), matching and contrast, as pure functions of tensors.

Logits in, scalars out, computed in float32 whatever the inputs' format.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from torch import Tensor

IGNORE = -100  # the label that cross-entropy skips


def masked_prediction(logits: Tensor, labels: Tensor, count: Tensor | None = None, focal_gamma: float = 0.0) -> Tensor:
    """Cross-entropy on what was hidden: Eq. 3 over regions (MVM), the same over word pieces (MLM).

    Eq. 3 as printed subtracts a cross-entropy; with cross-entropy positive, as usual, the sign is plus.

    Args:
        logits: (..., K).
        labels: (...) int64; ``IGNORE`` where nothing was hidden.
        count: what to divide by; the hidden positions here by default.
        focus: see ``focused``.

    Returns:
        the mean over hidden positions; zero, with a gradient of zero, where nothing was hidden.
    """
    logits, labels = logits.flatten(0, -2).float(), labels.flatten()
    if focal_gamma:
        total = focal(F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none"), focal_gamma).sum()
    else:
        total = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")
    if count is None:
        count = (labels != IGNORE).sum()
    return total / count.masked_fill(count == 0, 1)


def focal(each: Tensor, gamma: float) -> Tensor:
    """The focal loss of cross-entropies (Lin et al., 2017): what is already known counts less.

    Where easy kinds of a mixture (what colour) drown a hard one (which way), the hard one is never begun.

    Args:
        each: (...) cross-entropies -log p.
        focus: gamma; each term is weighted by (1 - p)^gamma, 0 leaves it as it is.
    """
    return (-torch.expm1(-each)) ** gamma * each if gamma else each


def focal_words(logits: Tensor, words: Tensor) -> Tensor:
    """Eq. 6 with its missing minus sign: multi-label words of the caption under the focal loss.

    ``-1/K sum(log p where the word is in the caption, p log(1 - p) where it is not)``: the asymmetric focal
    loss with gamma+ = 0 and gamma- = 1.

    Args:
        logits: (B, K).
        words: (B, K), 1 where the caption has the word.
    """
    logits, words = logits.float(), words.float()
    present = -F.logsigmoid(logits)
    absent = -torch.sigmoid(logits) * F.logsigmoid(-logits)
    return (words * present + (1 - words) * absent).mean()


def bce_words(logits: Tensor, words: Tensor) -> Tensor:
    """The plain multi-label cross-entropy that Table 6 compares Eq. 6 with; (B, K) and (B, K)."""
    return F.binary_cross_entropy_with_logits(logits.float(), words.float())


def reconstruction(found: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared error of what codes were decoded to, where a tokenizer learns from pixels or features (Table 6)."""
    return F.mse_loss(found.float(), wanted.float())


def quantization(encoded: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Second and third term of Eq. 7: codes move to the encoder, the encoder commits to codes.

    Args:
        encoded: (..., d) E(X), l2-normalised.
        codes: (..., d) the nearest codes C_q, with their gradient to the codebook.

    Returns:
        ``||sg[E(X)] - C_q||^2`` and ``||E(X) - sg[C_q]||^2``: summed over d, mean over regions.
    """
    encoded, codes = encoded.float(), codes.float()
    codebook = (encoded.detach() - codes).pow(2).sum(-1).mean()
    commitment = (encoded - codes.detach()).pow(2).sum(-1).mean()
    return codebook, commitment


def matching(scores: Tensor, right: Tensor | None = None, focal_gamma: float = 0.0) -> Tensor:
    """Choose the partner among candidates (VTM in its 4-way form; multiple choice).

    Args:
        scores: (B, K), one score a candidate.
        right: (B,) int64 index of the right one; the first by default.
        focus: see ``focused``.
    """
    if right is None:
        right = scores.new_zeros(len(scores), dtype=torch.long)
    return focal(F.cross_entropy(scores.float(), right, reduction="none"), focal_gamma).mean()


def binary_matching(scores: Tensor) -> Tensor:
    """VTM as yes or no: the first of each row's K candidates matches, the others do not; (B, K).

    Matched and unmatched pairs weigh the same, however many candidates there are.
    """
    scores = scores.float()
    return (F.softplus(-scores[:, 0]).mean() + F.softplus(scores[:, 1:]).mean()) / 2


def contrastive(
    video: Tensor, text: Tensor, temperature: Tensor | float, same: Tensor | None = None, focal_gamma: float = 0.0
) -> Tensor:
    """Symmetric InfoNCE over a batch.

    With C texts a video, each of them looks for its video; and the video looks for each of them in turn, among the
    texts of others: its other texts are as true as this one, and no negatives.

    Args:
        video: (B, D) l2-normalised.
        text: (B * C, D) l2-normalised; rows i * C to i * C + C - 1 belong to row i of the videos.
        temperature: divides the cosines.
        same: (B, B) bool, True where video i and the texts of video j are also true pairs (a clip drawn twice): such
            pairs off the diagonal are left out of the denominator.
        focus: see ``focused``.
    """
    count, each = len(video), len(text) // len(video)
    logits = video.float() @ text.float().T / temperature  # (B, B * C)
    rows = torch.arange(count, device=logits.device)
    own = torch.eye(count, dtype=torch.bool, device=logits.device)
    alike = (own if same is None else same | own).repeat_interleave(each, 1)
    found = logits.T.masked_fill(alike.T & ~own.repeat_interleave(each, 1).T, float("-inf"))
    terms = [F.cross_entropy(found, rows.repeat_interleave(each), reduction="none")]
    for which in range(each):
        target = rows * each + which
        hidden = alike.scatter(1, target[:, None], value=False)
        terms.append(F.cross_entropy(logits.masked_fill(hidden, float("-inf")), target, reduction="none"))
    return focal(torch.cat(terms), focal_gamma).mean()


def following(found: Tensor, wanted: Tensor, known: Tensor) -> Tensor:
    """One minus the cosine to a teacher's embeddings: feature distillation (CLIP-KD, Yang et al., 2024).

    Args:
        found: (B, d) l2-normalised.
        wanted: (B, d) the teacher's, l2-normalised.
        known: (B,) bool, rows that the teacher has something to say of; zero, with a gradient of zero, without any.
    """
    apart = 1 - (found.float() * wanted.float()).sum(-1)
    return (apart * known).sum() / known.sum().clamp(min=1)


def relation(
    found: Tensor, wanted: Tensor, others: tuple[Tensor, Tensor] | None, temperature: float, known: Tensor
) -> Tensor:
    """How differently two models see likenesses within a batch: KL(teacher || student) of softmaxed cosines.

    Over videos and texts it is CLIP-KD's contrastive relational distillation (Yang et al., 2024), in both directions;
    over videos alone, each against the others, the form that SEED (Fang et al., 2021) has with a queue.

    Args:
        found, wanted: (B, d) the student's and the teacher's embeddings, l2-normalised.
        others: the same of what they are compared with, row by row their partners; None compares them among themselves.
        temperature: divides the cosines of both.
        known: (B,) bool, rows to be taken.

    Returns:
        the mean over rows; zero, with a gradient of zero, where fewer than two can be compared.
    """
    rows = known.nonzero()[:, 0]
    mine, his = (each.float()[rows] for each in (found, wanted))
    beside, beside_his = (mine, his) if others is None else (each.float()[rows] for each in others)
    student, teacher = mine @ beside.T / temperature, his @ beside_his.T / temperature
    if len(rows) < (2 if others else 3):
        return student.sum() * 0
    if others is None:
        own = torch.eye(len(rows), dtype=torch.bool, device=student.device)
        student, teacher = (each[~own].view(len(rows), -1) for each in (student, teacher))
        return _divergence(student, teacher)
    return (_divergence(student, teacher) + _divergence(student.T, teacher.T)) / 2


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) of logits (B, K), mean over rows."""
    return F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), reduction="batchmean", log_target=True)
