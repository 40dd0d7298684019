"""One status for a file: what training would get from it, and whether it is all that the file states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from evilm.data import frames as sampling
from evilm.data.video.limits import LIMITS
from evilm.data.video.reader import VideoReader
from evilm.errors import VideoError, VideoStatus

if TYPE_CHECKING:
    from pathlib import Path

    from evilm.data.video.limits import Limits

STATUSES: tuple[VideoStatus, ...] = get_args(VideoStatus)
MOMENTS = 4  # the paper's frames a clip
_SIDE = 32  # pixels: enough to prove that the picture can be turned into RGB


@dataclass(frozen=True, slots=True)
class Finding:
    """What has become of a file.

    Attributes:
        status: one of ``STATUSES``.
        reason: what is wrong and the remedy; empty where nothing is.
    """

    status: VideoStatus
    reason: str = ""

    @property
    def readable(self) -> bool:
        """Whether it gives frames."""
        return self.status in ("ok", "partial")


def check(path: Path, limits: Limits = LIMITS) -> Finding:
    """Look at a file as training would, and at its end; in this process.

    ``ok`` means that the pictures in the middle of four equal parts and the last one were decoded, that nothing read on
    the way was damaged, and that the video is as long as it states; ``partial`` that it gives pictures, but falls short
    of that. What lies between those places is not looked at.
    """
    try:
        with VideoReader(path, limits) as reader:
            duration = reader.duration
            reader.frames_at([*sampling.segments(MOMENTS, duration), duration], size=_SIDE)
            return _complete(reader, duration)
    except VideoError as error:
        return Finding(error.status, error.reason)


def _complete(reader: VideoReader, duration: float) -> Finding:
    if reader.damaged:
        return Finding("partial", f"{reader.damaged} damaged packets or pictures on the way")
    # Sound may go on a little after the last picture, and the length of that one is often a guess.
    if reader.reached < duration - max(1.0, 0.05 * duration):
        return Finding("partial", f"its pictures end after {reader.reached:.1f} s of the {duration:.1f} s it states")
    return Finding("ok")
