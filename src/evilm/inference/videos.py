"""A video in whichever way it is named, and the moments of it that are looked at."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from evilm.data import sampling
from evilm.types import Clip

if TYPE_CHECKING:
    from evilm.data.video import DecoderPool

    Video = str | Path | tuple[str | Path, float, float | None] | Clip


def to_clip(video: Video) -> Clip:
    """A video in whichever way it was named."""
    if isinstance(video, Clip):
        return video
    if isinstance(video, tuple):
        path, start, end = video
        return Clip(Path(path), float(start), None if end is None else float(end))
    return Clip(Path(video))


def frame_times(clip: Clip, count: int, decoders: DecoderPool) -> tuple[float, ...]:
    """The moments that are looked at: seconds in the file, or numbers of frames for a clip of stills.

    Raises:
        VideoError: the video cannot be opened.
    """
    if clip.frames:
        return tuple(float(i) for i in sampling.pick_frames(len(clip.frames), count))
    whole = decoders.duration(clip.path)
    end = whole if clip.end is None else min(clip.end, whole)
    return tuple(float(t) for t in sampling.frame_times(count, max(end - clip.start, 0.0), None, clip.start))
