"""Video files to pixels: safe opening, sampling by time, decoding in processes that can be killed.

    limits      limits of a file, formats that may be opened
    container   open a file: only this file, only known formats, nothing too large
    reader      VideoReader: the frames on screen at some times
    pictures    RGB, upright, square pixels, scaled; still pictures
    clips       read_clip, read_picture, describe, thumbnails, cut, in this process
    check       one status for a file and for each file of a folder
    child       the program of a decoder process
    process     a decoder process as its parent sees it
    pool        DecoderPool: all of the above in processes that can be killed

Read files from unknown sources with ``DecoderPool``; ``read_clip`` is for files that were written by this program.
"""

from __future__ import annotations

from evilm.data.video.check import Finding
from evilm.data.video.clips import VideoFacts, read_clip
from evilm.data.video.limits import FORMATS, LIMITS, Fit, Limits, Mode
from evilm.data.video.pool import DecoderPool
from evilm.data.video.reader import VideoReader

__all__ = [
    "FORMATS", "LIMITS", "DecoderPool", "Finding", "Fit", "Limits", "Mode", "VideoFacts", "VideoReader", "read_clip",
]  # fmt: skip
