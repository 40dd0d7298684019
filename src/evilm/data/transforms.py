"""Random augmentation of training clips: drawn first, applied later, so that it can be replayed.

A ``Plan`` holds all drawn numbers. It is a function of (seed, epoch, sample), or, if ``augment.cached_crops`` limits
the number of different crops, of (seed, clip, crop): outputs cached for a crop are valid whenever the crop comes
again. This replay is why the augmentation is not torchvision's, which draws while it applies.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from pydantic import Field, field_validator

from evilm.config import Config
from evilm.data import sampling

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from evilm.types import Example

_SIDED = re.compile(r"\b(?:left|right)(?:s|ward|wards|most|hand|-hand|ly)?\b", re.IGNORECASE)

STEPS = 30  # largest magnitude of RandAugment
Change = tuple[str, float]  # an operation of RandAugment and its amount

# RandAugment (arXiv 1909.13719) with the operations and 31 steps of torchvision's ``v2.RandAugment``: the largest
# amount of each, and whether half of the draws are negative. Translations are fractions of a side.
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


class AugmentConfig(Config):
    """Random augmentation of a training clip, the same for all its frames."""

    crop_scale: float = Field(
        default=1.0, gt=0, le=1, description="smallest area of a crop, as a fraction of the frame"
    )
    crop_ratio: tuple[float, float] = Field(
        default=(0.87, 1.15),
        description="range of the height / width of a crop; (0.5, 2.0) for photographs that were squashed to squares",
    )
    shift: int = Field(default=0, ge=0, description="largest translation in pixels; edges are repeated")
    hflip: bool = Field(default=False, description="mirror half of the clips")
    hflip_sided: bool = Field(
        default=False, description="also mirror clips whose texts contain left or right, which become wrong"
    )
    randaugment_ops: int = Field(
        default=0, ge=0, le=5, description="RandAugment operations of each clip; needs torchvision"
    )
    randaugment_magnitude: int = Field(default=9, ge=0, le=STEPS, description="strength of each operation")
    cached_crops: int = Field(
        default=0,
        ge=0,
        description="number of different crops of a clip over all epochs, required by cached labels; 0: unlimited",
    )

    @field_validator("crop_ratio")
    @classmethod
    def _check_ratio(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1] < math.inf:
            raise ValueError("two positive numbers are needed, the smaller one first")
        return value

    @property
    def moves(self) -> bool:
        """Whether clips are cropped or shifted."""
        return self.crop_scale < 1 or self.shift > 0

    @property
    def active(self) -> bool:
        return self.moves or self.hflip or self.randaugment_ops > 0

    @property
    def crops(self) -> int | None:
        """The number of different crops of a clip; None if unlimited, as with RandAugment."""
        if self.randaugment_ops:
            return None
        return (self.cached_crops or None) if self.moves else 1


@dataclass(frozen=True, slots=True)
class Plan:
    """Changes to every frame of one clip, in this order.

    Attributes:
        box: top, left, height and width in pixels of the crop, which is resized to the frame; None for the whole frame.
        shift: pixels down and to the right; edges are repeated.
        flip: mirror left and right.
        changes: operations of RandAugment, for ``apply_randaugment``.
        crop: number of the crop among ``cached_crops``; 0 if their number is unlimited.
    """

    box: tuple[int, int, int, int] | None = None
    shift: tuple[int, int] = (0, 0)
    flip: bool = False
    changes: tuple[Change, ...] = ()
    crop: int = 0


IDENTITY = Plan()


def draw(config: AugmentConfig, example: Example, size: int, seed: int, sample: int) -> Plan:
    """Draw the plan of one training sample.

    Args:
        config: what may be drawn.
        example: its clip and texts.
        size: frame height and width in pixels.
        seed: of the run.
        sample: the seed of (seed, epoch, sample).
    """
    if not config.active:
        return IDENTITY
    rng = sampling.generator(sample, "augment")
    if config.moves and config.cached_crops:
        plan = crop_plan(config, example.clip.id, size, seed, int(rng.integers(config.cached_crops)))
    else:
        plan = _draw_crop(config, size, rng)
    flip = config.hflip and rng.random() < 0.5 and (config.hflip_sided or not names_side(example))
    changes = draw_randaugment(
        config.randaugment_ops, config.randaugment_magnitude, sampling.generator(sample, "rand_augment")
    )
    return replace(plan, flip=flip, changes=changes)


def crop_plan(config: AugmentConfig, clip: str, size: int, seed: int, number: int) -> Plan:
    """Crop ``number`` of the clip with this id, not mirrored."""
    if not config.moves:
        return IDENTITY
    return replace(_draw_crop(config, size, sampling.generator(seed, "view", clip, number)), crop=number)


def _draw_crop(config: AugmentConfig, size: int, rng: np.random.Generator) -> Plan:
    box, shift = None, (0, 0)
    if config.crop_scale < 1:
        side, ratio = np.sqrt(rng.uniform(config.crop_scale, 1)), np.sqrt(rng.uniform(*config.crop_ratio))
        height, width = (max(1, min(size, round(size * float(s)))) for s in (side * ratio, side / ratio))
        box = (int(rng.integers(0, size - height + 1)), int(rng.integers(0, size - width + 1)), height, width)
    if config.shift:
        down, right = (int(n) for n in rng.integers(-config.shift, config.shift + 1, size=2))
        shift = (down, right)
    return Plan(box, shift)


def draw_randaugment(count: int, magnitude: int, rng: np.random.Generator) -> tuple[Change, ...]:
    """Draw ``count`` operations of RandAugment at a magnitude of 0 to 30; one may come more than once."""
    names = list(RANGES)
    drawn: list[Change] = []
    for _ in range(count):
        name = names[int(rng.integers(len(names)))]
        largest, signed = RANGES[name]
        negative = bool(rng.random() < 0.5)
        drawn.append((name, largest * magnitude / STEPS * (-1 if signed and negative else 1)))
    return tuple(drawn)


def names_side(example: Example) -> bool:
    """Whether a text of the row contains left or right."""
    texts = (*example.captions, *example.choices, example.question or "", example.answer or "")
    return any(_SIDED.search(text) for text in texts)


def apply(frames: NDArray[np.uint8], plan: Plan) -> NDArray[np.uint8]:
    """Crop, shift and mirror frames (T, H, W, 3), each by itself, so that any selection of frames agrees.

    RandAugment is separate: it needs torch, which a decoder process cannot load within its memory limit.
    """
    height, width = frames.shape[1:3]
    if plan.box is not None:
        top, left, tall, wide = plan.box
        frames = _resize(frames[:, top : top + tall, left : left + wide], height, width)
    if plan.shift != (0, 0):
        down, right = plan.shift
        rows: NDArray[np.int64] = (np.arange(height, dtype=np.int64) - down).clip(0, height - 1)
        columns: NDArray[np.int64] = (np.arange(width, dtype=np.int64) - right).clip(0, width - 1)
        frames = frames[:, rows][:, :, columns]
    return np.ascontiguousarray(frames[:, :, ::-1]) if plan.flip else frames


def _resize(frames: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Resize frames (T, h, w, 3) with the scaler that decoding uses."""
    scale = VideoReformatter()
    method = Interpolation.AREA if height * width < frames.shape[1] * frames.shape[2] else Interpolation.BICUBIC
    resized = np.empty((len(frames), height, width, 3), dtype=np.uint8)
    for i, frame in enumerate(frames):
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        resized[i] = scale.reformat(picture, width, height, "rgb24", interpolation=method, threads=1).to_ndarray()
    return resized


def apply_randaugment(frames: NDArray[np.uint8], changes: Sequence[Change]) -> NDArray[np.uint8]:
    """Apply operations of RandAugment to frames (T, H, W, 3), in order."""
    import torch
    from torchvision.transforms.v2 import functional as F

    def affine(
        pixels: Tensor, across: float = 0.0, down: float = 0.0, shear: tuple[float, float] = (0.0, 0.0)
    ) -> Tensor:
        shift: list[float] = [int(across * pixels.shape[-1]), int(down * pixels.shape[-2])]
        degrees = [math.degrees(math.atan(each)) for each in shear]
        centre = [0.0, 0.0] if any(shear) else None  # as torchvision: it shears about the corner
        return F.affine(pixels, angle=0.0, translate=shift, scale=1.0, shear=degrees, center=centre)

    operations: dict[str, Callable[[Tensor, float], Tensor]] = {
        "identity": lambda pixels, _: pixels,
        "shear_x": lambda pixels, amount: affine(pixels, shear=(amount, 0.0)),
        "shear_y": lambda pixels, amount: affine(pixels, shear=(0.0, amount)),
        "translate_x": lambda pixels, amount: affine(pixels, across=amount),
        "translate_y": lambda pixels, amount: affine(pixels, down=amount),
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
    pixels = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
    for name, amount in changes:
        pixels = operations[name](pixels, amount)
    return np.ascontiguousarray(pixels.permute(0, 2, 3, 1).numpy())
