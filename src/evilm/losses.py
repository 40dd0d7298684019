"""The paper's losses (Eq. 3, 6, 7, 8), matching, contrastive learning and distillation, as pure functions of tensors.

They take logits and return scalars, and compute in float32 whatever the type of the inputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from torch import Tensor

IGNORE = -100  # the label that cross-entropy skips


def masked_prediction(logits: Tensor, labels: Tensor, count: Tensor | None = None, focal_gamma: float = 0.0) -> Tensor:
    """Cross-entropy at masked positions: Eq. 3 over patches (MVM), the same over word pieces (MLM).

    Eq. 3 as printed subtracts a cross-entropy; with the usual positive cross-entropy the sign is plus.

    Args:
        logits: (..., K).
        labels: (...) int64; ``IGNORE`` at positions that are not masked.
        count: divisor of the sum; by default the number of masked positions.
        focal_gamma: see ``focal``.

    Returns:
        the mean over masked positions; zero, with a gradient of zero, if there are none.
    """
    logits, labels = logits.flatten(0, -2).float(), labels.flatten()
    if focal_gamma:
        total = focal(F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none"), focal_gamma).sum()
    else:
        total = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")
    if count is None:
        count = (labels != IGNORE).sum()
    return total / count.masked_fill(count == 0, 1)


def focal(losses: Tensor, gamma: float) -> Tensor:
    """Focal weighting of cross-entropies (Lin et al., 2017): confident right answers weigh less.

    Without it, easy kinds of questions (which colour) dominate the loss, and a hard kind (which direction) is not
    learned.

    Args:
        losses: (...) cross-entropies -log p.
        gamma: each is weighted by (1 - p)^gamma; 0 changes nothing.
    """
    return (-torch.expm1(-losses)) ** gamma * losses if gamma else losses


def focal_words(logits: Tensor, words: Tensor) -> Tensor:
    """Eq. 6 with its missing minus sign: multi-label classification of the caption's words under the focal loss.

    ``-1/K sum(log p for a word of the caption, p log(1 - p) for another word)``: the asymmetric focal loss with
    gamma+ = 0 and gamma- = 1.

    Args:
        logits: (B, K).
        words: (B, K), 1 where the caption has the word.
    """
    logits, words = logits.float(), words.float()
    present = -F.logsigmoid(logits)
    absent = -torch.sigmoid(logits) * F.logsigmoid(-logits)
    return (words * present + (1 - words) * absent).mean()


def bce_words(logits: Tensor, words: Tensor) -> Tensor:
    """The binary cross-entropy that Table 6 compares Eq. 6 with; (B, K) and (B, K)."""
    return F.binary_cross_entropy_with_logits(logits.float(), words.float())


def reconstruction(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of decoded pixels or features, for the tokenizers without words of Table 6."""
    return F.mse_loss(prediction.float(), target.float())


def quantization(encoded: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Second and third term of Eq. 7, which move codes to encodings and encodings to codes.

    Args:
        encoded: (..., d) E(X), l2-normalised.
        codes: (..., d) the nearest codes C_q, with their gradient to the codebook.

    Returns:
        ``||sg[E(X)] - C_q||^2`` and ``||E(X) - sg[C_q]||^2``, summed over d, averaged over patches.
    """
    encoded, codes = encoded.float(), codes.float()
    codebook = (encoded.detach() - codes).pow(2).sum(-1).mean()
    commitment = (encoded - codes.detach()).pow(2).sum(-1).mean()
    return codebook, commitment


def matching(scores: Tensor, right: Tensor | None = None, focal_gamma: float = 0.0) -> Tensor:
    """Cross-entropy of the right candidate (VTM in its 4-way form; multiple choice).

    Args:
        scores: (B, K), one score for each candidate.
        right: (B,) int64 index of the right one; by default the first.
        focal_gamma: see ``focal``.
    """
    if right is None:
        right = scores.new_zeros(len(scores), dtype=torch.long)
    return focal(F.cross_entropy(scores.float(), right, reduction="none"), focal_gamma).mean()


def binary_matching(scores: Tensor) -> Tensor:
    """VTM as binary classification: the first of each row's K candidates matches, the others do not; (B, K).

    Matched and unmatched pairs have equal weight, whatever the number of candidates.
    """
    scores = scores.float()
    return (F.softplus(-scores[:, 0]).mean() + F.softplus(scores[:, 1:]).mean()) / 2


def contrastive(
    video: Tensor, text: Tensor, temperature: Tensor | float, same_video: Tensor | None = None, focal_gamma: float = 0.0
) -> Tensor:
    """Symmetric InfoNCE over a batch.

    With C texts for each video, every text is classified among the videos, and the video among each of its texts in
    turn and the texts of other videos. A video's other texts are true as well, so they are not negatives.

    Args:
        video: (B, D) l2-normalised.
        text: (B * C, D) l2-normalised; rows i * C to i * C + C - 1 belong to row i of the videos.
        temperature: divides the cosines.
        same_video: (B, B) bool, True where video i and the texts of row j are also a true pair (a video drawn twice).
            Such pairs off the diagonal are left out of the denominator.
        focal_gamma: see ``focal``.
    """
    count, each = len(video), len(text) // len(video)
    logits = video.float() @ text.float().T / temperature  # (B, B * C)
    rows = torch.arange(count, device=logits.device)
    own = torch.eye(count, dtype=torch.bool, device=logits.device)
    true = (own if same_video is None else same_video | own).repeat_interleave(each, 1)
    by_text = logits.T.masked_fill(true.T & ~own.repeat_interleave(each, 1).T, float("-inf"))
    terms = [F.cross_entropy(by_text, rows.repeat_interleave(each), reduction="none")]
    for index in range(each):
        target = rows * each + index
        hidden = true.scatter(1, target[:, None], value=False)
        terms.append(F.cross_entropy(logits.masked_fill(hidden, float("-inf")), target, reduction="none"))
    return focal(torch.cat(terms), focal_gamma).mean()


def feature_distillation(student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
    """One minus the cosine with a teacher's embeddings (CLIP-KD, Yang et al., 2024).

    Args:
        student, teacher: (B, d) l2-normalised.
        valid: (B,) bool, rows that the teacher has an embedding for.

    Returns:
        the mean over valid rows; zero, with a gradient of zero, if there are none.
    """
    distance = 1 - (student.float() * teacher.float()).sum(-1)
    return (distance * valid).sum() / valid.sum().clamp(min=1)
