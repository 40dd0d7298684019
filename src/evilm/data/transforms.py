"""Random changes to the pixels of a training clip, drawn first and carried out after, so that they can be replayed.

A ``Plan`` says all of it in numbers. It is a function of (seed, epoch, sample), or, where ``augment.views`` limits how
many there are, of (seed, clip, view): then whatever was computed once of a view, such as its token labels, is right
whenever the view comes again.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from pydantic import Field

from evilm.config import Config
from evilm.data import rand_augment, seeds

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from evilm.types import Example

_SIDED = re.compile(r"\b(?:left|right)(?:s|ward|wards|most|hand|-hand|ly)?\b", re.IGNORECASE)


class AugmentConfig(Config):
    """Random changes to the pixels of a training clip, the same for all its frames."""

    crop_scale: float = Field(
        default=1.0, gt=0, le=1, description="smallest share of the picture's area that a crop keeps"
    )
    crop_ratio: tuple[float, float] = Field(
        default=(0.87, 1.15), description="least and greatest height / width of a crop"
    )
    shift: int = Field(default=0, ge=0, description="pixels by which a clip may be moved, edges repeated")
    hflip: bool = Field(default=False, description="mirror half of the clips")
    hflip_sided: bool = Field(default=False, description="also those whose texts say left or right, and then lie")
    randaugment_ops: int = Field(
        default=0, ge=0, le=5, description="RandAugment: changes drawn for each clip; needs torchvision"
    )
    randaugment_magnitude: int = Field(default=9, ge=0, le=30, description="how far each of them goes")
    cached_crops: int = Field(
        default=0, ge=0, description="different crops of a clip over all epochs, which cached labels need; 0: no limit"
    )

    @property
    def moves(self) -> bool:
        """Whether clips are cropped or shifted at random."""
        return self.crop_scale < 1 or self.shift > 0

    @property
    def active(self) -> bool:
        return self.moves or self.hflip or self.randaugment_ops > 0

    @property
    def crops(self) -> int | None:
        """How many different crops a clip can have; None where there is no limit, as with RandAugment."""
        if self.randaugment_ops:
            return None
        return (self.cached_crops or None) if self.moves else 1


@dataclass(frozen=True, slots=True)
class Plan:
    """What is done to every frame of one clip, in this order.

    Attributes:
        box: top, left, height and width in pixels of the part that is kept and scaled up again; None keeps all.
        shift: pixels down and to the right; edges are repeated.
        flip: whether left and right change places.
        changes: of RandAugment.
        view: which of the clip's ``views`` this is; 0 where they are not counted.
    """

    box: tuple[int, int, int, int] | None = None
    shift: tuple[int, int] = (0, 0)
    flip: bool = False
    changes: tuple[rand_augment.Change, ...] = ()
    view: int = 0


IDENTITY = Plan()


def draw(config: AugmentConfig, example: Example, size: int, seed: int, sample: int) -> Plan:
    """The plan for one sample of training.

    Args:
        config: what may be done.
        example: its clip and its texts.
        size: pixels of a frame's side.
        seed: of the run.
        sample: the seed of (seed, epoch, sample).
    """
    if not config.active:
        return IDENTITY
    rng = seeds.generator(sample, "augment")
    if config.moves and config.cached_crops:
        plan = view(config, example.clip.id, size, seed, int(rng.integers(config.cached_crops)))
    else:
        plan = _moved(config, size, rng)
    flip = config.hflip and rng.random() < 0.5 and (config.hflip_sided or not sided(example))
    changes = rand_augment.draw(
        config.randaugment_ops, config.randaugment_magnitude, seeds.generator(sample, "rand_augment")
    )
    return replace(plan, flip=flip, changes=changes)


def view(config: AugmentConfig, clip: str, size: int, seed: int, number: int) -> Plan:
    """View ``number`` of the clip of this id, not mirrored."""
    if not config.moves:
        return IDENTITY
    return replace(_moved(config, size, seeds.generator(seed, "view", clip, number)), view=number)


def sided(example: Example) -> bool:
    """Whether a text of the row tells left from right."""
    texts = (*example.captions, *example.choices, example.question or "", example.answer or "")
    return any(_SIDED.search(text) for text in texts)


def apply(frames: NDArray[np.uint8], plan: Plan) -> NDArray[np.uint8]:
    """Frames (T, H, W, 3) as the plan changes them; each frame for itself, so any selection of frames agrees."""
    height, width = frames.shape[1:3]
    if plan.box is not None:
        top, left, tall, wide = plan.box
        frames = _scaled(frames[:, top : top + tall, left : left + wide], height, width)
    if plan.shift != (0, 0):
        down, right = plan.shift
        rows: NDArray[np.int64] = (np.arange(height, dtype=np.int64) - down).clip(0, height - 1)
        columns: NDArray[np.int64] = (np.arange(width, dtype=np.int64) - right).clip(0, width - 1)
        frames = frames[:, rows][:, :, columns]
    frames = np.ascontiguousarray(frames[:, :, ::-1]) if plan.flip else frames
    return rand_augment.apply(frames, plan.changes) if plan.changes else frames


def _moved(config: AugmentConfig, size: int, rng: np.random.Generator) -> Plan:
    """A random crop and a random shift."""
    box, shift = None, (0, 0)
    if config.crop_scale < 1:
        share, ratio = np.sqrt(rng.uniform(config.crop_scale, 1)), np.sqrt(rng.uniform(*config.crop_ratio))
        tall, wide = (max(1, min(size, round(size * float(s)))) for s in (share * ratio, share / ratio))
        box = (int(rng.integers(0, size - tall + 1)), int(rng.integers(0, size - wide + 1)), tall, wide)
    if config.shift:
        down, right = (int(n) for n in rng.integers(-config.shift, config.shift + 1, size=2))
        shift = (down, right)
    return Plan(box, shift)


def _scaled(frames: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Frames (T, h, w, 3) at another size, by the scaler that also decoding uses."""
    scale = VideoReformatter()
    kind = Interpolation.AREA if height * width < frames.shape[1] * frames.shape[2] else Interpolation.BICUBIC
    scaled = np.empty((len(frames), height, width, 3), dtype=np.uint8)
    for i, frame in enumerate(frames):
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        scaled[i] = scale.reformat(picture, width, height, "rgb24", interpolation=kind, threads=1).to_ndarray()
    return scaled
