"""Limits of a video file, the formats that may be opened, and the errors for files beyond them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import av.error

from evilm.errors import VideoError

if TYPE_CHECKING:
    from pathlib import Path

Mode = Literal["exact", "fast"]
# How a frame becomes square, and which interpolation scales it; see ``pictures.to_rgb``.
Fit = Literal["crop", "squash", "crop-bicubic", "crop-bilinear", "squash-bicubic", "squash-bilinear"]

# FFmpeg's names of the containers that may be opened. Each of their demuxers reads one file only. Playlists, scripts,
# device names and numbered image sequences make FFmpeg open other files, so they are not in the list.
FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,gif,"
    "h264,hevc,ivf,mxf,rm,dv,yuv4mpegpipe"
)
RAW_FORMATS = ("h264", "hevc")  # video streams without a container: no time stamps, no index

FULL_HD = 1920 * 1080
_PIXELS_PER_MEMORY = 4096 * 4096  # the frame size that ``Limits.memory`` is for

# What PyAV raises about the content of a file: FFmpeg's errors, and numbers out of range.
FFMPEG_ERRORS = (av.error.FFmpegError, ValueError, OverflowError, ZeroDivisionError)


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a single file.

    Attributes:
        max_pixels: width x height of a frame.
        max_seconds: the length of the video.
        max_frames: the number of frames that the file states or has.
        timeout: seconds for one request to a decoder process, for frames of at most 1920x1080 pixels; larger frames
            get proportionally more. A process over its time is killed. One that waits for a busy machine gets up to
            four times as long.
        memory: bytes that a decoder process may allocate after its start, for frames of at most 4096x4096 pixels;
            larger frames get proportionally more.
    """

    max_pixels: int = 7680 * 4320
    max_seconds: float = 24 * 3600.0
    max_frames: int = 999_999  # nine hours at 30 frames a second
    timeout: float = 8.0
    memory: int = 1 << 30

    def timeout_factor(self, pixels: int) -> float:
        """How many times longer than usual frames of ``pixels`` may take."""
        return max(1.0, min(pixels, self.max_pixels) / FULL_HD)

    def memory_for(self, pixels: int) -> int:
        """Bytes that a process may allocate to decode frames of ``pixels``."""
        return round(self.memory * max(1.0, min(pixels, self.max_pixels) / _PIXELS_PER_MEMORY))

    def check_pixels(self, path: Path, width: int, height: int) -> None:
        """Raise ``too_large`` for a frame with more than ``max_pixels``."""
        if width * height > self.max_pixels:
            reason = f"{width}x{height} pixels a frame, more than the {self.max_pixels} allowed (--max-pixels)"
            raise VideoError(path, "too_large", reason)

    def check_length(self, path: Path, seconds: float | None, frames: int) -> None:
        """Raise ``too_long`` for a video with more seconds or frames than allowed."""
        if frames > self.max_frames:
            raise VideoError(path, "too_long", f"{frames} frames, more than the {self.max_frames} allowed")
        if seconds is not None and seconds > self.max_seconds:
            hours, allowed = seconds / 3600, self.max_seconds / 3600
            raise VideoError(path, "too_long", f"{hours:.1f} hours, more than the {allowed:g} allowed")

    def out_of_memory(self, path: Path, pixels: int = 0) -> VideoError:
        """The error for a file whose decoder reached the memory limit."""
        return VideoError(path, "too_large", f"needs more memory than the {self.memory_for(pixels) >> 20} MiB allowed")


LIMITS = Limits()
