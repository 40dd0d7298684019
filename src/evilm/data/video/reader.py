"""Frames of a video file by time.

``VideoReader`` returns the frame on screen at each of some times. It seeks only if a keyframe lies between two of the
times. It skips frames that no other frame refers to, once a later frame that is still due before the requested time
has been seen, so the result stays exact at any frame rate. It is written by hand, because decord and OpenCV crash,
hang or return other frames on damaged files and variable frame rates.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from fractions import Fraction
from typing import TYPE_CHECKING, Self, cast

import av
import av.error
import numpy as np
from av.video.reformatter import VideoReformatter

from evilm.data.video import container, packets
from evilm.data.video.limits import FFMPEG_ERRORS, LIMITS, RAW_FORMATS
from evilm.data.video.pictures import pixel_aspect, rgb_errors, to_rgb
from evilm.errors import VideoError

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from pathlib import Path

    from av import Packet, VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream
    from numpy.typing import NDArray

    from evilm.data.video.limits import Fit, Limits, Mode

_SEEK_GAP = Fraction(3)  # seconds: without an index of keyframes, seek only over a longer distance than this


class VideoReader:
    """A video file whose frames can be read by time.

    Use it in a ``with`` block. Times are seconds from the time stamp of the first frame. It decodes in this process;
    ``DecoderPool`` does the same in processes that can be killed, for files from unknown sources.

    Args:
        path: a regular file in one of the ``FORMATS``; no other file is opened.
        limits: limits of the file (``timeout`` and ``memory`` only matter in a pool).
        member: the name of a video within ``path``, which is then a tar file.

    Raises:
        VideoError: on opening or reading, with the status that fits.

    Attributes:
        damaged: number of damaged packets and frames since the last rewind.
        reached: end of the last frame that was decoded since the last rewind, in seconds.
        raw: whether the file is a video stream without a container, which states no times.
    """

    def __init__(self, path: Path, limits: Limits = LIMITS, member: str | None = None) -> None:
        self.path, self.limits, self._member = path, limits, member
        self._file = container.locate(path) if member is None else container.locate_in_tar(path, member)
        self._scaler = VideoReformatter()
        self._container, self._stream = self._open()
        self._base = self._stream.time_base or Fraction(1, av.time_base)
        self._first = self._stream.start_time or 0
        self.raw = self._container.format.name in RAW_FORMATS
        self._mode: Mode = "exact"
        self.damaged, self.reached, self._oversized = 0, 0.0, False
        self._start_reading(from_start=True)
        self._fresh = True
        # AVI has no time stamps of frames, and FFmpeg's are late by the delay of the decoder: look at the first frame.
        if self._container.format.name == "avi" and (frame := self._advance(self._target)) is not None:
            self._first = cast("int", frame.pts)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; safe to call twice."""
        self._frames.close()
        self._current = self._ahead = None
        self._container.close()

    @functools.cached_property
    def duration(self) -> float:
        """Seconds from the first frame to the end of the last, as the file states it, else measured by its packets."""
        if self.raw:
            length, count = self._scan.frames * self._length, self._scan.frames
        elif (stated := container.stated_seconds(self._container, self._stream)) is not None:
            return stated
        else:
            with VideoReader(self.path, self.limits, self._member) as other:
                length, count = packets.measure(self.path, other._packets(), self.limits)
        seconds = float(length * self._base)
        self.limits.check_length(self.path, seconds, count)
        return seconds

    def frames_at(
        self, times: Sequence[float] | NDArray[np.float64], mode: Mode = "exact",
        size: int | None = None, fit: Fit = "crop", height: int | None = None,
    ) -> NDArray[np.uint8]:  # fmt: skip
        """The frames on screen at ``times``, upright, with square pixels.

        A time before the first frame gives the first frame, one after the end the last.

        Args:
            times: (T,) seconds, in any order.
            mode: ``exact``, or ``fast``: the nearest keyframe at or before each time.
            size: None keeps the size of the video; else frames become ``size`` x ``size``.
            fit: ``crop`` scales the shorter side to ``size`` and keeps the centre; ``squash`` scales both sides.
            height: H at most, if ``size`` is None.

        Returns:
            (T, H, W, 3) uint8 RGB. All frames have the size of the first, also if the stream changes its size.

        Raises:
            VideoError: ``zero_frames``, ``corrupt``, ``encrypted``, ``unsupported`` or ``too_large``.
        """
        self._rewind()
        self._mode = mode
        requested = np.asarray(times, dtype=np.float64)
        results: dict[int, NDArray[np.uint8]] = {}
        shown: VideoFrame | None = None
        pixels: NDArray[np.uint8] | None = None
        for place in np.argsort(requested, kind="stable"):
            # The largest time stamp not after the time, with room for the float's rounding.
            target = math.floor(float(requested[place]) / float(self._base) + 1e-4)
            frame = self._on_screen(self._first + target)
            if frame is not shown or pixels is None:
                shape = pixels.shape[:2] if pixels is not None else None
                shown, pixels = frame, self._pixels(frame, size, fit, height, shape)
            results[int(place)] = pixels
        if not results:
            context = self._stream.codec_context
            return np.zeros((0, size or context.height, size or context.width, 3), dtype=np.uint8)
        return np.stack([results[place] for place in range(len(results))])

    def frames_between(
        self, start: float, end: float, shape: tuple[int, ...]
    ) -> Generator[tuple[float, NDArray[np.uint8]]]:
        """Time and pixels (H, W, 3) of the frame on screen at ``start`` and of all later ones before ``end``.

        Args:
            start, end: seconds.
            shape: (H, W) of the result.
        """
        self._rewind()
        self._mode = "exact"
        current = self._on_screen(self._first + math.floor(start / float(self._base) + 1e-4))
        self._target = -(2**62)
        for frame in itertools.chain([current], filter(None, [self._ahead]), self._frames):
            time = float((cast("int", frame.pts) - self._first) * self._base)
            if time >= end:
                return
            yield max(time, start), self._pixels(frame, None, "crop", None, shape)

    # Opening and positioning

    def _open(self) -> tuple[InputContainer, VideoStream]:
        return container.open_video(self.path, self._file, self.limits)

    @property
    def _length(self) -> int:
        """Time between two frames by the frame rate of the codec (25 if it states none), in units of the stream."""
        rate = self._stream.codec_context.framerate or 25
        return max(1, int(1 / ((rate if not self.raw or 1 <= rate <= 240 else 25) * self._base)))

    @functools.cached_property
    def _scan(self) -> packets.RawScan:
        """The packets of a raw stream."""
        with VideoReader(self.path, self.limits, self._member) as other:
            return packets.scan_raw(self.path, other._packets(), other._stream.codec_context, self.limits)

    def _start_reading(self, *, from_start: bool) -> None:
        """Forget all frames; the next ones come from the current position of the container."""
        self._from_start = from_start
        self._current: VideoFrame | None = None  # the latest frame that is not later than the target
        self._ahead: VideoFrame | None = None  # the first frame that is later
        self._target = -(2**62)
        self._step, self._number, self._resume = 0, -1, 0  # time without stamps; current packet; next one to decode
        self._frames = self._decode()

    def _rewind(self) -> None:
        """Go back to the first frame by opening the file again: not every format can seek there."""
        if not self._fresh:
            self._frames.close()
            self._container.close()
            self._container, self._stream = self._open()
            self._start_reading(from_start=True)
            self.damaged, self.reached = 0, 0.0
        self._fresh = False

    def _seek(self, target: int) -> bool:
        """Go to the keyframe at or before ``target``; False if the format cannot seek."""
        try:
            self._container.seek(target, stream=self._stream, backward=True)
        except FFMPEG_ERRORS:
            return False
        self._frames.close()
        self._start_reading(from_start=False)
        return True

    def _worth_seeking(self, target: int) -> bool:
        """Whether a keyframe lies between the frame that was decoded last and ``target``.

        A raw stream cannot seek; instead this notes up to which packet it need not decode.
        """
        latest = self._ahead or self._current
        place = self._first if latest is None else cast("int", latest.pts)
        far = target - place > _SEEK_GAP / self._base
        if self.raw and far and self._mode == "exact":
            self._resume = max(self._resume, self._scan.start_before(target // self._length))
        if self.raw or target <= place:
            return False
        index = self._stream.index_entries
        if len(index) < 2:
            return far
        return index.search_timestamp(target) > index.search_timestamp(place)

    # Decoding

    def _on_screen(self, target: int) -> VideoFrame:
        """The last frame whose time stamp is not after ``target`` (in units of the stream)."""
        if self._worth_seeking(target):
            self._seek(target)
        frame = self._advance(target)
        back = int(2 / self._base)
        while not self._from_start and (frame is None or cast("int", frame.pts) > target):
            # The seek went too far, or to where nothing can be decoded: go further back, at last to the start.
            if target - back <= self._first or not self._seek(target - back):
                self._rewind()
            frame = self._advance(target)
            back *= 8
        if frame is None and self._mode == "fast":  # there are no keyframes, or none that can be decoded alone
            self._mode = "exact"
            self._rewind()
            return self._on_screen(target)
        if frame is None and self._oversized:
            reason = f"a frame has more than the {self.limits.max_pixels} pixels allowed (--max-pixels)"
            raise VideoError(self.path, "too_large", reason)
        if frame is None:
            status = "corrupt" if self.damaged else "zero_frames"
            raise VideoError(self.path, status, f"no frame could be decoded ({self.damaged} damaged packets)")
        return frame

    def _advance(self, target: int) -> VideoFrame | None:
        """Decode up to ``target``; None if the stream ended without a frame."""
        self._target = target
        while True:
            if self._ahead is None:
                self._ahead = next(self._frames, None)
            if self._ahead is None:
                return self._current
            if cast("int", self._ahead.pts) > target:
                return self._current or self._ahead
            self._current, self._ahead = self._ahead, None

    def _decode(self) -> Generator[VideoFrame]:
        """Frames in order of time, from the current position to the end; damaged packets are counted."""
        context = self._stream.codec_context
        latest, fast = None, self._mode == "fast"
        for packet in self._raw_packets() if self.raw else self._keyframes() if fast else self._packets():
            stamp = None if packet is None else packet.pts
            spare = stamp is not None and latest is not None and stamp < latest
            context.skip_frame = "NONKEY" if fast else "NONREF" if spare else "DEFAULT"
            if stamp is not None and stamp <= self._target:
                latest = stamp if latest is None else max(latest, stamp)
            try:
                frames = context.decode(packet)
            except EOFError:
                return
            except MemoryError:
                raise self.limits.out_of_memory(self.path) from None
            except FFMPEG_ERRORS as error:
                self.damaged += 1
                # FFmpeg reports more than max_pixels as an invalid argument, and forgets the size.
                self._oversized |= isinstance(error, av.error.ArgumentError) and not context.width
                continue
            for frame in frames:
                if self.raw and not fast:
                    frame.pts = self._step
                elif frame.pts is None:
                    frame.pts = frame.dts if frame.dts is not None else self._step
                self._step = frame.pts + (frame.duration if frame.duration and not self.raw else self._length)
                self.damaged += frame.is_corrupt
                self.reached = max(self.reached, float((self._step - self._first) * self._base))
                yield frame

    def _raw_packets(self) -> Generator[Packet[VideoStream] | None]:
        """Packets of a raw stream, without those that need not be decoded; keyframes alone get their times here."""
        fast = self._mode == "fast"
        for packet in self._keyframes() if fast else self._packets():
            if packet is not None and fast:
                packet.pts = self._number // self._scan.per_frame * self._length
            elif packet is not None and 0 < self._number == self._resume:
                self._stream.codec_context.flush_buffers()
                self._step = self._number // self._scan.per_frame * self._length
            if packet is None or self._number >= self._resume:
                yield packet

    def _keyframes(self) -> Generator[Packet[VideoStream] | None]:
        """Packets from the first keyframe on, without all that are no keyframes: not every decoder can skip them."""
        keyframe_seen = False
        for packet in self._packets():
            if packet is None or packet.is_keyframe or not keyframe_seen:
                yield packet
            keyframe_seen |= packet is not None and packet.is_keyframe

    def _packets(self) -> Generator[Packet[VideoStream] | None]:
        """Packets of the video stream, then None to flush the decoder, also if the file ends early."""
        # Closed explicitly: PyAV's generator leaks a packet and 1 byte if it is only dropped.
        demux = cast("Generator[Packet[VideoStream]]", self._container.demux(self._stream))
        with contextlib.closing(demux) as stream:
            while True:
                try:
                    packet = next(stream, None)
                except MemoryError:
                    raise self.limits.out_of_memory(self.path) from None
                except FFMPEG_ERRORS:
                    self.damaged += 1
                    packet = None
                if packet is None or (not packet.size and packet.dts is None):
                    yield None
                    return
                if packet.has_sidedata("encryption_info"):
                    raise container.encrypted(self.path)
                self.damaged += packet.is_corrupt
                if packet.size:  # AVI marks a frame that stays on screen by a packet of no bytes
                    self._number += 1
                    yield packet

    # Pixels

    def _pixels(
        self, frame: VideoFrame, size: int | None, fit: Fit, height: int | None, shape: tuple[int, ...] | None
    ) -> NDArray[np.uint8]:
        """(H, W, 3) of a frame; see ``to_rgb``."""
        aspect = pixel_aspect(self._stream.sample_aspect_ratio)
        self.limits.check_pixels(self.path, frame.width, frame.height)
        if size is None:
            self.limits.check_pixels(self.path, round(frame.width * aspect), frame.height)
        with rgb_errors(self.path, self.limits):
            return to_rgb(frame, size, fit, self._scaler, aspect=aspect, height=height, shape=shape)
