"""What the packets of a video stream tell: its length where none is stated, and where a raw stream can be entered.

Raw streams (H.264 and HEVC without a container) have neither time stamps nor an index, so their packets are counted;
hardly any of them is decoded.
"""

from __future__ import annotations

import contextlib
import re
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from evilm.data.video.limits import FFMPEG_ERRORS

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from av import Packet
    from av.video.codeccontext import VideoCodecContext
    from av.video.stream import VideoStream

    from evilm.data.video.limits import Limits

_TESTED = 64  # packets that are decoded to find out whether a packet is a frame or a field
# The slice of an IDR picture, which no picture before it or behind it in the file is displayed across.
_IDR = {"h264": re.compile(rb"\x00\x00\x01[\x25\x45\x65]"), "hevc": re.compile(rb"\x00\x00\x01[\x26\x28]\x01")}


@dataclass
class RawScan:
    """What the packets of a raw stream tell.

    Attributes:
        packets: number of them.
        per_frame: packets a frame: 2 if each holds a field.
        starts: numbers of the packets at which decoding can start exactly, increasing.
    """

    packets: int = 0
    per_frame: int = 1
    starts: list[int] = field(default_factory=lambda: [])

    @property
    def frames(self) -> int:
        """Number of frames."""
        return self.packets // self.per_frame

    def start_before(self, frame: int) -> int:
        """The number of the last packet at which decoding can start to reach a frame; 0 for the first."""
        place = bisect_right(self.starts, frame * self.per_frame)
        return self.starts[place - 1] if place else 0


def measure(path: Path, packets: Iterable[Packet[VideoStream] | None], limits: Limits) -> tuple[int, int]:
    """The time from the first frame to the end of the last by their time stamps, and the number of packets.

    Raises:
        VideoError: ``too_long``.
    """
    first, last, count = None, 0, 0
    for packet in packets:
        if packet is None or packet.pts is None:
            continue
        count += 1
        limits.check_length(path, None, count)
        first = packet.pts if first is None else min(first, packet.pts)
        last = max(last, packet.pts + (packet.duration or 0))
    return (0 if first is None else max(last - first, 0)), count


def scan_raw(
    path: Path, packets: Iterable[Packet[VideoStream] | None], context: VideoCodecContext, limits: Limits
) -> RawScan:
    """Read all packets of a raw stream.

    Args:
        path: for error messages.
        packets: of the stream, from its start.
        context: decoder of the stream.
        limits: of the file.

    Raises:
        VideoError: ``too_long``.
    """
    result, decoded, pattern = RawScan(), 0, _IDR.get(context.name, _IDR["h264"])
    for packet in packets:
        if result.packets < _TESTED:
            with contextlib.suppress(*FFMPEG_ERRORS, EOFError):
                decoded += len(context.decode(packet))
        if packet is None:
            break
        if packet.is_keyframe and pattern.search(packet):
            result.starts.append(result.packets)
        result.packets += 1
        limits.check_length(path, None, result.packets)
    # A decoder may keep up to 16 frames back, so half as many frames as packets means one field a packet.
    if decoded <= 0.6 * min(result.packets, _TESTED):
        result.per_frame = 2
        result.starts = [number for number in result.starts if number % 2 == 0]
    return result
