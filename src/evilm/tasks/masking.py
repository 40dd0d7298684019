"""Random masks of patches and of words for pre-training (paper 3.2, 3.4, 4.1).

Every mask is drawn from its sample's seed, so that it does not depend on how samples are batched.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from evilm.data.sampling import generator
from evilm.losses import IGNORE
from evilm.types import Grid, Text

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

Shape = Literal["block", "tube", "cuboid"]

SMALLEST_BLOCK = 16 / 196  # of the grid: BEiT's 16 patches of 14 x 14
ASPECT = (0.3, 1 / 0.3)  # BEiT's range of height / width
ATTEMPTS = 10  # draws of a block that does not fit, before one is clipped to the grid


def mask_patches(grid: Grid, ratio: float, seeds: Tensor, shape: Shape = "block") -> Tensor:
    """The patches to hide.

    Args:
        grid: T x h x w.
        ratio: fraction of the patches to hide, above 0; the paper's is 0.4.
        seeds: (B,) int64, one for each sample.
        shape: ``block`` draws blocks in each frame (BEiT) and hides ``round(ratio * h * w)`` patches of each frame; if
            that is 0, it hides one patch in each of ``round(ratio * T * h * w)`` frames. ``tube`` hides the same blocks
            in all frames, ``round(ratio * h * w)`` patches of each. ``cuboid`` draws blocks with a depth in time and
            hides ``round(ratio * T * h * w)`` patches of the clip. At least one patch is hidden, by a tube one of each
            frame.

    Returns:
        (B, N) bool, True where hidden.
    """
    frames, height, width = grid
    counts = [max(1, round(ratio * height * width))] * frames
    masks: list[np.ndarray] = []
    for seed in seeds:
        rng = generator(int(seed), "regions")  # another label would change the masks of old runs
        if shape == "cuboid":
            masks.append(_draw_blocks(rng, (frames, height, width), max(1, round(ratio * grid.patches))))
        elif shape == "tube":
            masks.append(np.concatenate([_draw_blocks(rng, (1, height, width), counts[0])] * frames))
        else:
            if not round(ratio * height * width):
                chosen = rng.permutation(frames)[: max(1, round(ratio * grid.patches))]
                counts = [int(frame in chosen) for frame in range(frames)]
            masks.append(np.concatenate([_draw_blocks(rng, (1, height, width), count) for count in counts]))
    return torch.from_numpy(np.stack(masks)).flatten(1)


def _draw_blocks(rng: np.random.Generator, extent: tuple[int, int, int], count: int) -> np.ndarray:
    """(T, h, w) bool with exactly ``count`` True, filled by blocks of random size, aspect ratio and depth."""
    frames, height, width = extent
    hidden = np.zeros(extent, dtype=bool)
    smallest = max(1.0, SMALLEST_BLOCK * height * width)
    attempts = 0
    while (missing := count - int(hidden.sum())) > 0:
        depth = int(rng.integers(1, frames + 1))
        area = rng.uniform(smallest, max(smallest, missing / depth))
        aspect = math.exp(rng.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
        tall, wide = max(1, round(math.sqrt(area * aspect))), max(1, round(math.sqrt(area / aspect)))
        if tall > height or wide > width:
            attempts += 1
            if attempts < ATTEMPTS:
                continue
            tall, wide = min(tall, height), min(wide, width)
        attempts = 0
        t, y, x = (int(rng.integers(0, n)) for n in (frames - depth + 1, height - tall + 1, width - wide + 1))
        block = np.zeros(extent, dtype=bool)
        block[t : t + depth, y : y + tall, x : x + wide] = True
        new = np.flatnonzero(block & ~hidden)
        # The last block is trimmed row by row, so that the count is exact and the block stays in one piece.
        hidden.flat[new[:missing]] = True
    return hidden


def hide_patches(frames: Tensor, where: Tensor, grid: Grid) -> Tensor:
    """Set the pixels of hidden patches to zero (paper 3.2: "replacing them with zero-value pixels").

    Args:
        frames: (B, T, 3, H, W).
        where: (B, N) bool.
        grid: T x h x w, with H and W multiples of h and w.

    Returns:
        (B, T, 3, H, W).
    """
    hidden = where.view(-1, grid.frames, 1, grid.height, grid.width)
    scale = (frames.shape[-2] // grid.height, frames.shape[-1] // grid.width)
    pixels = hidden.repeat_interleave(scale[0], -2).repeat_interleave(scale[1], -1)
    return frames.masked_fill(pixels, 0.0)


def mask_words(
    text: Text, seeds: Tensor, *, ratio: float, mask_id: int, ordinary: tuple[int, int]
) -> tuple[Text, Tensor]:
    """Hide whole words: 80 % become [MASK], 10 % random pieces, 10 % stay (BERT's recipe).

    Args:
        text: ids (B, L).
        seeds: (B,) int64, one for each sample.
        ratio: fraction of the word pieces to hide; at least one word is always hidden.
        mask_id: the id of [MASK].
        ordinary: first id, and one past the last id, of the pieces that may replace a word (no special ones).

    Returns:
        the text with hidden words, and labels (B, L) int64: the true id where hidden, ``IGNORE`` elsewhere.
    """
    ids, labels = text.ids.cpu().numpy().copy(), np.full(tuple(text.ids.shape), IGNORE, dtype=np.int64)
    starts, filled = text.starts.cpu().numpy(), text.mask.cpu().numpy()
    for row, seed in enumerate(seeds):
        rng = generator(int(seed), "words")
        for pieces in _chosen_words(rng, starts[row], filled[row], ratio):
            labels[row, pieces] = ids[row, pieces]
            fate = rng.random()
            if fate < 0.8:
                ids[row, pieces] = mask_id
            elif fate < 0.9:
                ids[row, pieces] = rng.integers(*ordinary, size=len(pieces))
    device = text.ids.device
    return Text(torch.from_numpy(ids).to(device), text.mask, text.starts), torch.from_numpy(labels).to(device)


def _chosen_words(
    rng: np.random.Generator, starts: np.ndarray, filled: np.ndarray, ratio: float
) -> list[NDArray[np.int64]]:
    """The words to hide, each as the positions of its pieces."""
    first = np.flatnonzero(starts)
    if not len(first):
        return []
    end = int(filled.sum()) - 1  # [SEP] closes the text
    spans: list[NDArray[np.int64]] = [np.arange(a, b) for a, b in zip(first, [*first[1:], end], strict=True)]
    budget = max(1, round(ratio * sum(len(span) for span in spans)))
    chosen: list[NDArray[np.int64]] = []
    for index in rng.permutation(len(spans)):
        span = spans[int(index)]
        if budget <= 0:
            break
        # A word longer than the budget is taken only if it is the first.
        if len(span) <= budget or not chosen:
            chosen.append(span)
            budget -= len(span)
    return chosen


def labels_of_hidden(labels: Tensor, where: Tensor) -> Tensor:
    """Labels (B, N) with ``IGNORE`` on visible patches: the targets of Eq. 3."""
    return labels.masked_fill(~where, IGNORE)
