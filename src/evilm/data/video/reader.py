"""Video files to pixels, by time stamp.

``VideoReader`` gives the frame that is on screen at each of some moments. It seeks only where a keyframe lies between
two moments, and spares the decoder pictures that nothing needs: a picture no other one refers to is skipped once a
later picture that is still due before the moment has been seen, so the answer stays exact at any frame rate.
"""

from __future__ import annotations

import contextlib
import math
from fractions import Fraction
from typing import TYPE_CHECKING, Self, cast

import av
import av.error
import numpy as np
from av.video.reformatter import VideoReformatter

from evilm.data.video import faults, opening
from evilm.data.video.limits import LIMITS
from evilm.data.video.pixels import fitted, pixel_aspect
from evilm.errors import VideoError

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from pathlib import Path

    from av import Packet, VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream
    from numpy.typing import NDArray

    from evilm.data.video.limits import Fit, Limits, Mode

_SEEK_GAP = Fraction(3)  # seconds: without an index of keyframes, a longer way than this is worth a seek


class VideoReader:
    """A video file that answers "which picture is on screen at this moment?".

    Use it in a ``with`` block. Moments are seconds from the first picture's time stamp. It decodes in this process: for
    files that nobody vouches for there is ``DecoderPool``, which does the same where it can be killed.

    Args:
        path: a regular file in one of the ``FORMATS``; nothing but this file is opened, whatever it claims to be.
        limits: what the file may claim (its ``timeout`` and ``memory`` are a pool's business).
        member: ``path`` is a tar file, and this is the name of the video in it.

    Raises:
        VideoError: on opening or reading, with the status that fits.

    Attributes:
        damaged: packets and pictures that were found damaged since the last rewind.
        reached: seconds up to which pictures have been seen, since the last rewind.
    """

    def __init__(self, path: Path, limits: Limits = LIMITS, member: str | None = None) -> None:
        self.path = path
        self.limits = limits
        self._file = opening.regular_file(path) if member is None else opening.member_of_tar(path, member)
        self._scale = VideoReformatter()
        self._container, self._stream = self._open()
        self._base = self._stream.time_base or Fraction(1, av.time_base)
        self._first = self._stream.start_time or 0
        self._mode: Mode = "exact"
        self.damaged, self.reached, self._oversized = 0, 0.0, False
        self._start_reading(from_start=True)
        self._fresh = True
        # AVI has no time stamps of pictures, and FFmpeg's are late by as many as the decoder holds back: look.
        if self._container.format.name == "avi" and (picture := self._advance(self._target)) is not None:
            self._first = cast("int", picture.pts)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file; safe to call twice."""
        self._pictures.close()
        self._current = self._ahead = None
        self._container.close()

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels as stored, before rotation."""
        return self._stream.codec_context.height, self._stream.codec_context.width

    @property
    def stated(self) -> float | None:
        """Seconds that the file says it lasts; None where it does not say."""
        return opening.stated_seconds(self._container, self._stream)

    @property
    def duration(self) -> float:
        """Seconds from the first picture to the end of the last, as the file states it, else as its packets do."""
        stated = self.stated
        return self._scan() if stated is None else stated

    def frames_at(
        self, times: Sequence[float] | NDArray[np.float64], mode: Mode = "exact",
        size: int | None = None, fit: Fit = "crop",
    ) -> NDArray[np.uint8]:  # fmt: skip
        """The pictures on screen at ``times``, upright, their pixels square.

        A moment before the first picture gives the first, one after the end the last.

        Args:
            times: (T,) seconds, in any order.
            mode: ``exact``, or ``fast``: the nearest keyframe at or before each moment.
            size: None keeps the picture's size; else pictures become ``size`` x ``size``.
            fit: ``crop`` scales the shorter side to ``size`` and keeps the centre; ``squash`` keeps all of the picture.

        Returns:
            (T, H, W, 3) uint8 RGB.

        Raises:
            VideoError: ``zero_frames``, ``corrupt``, ``encrypted``, ``unsupported`` or ``too_large``.
        """
        self._rewind()
        self._mode = mode
        moments = np.asarray(times, dtype=np.float64)
        pictures: dict[int, NDArray[np.uint8]] = {}
        shown: VideoFrame | None = None
        pixels: NDArray[np.uint8] | None = None
        for place in np.argsort(moments, kind="stable"):
            picture = self._on_screen(self._first + _ticks(float(moments[place]), self._base))
            if picture is not shown or pixels is None:
                shown, pixels = picture, self._pixels(picture, size, fit, pixels)
            pictures[int(place)] = pixels
        if not pictures:
            return np.zeros((0, size or self.size[0], size or self.size[1], 3), dtype=np.uint8)
        return np.stack([pictures[place] for place in range(len(pictures))])

    # Opening and positioning

    def _open(self) -> tuple[InputContainer, VideoStream]:
        return opening.open_video(self.path, self._file, self.limits)

    def _start_reading(self, *, from_start: bool) -> None:
        """Forget all pictures; the next ones come from where the container stands now."""
        self._from_start = from_start
        self._current: VideoFrame | None = None  # the latest picture that is not later than the moment
        self._ahead: VideoFrame | None = None  # the first picture that is
        self._target = -(2**62)
        self._pictures = self._decode()

    def _rewind(self) -> None:
        """Back to the first picture, by opening the file again: not every format can seek there."""
        if not self._fresh:
            self._pictures.close()
            self._container.close()
            self._container, self._stream = self._open()
            self._start_reading(from_start=True)
            self.damaged, self.reached = 0, 0.0
        self._fresh = False

    def _seek(self, target: int) -> bool:
        """Stand at the keyframe at or before ``target``; False where the format cannot."""
        try:
            self._container.seek(target, stream=self._stream, backward=True)
        except faults.FAULTS:
            return False
        self._pictures.close()
        self._start_reading(from_start=False)
        return True

    def _worth_seeking(self, target: int) -> bool:
        """Whether a keyframe lies between the place that has been decoded to and ``target``."""
        here = self._ahead or self._current
        place = self._first if here is None else cast("int", here.pts)
        if target <= place:
            return False
        index = self._stream.index_entries
        if len(index) < 2:
            return target - place > _SEEK_GAP / self._base
        return index.search_timestamp(target) > index.search_timestamp(place)

    # Decoding

    def _on_screen(self, target: int) -> VideoFrame:
        """The last picture whose time stamp is not after ``target`` (in units of the stream)."""
        if self._worth_seeking(target):
            self._seek(target)
        picture = self._advance(target)
        back = int(2 / self._base)
        while not self._from_start and (picture is None or cast("int", picture.pts) > target):
            # The seek landed too late, or where nothing can be decoded: further back, at last from the start.
            if target - back <= self._first or not self._seek(target - back):
                self._rewind()
            picture = self._advance(target)
            back *= 8
        if picture is None and self._oversized:
            raise VideoError(
                self.path, "too_large", f"a frame has more than the {self.limits.max_pixels} pixels allowed"
            )
        if picture is None:
            status = "corrupt" if self.damaged else "zero_frames"
            raise VideoError(self.path, status, f"no frame could be decoded ({self.damaged} damaged packets)")
        return picture

    def _advance(self, target: int) -> VideoFrame | None:
        """Decode on to ``target``; None where the stream ended without a picture."""
        self._target = target
        while True:
            if self._ahead is None:
                self._ahead = next(self._pictures, None)
            if self._ahead is None:
                return self._current
            if cast("int", self._ahead.pts) > target:
                return self._current or self._ahead
            self._current, self._ahead = self._ahead, None

    def _decode(self) -> Generator[VideoFrame]:
        """Pictures in order of time from here to the end; damaged packets are counted and passed over."""
        context = self._stream.codec_context
        latest, step, keyed = None, 0, False
        for packet in self._packets():
            stamp = None if packet is None else packet.pts
            if self._mode == "fast" and packet is not None:  # not every decoder heeds `skip_frame`
                if keyed and not packet.is_keyframe:
                    continue
                keyed = keyed or packet.is_keyframe
            spare = stamp is not None and latest is not None and stamp < latest
            context.skip_frame = "NONKEY" if self._mode == "fast" else "NONREF" if spare else "DEFAULT"
            if stamp is not None and stamp <= self._target:
                latest = stamp if latest is None else max(latest, stamp)
            try:
                pictures = context.decode(packet)
            except EOFError:
                return
            except MemoryError:
                raise faults.out_of_memory(self.path, self.limits) from None
            except faults.FAULTS as error:
                self.damaged += 1
                # What FFmpeg says to more than max_pixels, and then it forgets the size.
                self._oversized |= isinstance(error, av.error.ArgumentError) and not context.width
                continue
            for picture in pictures:
                if picture.pts is None:
                    picture.pts = picture.dts if picture.dts is not None else step
                length = picture.duration or max(1, int(1 / ((context.framerate or 25) * self._base)))
                step = picture.pts + length
                self.damaged += picture.is_corrupt
                self.reached = max(self.reached, float((step - self._first) * self._base))
                yield picture

    def _packets(self) -> Generator[Packet[VideoStream] | None]:
        """Packets of the video stream, then None: time to flush the decoder, also where the file breaks off."""
        # Closed, for PyAV's own generator loses a packet and 1 byte where it is just let go of.
        demux = cast("Generator[Packet[VideoStream]]", self._container.demux(self._stream))
        with contextlib.closing(demux) as packets:
            while True:
                try:
                    packet = next(packets, None)
                except MemoryError:
                    raise faults.out_of_memory(self.path, self.limits) from None
                except faults.FAULTS:
                    self.damaged += 1
                    packet = None
                if packet is None or (not packet.size and packet.dts is None):
                    yield None
                    return
                if packet.has_sidedata("encryption_info"):
                    raise faults.encrypted(self.path)
                self.damaged += packet.is_corrupt
                if packet.size:  # AVI marks a picture that stays on screen by a packet of no bytes
                    yield packet

    def _scan(self) -> float:
        """Seconds by the time stamps of all packets, without decoding any."""
        first, last, count = None, 0, 0
        with VideoReader(self.path, self.limits) as other:
            for packet in other._packets():
                if packet is None or packet.pts is None:
                    continue
                count += 1
                if count > self.limits.max_frames:
                    raise faults.too_many_frames(self.path, count, self.limits)
                first = packet.pts if first is None else min(first, packet.pts)
                last = max(last, packet.pts + (packet.duration or 0))
        seconds = 0.0 if first is None else float((last - first) * self._base)
        if seconds > self.limits.max_seconds:
            raise faults.too_long(self.path, seconds, self.limits)
        return max(seconds, 0.0)

    # Pixels

    def _pixels(
        self, picture: VideoFrame, size: int | None, fit: Fit, like: NDArray[np.uint8] | None
    ) -> NDArray[np.uint8]:
        """(H, W, 3) of a picture; ``like`` holds its size fixed where a stream changes it on the way."""
        aspect = pixel_aspect(self._stream.sample_aspect_ratio)
        faults.check_pixels(self.path, picture.width, picture.height, self.limits)
        if size is None:
            faults.check_pixels(self.path, round(picture.width * aspect), picture.height, self.limits)
        try:
            pixels = fitted(picture, size, fit, self._scale, aspect=aspect)
            if like is not None and like.shape != pixels.shape:
                pixels = fitted(picture, None, fit, self._scale, shape=like.shape[:2])
        except (MemoryError, av.error.BlockingIOError):  # EAGAIN: no memory for the scaler's thread
            raise faults.out_of_memory(self.path, self.limits) from None
        except faults.FAULTS as error:
            raise VideoError(self.path, "unsupported", f"its pixels cannot be turned into RGB: {error}") from None
        return pixels


def _ticks(seconds: float, base: Fraction) -> int:
    """Seconds in units of the stream: the largest tick not after them, but for the float's own last digits."""
    return math.floor(seconds / float(base) + 1e-4)
