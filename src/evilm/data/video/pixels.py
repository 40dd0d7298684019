"""From a decoded picture to RGB: upright, with square pixels, scaled and cropped."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING

import av
import numpy as np
from av.video.reformatter import Interpolation

if TYPE_CHECKING:
    from av import VideoFrame
    from av.video.reformatter import VideoReformatter
    from numpy.typing import NDArray

    from evilm.data.video.limits import Fit

SQUARE = Fraction(1)
_SCALERS = {"bicubic": Interpolation.BICUBIC, "bilinear": Interpolation.BILINEAR}


def fitted(
    picture: VideoFrame, size: int | None, fit: Fit, scale: VideoReformatter, *,
    aspect: Fraction = SQUARE, shape: tuple[int, ...] | None = None,
) -> NDArray[np.uint8]:  # fmt: skip
    """A picture upright, as (H, W, 3) uint8, scaled while it is still in its own pixel format (cheap).

    Args:
        picture: as decoded.
        size: the side of the square asked for; None keeps the size, or takes ``shape``.
        fit: ``crop`` scales the shorter side to ``size`` and keeps the centre; ``squash`` keeps all of the picture.
            Behind a hyphen, the interpolation, for models that were trained with one; else the mean of the pixels that
            become one (cheap), or bicubic where the picture grows.
        scale: reused between pictures.
        aspect: how much wider than high a stored pixel is shown.
        shape: (H, W) to squash to where ``size`` is None.
    """
    turns = round(picture.rotation / 90) % 4
    width, height = max(1, round(picture.width * aspect)), picture.height
    if size is None:
        height, width = shape[:: -1 if turns % 2 else 1] if shape else (height, width)
    elif fit.startswith("squash"):
        width = height = size
    else:
        shorter = min(width, height)
        if max(width, height) > 8 * shorter:  # a ribbon: scaling all of it to keep its middle could be gigantic
            picture = _middle(picture, width, height, scale)
            width = height = shorter
        # Half rounds up, so that no side falls below the size.
        width, height = (max(size, math.floor(side * size / shorter + 0.5)) for side in (width, height))
    kind = _SCALERS.get(fit.partition("-")[2])
    if kind is None:
        kind = Interpolation.AREA if width * height < picture.width * picture.height else Interpolation.BICUBIC
    pixels = scale.reformat(picture, width, height, "rgb24", interpolation=kind).to_ndarray()
    pixels = np.rot90(pixels, turns)
    if size is not None:
        top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
        pixels = pixels[top : top + size, left : left + size]
    return np.ascontiguousarray(pixels, dtype=np.uint8)


def _middle(picture: VideoFrame, width: int, height: int, scale: VideoReformatter) -> VideoFrame:
    """The central square of a picture that is shown as ``width`` x ``height``."""
    pixels = scale.reformat(picture, width, height, "rgb24").to_ndarray()
    side = min(width, height)
    top, left = (height - side) // 2, (width - side) // 2
    square = np.ascontiguousarray(pixels[top : top + side, left : left + side], dtype=np.uint8)
    return av.VideoFrame.from_ndarray(square, format="rgb24")


def pixel_aspect(stated: Fraction | None) -> Fraction:
    """How much wider than high a stored pixel is shown; 1 where a file says nothing, or nonsense.

    Less than a hundredth is nothing, too: it is the rounding of a width to whole pixels.
    """
    if not stated or not Fraction(1, 8) <= stated <= 8 or abs(stated - 1) < Fraction(1, 100):
        return SQUARE
    return stated
