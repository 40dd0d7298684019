"""RandAugment (arXiv 1909.13719) on clips: a few of fourteen changes to shape or colour, drawn, then carried out.

The operations, their ranges and their 31 steps are torchvision's ``v2.RandAugment``; all frames of a clip are changed
alike. Some move what is seen and some change its colours, so nothing that was computed once of the unchanged picture,
such as cached token labels, is right afterwards.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

STEPS = 30  # the largest magnitude
Change = tuple[str, float]  # an operation, and how far it goes, in its own unit

# The largest amount of each, and whether half of the draws go the other way. Moves are in shares of a side.
RANGES: dict[str, tuple[float, bool]] = {
    "identity": (0.0, False),
    "shear_x": (0.3, True),
    "shear_y": (0.3, True),
    "translate_x": (150 / 331, True),
    "translate_y": (150 / 331, True),
    "rotate": (30.0, True),
    "brightness": (0.9, True),
    "color": (0.9, True),
    "contrast": (0.9, True),
    "sharpness": (0.9, True),
    "posterize": (4.0, False),
    "solarize": (255.0, False),
    "auto_contrast": (0.0, False),
    "equalize": (0.0, False),
}


def draw(count: int, magnitude: int, rng: np.random.Generator) -> tuple[Change, ...]:
    """``count`` operations with their amounts.

    Args:
        count: how many, of ``RANGES``, any of them more than once.
        magnitude: 0 to 30, how far along its range each goes.
        rng: what draws them.
    """
    names = list(RANGES)
    drawn: list[Change] = []
    for _ in range(count):
        name = names[int(rng.integers(len(names)))]
        most, signed = RANGES[name]
        backwards = bool(rng.random() < 0.5)
        drawn.append((name, most * magnitude / STEPS * (-1 if signed and backwards else 1)))
    return tuple(drawn)


def apply(frames: NDArray[np.uint8], changes: Sequence[Change]) -> NDArray[np.uint8]:
    """Frames (T, H, W, 3) after all changes, in their order."""
    import torch

    pixels = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
    for name, amount in changes:
        pixels = _operation(name)(pixels, amount)
    return np.ascontiguousarray(pixels.permute(0, 2, 3, 1).numpy())


def _operation(name: str) -> Callable[[Tensor, float], Tensor]:
    """What changes uint8 pictures (T, 3, H, W) by an amount."""
    from torchvision.transforms.v2 import functional as F

    def moved(
        pixels: Tensor, across: float = 0.0, down: float = 0.0, shear: tuple[float, float] = (0.0, 0.0)
    ) -> Tensor:
        shift: list[float] = [int(across * pixels.shape[-1]), int(down * pixels.shape[-2])]
        degrees = [math.degrees(math.atan(each)) for each in shear]
        centre = [0.0, 0.0] if any(shear) else None  # torchvision shears about the corner
        return F.affine(pixels, angle=0.0, translate=shift, scale=1.0, shear=degrees, center=centre)

    operations: dict[str, Callable[[Tensor, float], Tensor]] = {
        "identity": lambda pixels, _: pixels,
        "shear_x": lambda pixels, amount: moved(pixels, shear=(amount, 0.0)),
        "shear_y": lambda pixels, amount: moved(pixels, shear=(0.0, amount)),
        "translate_x": lambda pixels, amount: moved(pixels, across=amount),
        "translate_y": lambda pixels, amount: moved(pixels, down=amount),
        "rotate": F.rotate,
        "brightness": lambda pixels, amount: F.adjust_brightness(pixels, 1 + amount),
        "color": lambda pixels, amount: F.adjust_saturation(pixels, 1 + amount),
        "contrast": lambda pixels, amount: F.adjust_contrast(pixels, 1 + amount),
        "sharpness": lambda pixels, amount: F.adjust_sharpness(pixels, 1 + amount),
        "posterize": lambda pixels, amount: F.posterize(pixels, 8 - round(amount)),
        "solarize": lambda pixels, amount: F.solarize(pixels, 255 - amount),
        "auto_contrast": lambda pixels, _: F.autocontrast(pixels),
        "equalize": lambda pixels, _: F.equalize(pixels),
    }
    return operations[name]
