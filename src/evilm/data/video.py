"""Video files to pixels, by time stamp.

``VideoReader`` gives the frame that is on screen at each of some moments. It seeks only where a keyframe lies between
two moments, and spares the decoder pictures that nothing needs: a picture no other one refers to is skipped once a
later picture that is still due before the moment has been seen, so the answer stays exact at any frame rate.
"""

from __future__ import annotations

import math
import os
import stat
from fractions import Fraction
from typing import TYPE_CHECKING, Literal, Self, cast

import av
import av.error
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from evilm.data import frames as sampling
from evilm.data import stills
from evilm.errors import VideoError

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from pathlib import Path

    from av import Packet, VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream
    from numpy.typing import NDArray

    from evilm.types import Clip

Mode = Literal["exact", "fast"]
Fit = Literal["crop", "squash"]

MAX_PIXELS = 16_777_216  # 4096 x 4096
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,gif"  # FFmpeg's own names
_SEEK_GAP = Fraction(3)  # seconds: without an index of keyframes, a longer way than this is worth a seek


class VideoReader:
    """A video file that answers "which picture is on screen at this moment?".

    Use it in a ``with`` block. Moments are seconds from the first picture's time stamp.

    Args:
        path: a regular file in one of the ``FORMATS``; nothing but this file is opened, whatever it claims to be.
        max_pixels: the largest width x height that is decoded.

    Raises:
        VideoError: on opening or reading, with the status that fits.
    """

    def __init__(self, path: Path, max_pixels: int = MAX_PIXELS) -> None:
        self.path = path
        self.max_pixels = max_pixels
        self._file = _regular_file(path)
        self._scale = VideoReformatter()
        self._container, self._stream = self._open()
        self._base = self._stream.time_base or Fraction(1, av.time_base)
        self._first = self._stream.start_time or 0
        self._mode: Mode = "exact"
        self._start_reading(from_start=True)
        self._fresh = True

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
    def duration(self) -> float:
        """Seconds from the first picture to the end of the last, as the file states it, else as its packets do."""
        if self._stream.duration and self._stream.duration > 0:
            return float(self._stream.duration * self._base)
        if self._container.duration and self._container.duration > 0:
            return self._container.duration / av.time_base
        return self._scan()

    def frames_at(
        self, times: Sequence[float] | NDArray[np.float64], mode: Mode = "exact",
        size: int | None = None, fit: Fit = "crop",
    ) -> NDArray[np.uint8]:  # fmt: skip
        """The pictures on screen at ``times``, upright.

        A moment before the first picture gives the first, one after the end the last.

        Args:
            times: (T,) seconds, in any order.
            mode: ``exact``, or ``fast``: the nearest keyframe at or before each moment.
            size: None keeps the picture's size; else pictures become ``size`` x ``size``.
            fit: ``crop`` scales the shorter side to ``size`` and keeps the centre; ``squash`` keeps all of the picture.

        Returns:
            (T, H, W, 3) uint8 RGB.

        Raises:
            VideoError: ``zero_frames``, ``corrupt`` or ``too_large``.
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
        """The container and its first real video stream, ready to decode with one thread."""
        options = {"protocol_whitelist": "file", "format_whitelist": FORMATS}
        try:
            container = av.open(self._file, container_options=options)
        except av.error.FFmpegError as error:
            raise _opening_error(self.path, error) from None
        except (UnicodeError, ValueError, OverflowError) as error:  # metadata that is not text, numbers beyond C's
            raise VideoError(self.path, "corrupt", f"cannot be opened: {error}") from None
        try:
            return container, self._video_stream(container)
        except BaseException:
            container.close()
            raise

    def _video_stream(self, container: InputContainer) -> VideoStream:
        # A cover picture of an audio file is a video stream to FFmpeg, but no video.
        streams = [s for s in container.streams.video if "ATTACHED_PIC" not in str(s.disposition).upper()]
        if not streams:
            raise VideoError(self.path, "no_video", "has no video stream (sound only?)")
        stream = streams[0]
        context = cast("object | None", stream.codec_context)
        if context is None:
            raise VideoError(self.path, "unsupported", "its video codec is unknown to this FFmpeg")
        self._check_pixels(stream.codec_context.width, stream.codec_context.height)
        stream.codec_context.thread_count = 1
        stream.codec_context.options = {"max_pixels": str(self.max_pixels)}
        return stream

    def _check_pixels(self, width: int, height: int) -> None:
        if width * height > self.max_pixels:
            raise VideoError(
                self.path, "too_large", f"{width}x{height} pixels a frame, more than the {self.max_pixels} allowed"
            )

    def _start_reading(self, *, from_start: bool) -> None:
        """Forget all pictures; the next ones come from where the container stands now."""
        self._from_start = from_start
        self._current: VideoFrame | None = None  # the latest picture that is not later than the moment
        self._ahead: VideoFrame | None = None  # the first picture that is
        self._target = -(2**62)
        self._damaged = 0
        self._pictures = self._decode()

    def _rewind(self) -> None:
        """Back to the first picture, by seeking or, where the format cannot, by opening the file again."""
        if not self._fresh:
            self._pictures.close()
            self._container.close()
            self._container, self._stream = self._open()
            self._start_reading(from_start=True)
        self._fresh = False

    def _seek(self, target: int) -> bool:
        """Stand at the keyframe at or before ``target``; False where the format cannot."""
        try:
            self._container.seek(target, stream=self._stream, backward=True)
        except (av.error.FFmpegError, OverflowError, ValueError):
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
        if picture is None:
            status = "corrupt" if self._damaged else "zero_frames"
            raise VideoError(self.path, status, f"no frame could be decoded ({self._damaged} damaged packets)")
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
        latest, step = None, 0
        for packet in self._packets():
            stamp = None if packet is None else packet.pts
            spare = stamp is not None and latest is not None and stamp < latest
            context.skip_frame = "NONKEY" if self._mode == "fast" else "NONREF" if spare else "DEFAULT"
            if stamp is not None and stamp <= self._target:
                latest = stamp if latest is None else max(latest, stamp)
            try:
                pictures = context.decode(packet)
            except EOFError:
                return
            except (av.error.FFmpegError, ValueError):
                self._damaged += 1
                continue
            for picture in pictures:
                if picture.pts is None:
                    picture.pts = picture.dts if picture.dts is not None else step
                step = picture.pts + max(1, int(1 / ((context.framerate or 25) * self._base)))
                yield picture

    def _packets(self) -> Generator[Packet[VideoStream] | None]:
        """Packets of the video stream, then None: time to flush the decoder, also where the file breaks off."""
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except (av.error.FFmpegError, ValueError):
                self._damaged += 1
                packet = None
            if packet is None or (not packet.size and packet.dts is None):
                yield None
                return
            if packet.size:  # AVI marks a picture that stays on screen by a packet of no bytes
                yield packet

    def _scan(self) -> float:
        """Seconds by the time stamps of all packets, without decoding any."""
        with VideoReader(self.path, self.max_pixels) as other:
            stamps = [p.pts + (p.duration or 0) for p in other._packets() if p and p.pts is not None]
        return float((max(stamps) - min(stamps)) * self._base) if stamps else 0.0

    # Pixels

    def _pixels(
        self, picture: VideoFrame, size: int | None, fit: Fit, like: NDArray[np.uint8] | None
    ) -> NDArray[np.uint8]:
        """(H, W, 3) of a picture; ``like`` holds its size fixed where a stream changes it on the way."""
        self._check_pixels(picture.width, picture.height)
        try:
            pixels = fitted(picture, size, fit, self._scale)
            if like is not None and like.shape != pixels.shape:
                pixels = fitted(picture, None, fit, self._scale, like.shape[:2])
        except (av.error.FFmpegError, ValueError) as error:
            raise VideoError(self.path, "unsupported", f"its pixels cannot be turned into RGB: {error}") from None
        return pixels


def read_clip(
    clip: Clip, count: int, size: int, rng: np.random.Generator | None = None,
    mode: Mode = "exact", fit: Fit = "crop", max_pixels: int = MAX_PIXELS,
) -> NDArray[np.uint8]:  # fmt: skip
    """``count`` frames of a clip, whichever of its three forms it has, by the rule of ``frames``.

    Args:
        clip: a video file, a part of one, or still frames (of which some repeat where they are fewer than ``count``).
        count: T.
        size: H = W in pixels.
        rng: random moments (training); None takes the middles (evaluation).
        mode, fit: as in ``VideoReader.frames_at``.
        max_pixels: the largest frame that is decoded.

    Returns:
        (T, size, size, 3) uint8 RGB.

    Raises:
        VideoError: the clip gives no frames.
    """
    if clip.frames:
        chosen = [int(i) for i in sampling.pick(len(clip.frames), count, rng)]
        return _read_stills(clip, chosen, size, fit, max_pixels)
    with VideoReader(clip.path, max_pixels) as reader:
        whole = reader.duration
        if clip.start and clip.start >= whole:
            raise VideoError(clip.path, "zero_frames", f"nothing from {clip.start:g} s on: it lasts {whole:g} s")
        end = whole if clip.end is None else min(clip.end, whole)
        times = sampling.segments(count, max(end - clip.start, 0.0), rng, clip.start)
        return reader.frames_at(times, mode, size, fit)


def _read_stills(clip: Clip, chosen: list[int], size: int, fit: Fit, max_pixels: int) -> NDArray[np.uint8]:
    needed = sorted(set(chosen))
    scale = VideoReformatter()
    pixels: dict[int, NDArray[np.uint8]] = {}
    for i, data in zip(needed, stills.read(clip.path, [clip.frames[i] for i in needed]), strict=True):
        picture = stills.decode(clip.path, clip.frames[i], data, max_pixels)
        try:
            pixels[i] = fitted(picture, size, fit, scale)
        except (av.error.FFmpegError, ValueError) as error:
            raise VideoError(clip.path, "unsupported", f"frame {clip.frames[i]!r} gives no RGB: {error}") from None
    return np.stack([pixels[i] for i in chosen])


def fitted(
    picture: VideoFrame, size: int | None, fit: Fit, scale: VideoReformatter, shape: tuple[int, ...] | None = None
) -> NDArray[np.uint8]:
    """A picture upright, as (H, W, 3) uint8, scaled while it is still in its own pixel format (cheap).

    Args:
        picture: as decoded.
        size: the side of the square asked for; None keeps the size, or takes ``shape``.
        fit: as in ``VideoReader.frames_at``.
        scale: reused between pictures.
        shape: (H, W) to squash to where ``size`` is None.
    """
    turns = round(picture.rotation / 90) % 4
    width, height = picture.width, picture.height
    if size is None:
        height, width = shape[:: -1 if turns % 2 else 1] if shape else (height, width)
    elif fit == "squash":
        width = height = size
    else:
        shorter = min(width, height)
        if max(width, height) > 8 * shorter:  # a ribbon: scaling all of it to keep its middle could be gigantic
            picture = _middle(picture, shorter, scale)
            width = height = shorter
        # Half rounds up, so that no side falls below the size.
        width, height = (max(size, math.floor(side * size / shorter + 0.5)) for side in (width, height))
    kind = Interpolation.AREA if width * height < picture.width * picture.height else Interpolation.BICUBIC
    pixels = scale.reformat(picture, width, height, "rgb24", interpolation=kind).to_ndarray()
    pixels = np.rot90(pixels, turns)
    if size is not None:
        top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
        pixels = pixels[top : top + size, left : left + size]
    return np.ascontiguousarray(pixels, dtype=np.uint8)


def _middle(picture: VideoFrame, side: int, scale: VideoReformatter) -> VideoFrame:
    """The central square of a picture at its own scale."""
    pixels = scale.reformat(picture, format="rgb24").to_ndarray()
    top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
    square = np.ascontiguousarray(pixels[top : top + side, left : left + side], dtype=np.uint8)
    return av.VideoFrame.from_ndarray(square, format="rgb24")


def _regular_file(path: Path) -> str:
    """The resolved path of a regular file that is not empty, as FFmpeg is to open it."""
    try:
        resolved = path.resolve(strict=True)
        state = resolved.stat()
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise VideoError(path, "not_a_file", f"cannot be opened: {reason}") from None
    if not stat.S_ISREG(state.st_mode):
        raise VideoError(path, "not_a_file", "is not a regular file")
    if not state.st_size:
        raise VideoError(path, "corrupt", "is empty (0 bytes)")
    if not os.access(resolved, os.R_OK):
        raise VideoError(path, "not_a_file", "may not be read: check its permissions")
    return "file:" + os.fspath(resolved)  # else a name with a colon would be read as a protocol


def _opening_error(path: Path, error: av.error.FFmpegError) -> VideoError:
    """FFmpeg's complaint on opening, as one of ours."""
    reason = error.strerror or type(error).__name__
    if isinstance(error, av.error.ArgumentError):  # EINVAL: what FFmpeg says to a format that is not on the list
        return VideoError(path, "refused", "is not in a video format that may be opened; convert it to mp4 or webm")
    if isinstance(error, (av.error.DecoderNotFoundError, av.error.DemuxerNotFoundError, NotImplementedError)):
        return VideoError(path, "unsupported", f"this FFmpeg cannot read it: {reason}")
    return VideoError(path, "corrupt", f"cannot be opened as a video: {reason}")


def _ticks(seconds: float, base: Fraction) -> int:
    """Seconds in units of the stream: the largest tick not after them, but for the float's own last digits."""
    return math.floor(seconds / float(base) + 1e-4)
