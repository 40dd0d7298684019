"""Video files to pixels: opening what nobody vouches for, sampling by time stamp, decoding where it can be killed.

    limits    what a file may cost, and which formats are opened
    faults    what can be wrong with a video, and how it is said
    opening   the right kind of file, format and protocol; nothing too large
    reader    VideoReader: the pictures on screen at some moments
    pixels    upright, square pixels, scaled
    clips     read_clip: the frames of a clip, in this process
    check     one status for a file
    confine   what such a process may no longer do
    child     the program of a decoder process
    process   such a process, as its parent sees it
    starvation  whether a busy machine has kept such a process waiting
    pool      DecoderPool: read_clip, frames_at and check in processes that may be killed

A file from the world outside goes through ``DecoderPool``; what we wrote ourselves may go through ``read_clip``.
"""

from __future__ import annotations

from evilm.data.video.check import Finding
from evilm.data.video.clips import read_clip
from evilm.data.video.limits import FORMATS, LIMITS, Fit, Limits, Mode
from evilm.data.video.pool import DecoderPool
from evilm.data.video.reader import VideoReader

__all__ = ["FORMATS", "LIMITS", "DecoderPool", "Finding", "Fit", "Limits", "Mode", "VideoReader", "read_clip"]
