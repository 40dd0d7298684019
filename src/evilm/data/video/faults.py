"""What can be wrong with a video, and how it is said: each an error with its status."""

from __future__ import annotations

from typing import TYPE_CHECKING

import av.error

from evilm.errors import VideoError

if TYPE_CHECKING:
    from pathlib import Path

    from evilm.data.video.limits import Limits

# What PyAV raises about a file's content: FFmpeg's complaints, and numbers that do not fit where they are put.
FAULTS = (av.error.FFmpegError, ValueError, OverflowError, ZeroDivisionError)


def check_pixels(path: Path, width: int, height: int, limits: Limits) -> None:
    """Raise ``too_large`` where a picture has too many pixels."""
    if width * height > limits.max_pixels:
        reason = f"{width}x{height} pixels a frame, more than the {limits.max_pixels} allowed"
        raise VideoError(path, "too_large", reason)


def too_long(path: Path, seconds: float, limits: Limits) -> VideoError:
    """It lasts, or says it lasts, too long."""
    hours, allowed = seconds / 3600, limits.max_seconds / 3600
    return VideoError(path, "too_long", f"{hours:.1f} hours, more than the {allowed:g} allowed")


def too_many_frames(path: Path, frames: int, limits: Limits) -> VideoError:
    """It has, or says it has, too many pictures."""
    return VideoError(path, "too_long", f"{frames} frames, more than the {limits.max_frames} allowed")


def out_of_memory(path: Path, limits: Limits) -> VideoError:
    """A decoder process has met its limit of memory."""
    return VideoError(path, "too_large", f"needs more memory than the {limits.memory >> 20} MiB allowed")


def encrypted(path: Path) -> VideoError:
    """Its pictures may be decoded, but would show noise."""
    return VideoError(path, "encrypted", "its pictures are encrypted (DRM); decrypt it first")
