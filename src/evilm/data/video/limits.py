"""What a file may cost, and which kinds of file are opened at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Mode = Literal["exact", "fast"]
# How a picture becomes square, and how it is scaled where that is prescribed; see ``pixels.fitted``.
Fit = Literal["crop", "squash", "crop-bicubic", "crop-bilinear", "squash-bicubic", "squash-bilinear"]

# FFmpeg's own names of the containers that may be opened. Each of them is one file: playlists, scripts, device names
# and picture sequences, which make FFmpeg open something else, are not among them. Bare bitstreams (H.264 without a
# container) are not either: they carry no time stamps to sample by.
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,gif"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a single file may claim and use.

    Attributes:
        max_pixels: width x height of a picture.
        max_seconds: the length a file states, or has.
        max_frames: the pictures a file states, or has.
        timeout: seconds for one question to a decoder process, which is killed when they are over; one that a busy
            machine keeps waiting is given up to four times as long.
        memory: bytes that a decoder process may take beyond what it has when it starts.
    """

    max_pixels: int = 16_777_216  # 4096 x 4096
    max_seconds: float = 24 * 3600.0
    max_frames: int = 999_999  # nine hours at 30 a second
    timeout: float = 8.0
    memory: int = 1 << 30


LIMITS = Limits()
