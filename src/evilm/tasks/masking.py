"""Which regions and which words are hidden in pre-training (paper 3.2, 3.4, 4.1).

All choices come from one seed a sample, so they are the same however samples are batched.
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
ATTEMPTS = 10  # blocks tried before single cells fill the rest


def mask_patches(grid: Grid, ratio: float, seeds: Tensor, shape: Shape = "block") -> Tensor:
    """The regions to hide, exactly ``round(ratio * cells)`` of them.

    Args:
        grid: T x h x w.
        ratio: share of cells to hide; the paper's is 0.4.
        seeds: (B,) int64, one a sample.
        shape: ``block`` draws blocks in each frame (BEiT), ``tube`` repeats one frame's blocks through time,
            ``cuboid`` draws blocks with a depth in time, exact over the whole clip.

    Returns:
        (B, N) bool, True where hidden.
    """
    frames, height, width = grid
    masks: list[np.ndarray] = []
    for seed in seeds:
        rng = generator(int(seed), "regions")
        if shape == "cuboid":
            masks.append(_boxes(rng, (frames, height, width), ratio))
        else:
            drawn = [_boxes(rng, (1, height, width), ratio) for _ in range(1 if shape == "tube" else frames)]
            masks.append(np.concatenate(drawn * frames if shape == "tube" else drawn))
    return torch.from_numpy(np.stack(masks)).flatten(1)


def _boxes(rng: np.random.Generator, extent: tuple[int, int, int], ratio: float) -> np.ndarray:
    """(T, h, w) bool with an exact count, filled by blocks of random size, aspect and depth."""
    frames, height, width = extent
    hidden = np.zeros(extent, dtype=bool)
    wanted = round(ratio * hidden.size)
    smallest = max(1.0, SMALLEST_BLOCK * height * width)
    missed = 0
    while (missing := wanted - int(hidden.sum())) > 0:
        depth = int(rng.integers(1, frames + 1))
        area = rng.uniform(smallest, max(smallest, missing / depth))
        aspect = math.exp(rng.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
        tall, wide = max(1, round(math.sqrt(area * aspect))), max(1, round(math.sqrt(area / aspect)))
        if tall > height or wide > width:
            missed += 1
            if missed < ATTEMPTS:
                continue
            tall, wide = min(tall, height), min(wide, width)
        missed = 0
        t, y, x = (int(rng.integers(0, n)) for n in (frames - depth + 1, height - tall + 1, width - wide + 1))
        block = np.zeros(extent, dtype=bool)
        block[t : t + depth, y : y + tall, x : x + wide] = True
        fresh = np.flatnonzero(block & ~hidden)
        # The last block is trimmed, row by row, so that the count is exact and it stays one piece.
        hidden.flat[fresh[:missing]] = True
    return hidden


def hide_patches(frames: Tensor, where: Tensor, grid: Grid) -> Tensor:
    """Set the pixels of hidden regions to zero (paper 3.2: "replacing them with zero-value pixels").

    Args:
        frames: (B, T, 3, H, W).
        where: (B, N) bool.
        grid: T x h x w, with H and W multiples of h and w.

    Returns:
        (B, T, 3, H, W).
    """
    cells = where.view(-1, grid.frames, 1, grid.height, grid.width)
    scale = (frames.shape[-2] // grid.height, frames.shape[-1] // grid.width)
    pixels = cells.repeat_interleave(scale[0], -2).repeat_interleave(scale[1], -1)
    return frames.masked_fill(pixels, 0.0)


def mask_words(
    text: Text, seeds: Tensor, *, ratio: float, mask_id: int, ordinary: tuple[int, int]
) -> tuple[Text, Tensor]:
    """Hide whole words: 80 % become [MASK], 10 % a random piece, 10 % stay (BERT's recipe).

    Args:
        text: ids (B, L).
        seeds: (B,) int64, one a sample.
        ratio: share of word pieces to hide; at least one word is always hidden.
        mask_id: the id of [MASK].
        ordinary: first and one-past-last id that a random piece may be (no special tokens).

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
        # A long word may not overrun the budget, unless it is the only one.
        if len(span) <= budget or not chosen:
            chosen.append(span)
            budget -= len(span)
    return chosen


def labels_of_hidden(labels: Tensor, where: Tensor) -> Tensor:
    """Labels (B, N) with ``IGNORE`` on the regions that were visible: the targets of Eq. 3."""
    return labels.masked_fill(~where, IGNORE)
