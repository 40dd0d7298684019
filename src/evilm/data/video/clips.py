"""The frames of a clip, whichever of its three forms it has: a file, a part of one, or still pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from av.video.reformatter import VideoReformatter

from evilm.data import frames as sampling
from evilm.data import stills
from evilm.data.video import faults
from evilm.data.video.limits import LIMITS
from evilm.data.video.pixels import fitted
from evilm.data.video.reader import VideoReader
from evilm.errors import VideoError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from evilm.data.video.limits import Fit, Limits, Mode
    from evilm.types import Clip


def read_clip(
    clip: Clip, count: int, size: int, rng: np.random.Generator | None = None,
    mode: Mode = "exact", fit: Fit = "crop", limits: Limits = LIMITS,
) -> NDArray[np.uint8]:  # fmt: skip
    """``count`` frames of a clip by the rule of ``frames``, decoded in this process.

    Args:
        clip: a video file, a part of one, or still frames (of which some repeat where they are fewer than ``count``).
        count: T.
        size: H = W in pixels.
        rng: random moments (training); None takes the middles (evaluation).
        mode, fit: as in ``VideoReader.frames_at``.
        limits: what the file may claim.

    Returns:
        (T, size, size, 3) uint8 RGB.

    Raises:
        VideoError: the clip gives no frames.
    """
    return frames_of(clip, sampling.draw(count, rng), size, mode, fit, limits)


def frames_of(
    clip: Clip, within: NDArray[np.float64], size: int, mode: Mode, fit: Fit, limits: Limits
) -> NDArray[np.uint8]:
    """``read_clip`` where the random part of the rule is done: ``within`` (T,) is what ``frames.draw`` answered."""
    member = clip.frames[0] if clip.frames and not clip.frames[0].lower().endswith(stills.SUFFIXES) else None
    if clip.frames and member is None:
        return _stills(clip, [int(i) for i in sampling.chosen(len(clip.frames), within)], size, fit, limits)
    with VideoReader(clip.path, limits, member) as reader:
        whole = reader.duration
        if clip.start and clip.start >= whole:
            raise VideoError(clip.path, "zero_frames", f"nothing from {clip.start:g} s on: it lasts {whole:g} s")
        end = whole if clip.end is None else min(clip.end, whole)
        times = sampling.moments(within, max(end - clip.start, 0.0), clip.start)
        return reader.frames_at(times, mode, size, fit)


def _stills(clip: Clip, chosen: list[int], size: int, fit: Fit, limits: Limits) -> NDArray[np.uint8]:
    needed = sorted(set(chosen))
    scale = VideoReformatter()
    pixels: dict[int, NDArray[np.uint8]] = {}
    for i, data in zip(needed, stills.read(clip.path, [clip.frames[i] for i in needed]), strict=True):
        picture = stills.decode(clip.path, clip.frames[i], data, limits.max_pixels)
        try:
            pixels[i] = fitted(picture, size, fit, scale)
        except MemoryError:
            raise faults.out_of_memory(clip.path, limits) from None
        except faults.FAULTS as error:
            raise VideoError(clip.path, "unsupported", f"frame {clip.frames[i]!r} gives no RGB: {error}") from None
    return np.stack([pixels[i] for i in chosen])
