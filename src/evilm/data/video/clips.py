"""What is made of a file in one process: the frames of a clip, a still picture, thumbnails, facts, a cut.

``DecoderPool`` has the same functions for files from unknown sources.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, cast

import av
import numpy as np

from evilm.data import sampling
from evilm.data.video import container
from evilm.data.video.limits import FFMPEG_ERRORS, LIMITS
from evilm.data.video.pictures import StillReader, read_still
from evilm.data.video.reader import VideoReader
from evilm.errors import VideoError
from evilm.files import is_picture

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from av import Packet
    from av.container import InputContainer, OutputContainer
    from av.video.stream import VideoStream
    from numpy.typing import NDArray

    from evilm.data.video.limits import Fit, Limits, Mode
    from evilm.types import Clip

_MAX_CUT_BYTES = 256 << 20  # of a cut video, which is made in memory
_KEYFRAME_SLACK = 0.5  # seconds that a cut without re-encoding may begin early
_ROUNDING = 0.002  # seconds: time stamps of some containers are whole milliseconds
_MAX_RATE = 30  # frames a second of a cut with re-encoding
_CLOCK = 90_000  # ticks a second of its time stamps
_FOREVER = 1e9  # seconds
_SOUND_RATE = 48_000


def read_clip(
    clip: Clip, count: int, size: int, rng: np.random.Generator | None = None,
    mode: Mode = "exact", fit: Fit = "crop", limits: Limits = LIMITS,
) -> NDArray[np.uint8]:  # fmt: skip
    """``count`` frames of a clip, sampled by the rule of ``frames``.

    Args:
        clip: a video file, a part of one, or still frames (some repeat if there are fewer than ``count``).
        count: T.
        size: H = W in pixels.
        rng: random times (training); None takes the middles (evaluation).
        mode, fit: as in ``VideoReader.frames_at``.
        limits: limits of the file.

    Returns:
        (T, size, size, 3) uint8 RGB.

    Raises:
        VideoError: the clip gives no frames.
    """
    return frames_of(clip, sampling.draw_positions(count, rng), size, mode, fit, limits)


def frames_of(
    clip: Clip, within: NDArray[np.float64], size: int, mode: Mode, fit: Fit, limits: Limits
) -> NDArray[np.uint8]:
    """``read_clip`` with the random part of the rule given: ``within`` (T,) is the result of ``frames.draw``."""
    names = clip.frames
    if names and is_picture(names[0]):
        chosen = [int(i) for i in sampling.frames_at(len(names), within)]
        pixels = {i: read_still(clip.path, names[i], size, fit, limits) for i in sorted(set(chosen))}
        return np.stack([pixels[i] for i in chosen])
    with VideoReader(clip.path, limits, names[0]) if names else open_reader(clip.path, limits) as reader:
        duration = reader.duration
        if clip.start and clip.start >= duration:
            raise VideoError(clip.path, "zero_frames", f"nothing from {clip.start:g} s on: it lasts {duration:g} s")
        end = duration if clip.end is None else min(clip.end, duration)
        times = sampling.times_at(within, max(end - clip.start, 0.0), clip.start)
        return reader.frames_at(times, mode, size, fit)


def open_reader(path: Path, limits: Limits = LIMITS) -> VideoReader | StillReader:
    """The reader of a file: a ``StillReader`` if it has the name of a picture, else a ``VideoReader``."""
    return StillReader(path, limits) if is_picture(path) else VideoReader(path, limits)


def read_picture(path: Path, size: int | None, fit: Fit = "crop", limits: Limits = LIMITS) -> NDArray[np.uint8]:
    """A still picture as a clip of one frame, upright by its EXIF orientation: (1, H, W, 3) uint8 RGB.

    Args:
        path: the picture, whatever its name.
        size: H = W in pixels; None keeps the size of the picture.
        fit: as in ``VideoReader.frames_at``.
        limits: see ``StillReader``.

    Raises:
        VideoError: as ``StillReader``.
    """
    return StillReader(path, limits).frames_at([0.0], size=size, fit=fit)


def thumbnails(path: Path, times: Sequence[float], height: int, limits: Limits = LIMITS) -> list[bytes]:
    """The frames on screen at some times, each as a JPEG.

    Args:
        path: a video or a picture.
        times: seconds from the first frame.
        height: pixels; a smaller frame keeps its size.
        limits: limits of the file.

    Raises:
        VideoError: as ``VideoReader``.
    """
    with open_reader(path, limits) as reader:
        frames = reader.frames_at(times, height=height)
    pictures: list[bytes] = []
    for pixels in frames:
        context = av.CodecContext.create("mjpeg", "w")
        context.height, context.width, context.pix_fmt = *pixels.shape[:2], "yuvj420p"
        context.time_base, context.options = Fraction(1, 25), {"qscale": "4"}
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuvj420p")
        packets: list[Packet[Any]] = [*context.encode(frame), *context.encode(None)]
        pictures.append(b"".join(map(bytes, packets)))
    return pictures


@dataclass(frozen=True, slots=True)
class VideoFacts:
    """What a player needs to know about a video or picture.

    Attributes:
        width, height: pixels as displayed.
        codec: FFmpeg's name, such as ``h264``.
        pixel_format: FFmpeg's name, such as ``yuv420p``.
        container: FFmpeg's name, such as ``matroska``; ``mov`` for MP4; ``picture`` for a still picture.
        seconds: the length; 0 for a picture.
        frame_rate: average number of frames a second; 0 for a picture.
        audio_codec: FFmpeg's name; None without sound.
    """

    width: int
    height: int
    codec: str
    pixel_format: str
    container: str
    seconds: float
    frame_rate: float
    audio_codec: str | None


def describe(path: Path, limits: Limits = LIMITS) -> VideoFacts:
    """The facts of a video; decodes its first frame.

    Raises:
        VideoError: as ``VideoReader``.
    """
    if is_picture(path):
        height, width, codec, pixel_format = StillReader(path, limits).describe()
        return VideoFacts(width, height, codec, pixel_format, "picture", 0.0, 0.0, None)
    file = container.locate(path)
    with VideoReader(path, limits) as reader:
        height, width = reader.frames_at([0.0]).shape[1:3]
        seconds = reader.duration
    source, stream = container.open_video(path, file, limits)
    with source:
        context, sounds = stream.codec_context, source.streams.audio
        # PyAV names the decoder, and FFmpeg prefers dav1d.
        codec = {"libdav1d": "av1"}.get(context.name, context.name)
        return VideoFacts(
            width, height, codec, context.pix_fmt or "", source.format.name.partition(",")[0], seconds,
            float(stream.average_rate or context.framerate or 25), sounds[0].codec_context.name if sounds else None,
        )  # fmt: skip


def cut(
    path: Path, start: float, end: float | None, height: int | None, limits: Limits = LIMITS, *, exact: bool = False
) -> bytes:
    """A part of a video as an MP4 file that browsers play: H.264, and AAC if the video has sound.

    The video is copied without loss if it is H.264, not higher than ``height`` and has a keyframe at most half a second
    before ``start``, where the cut then begins; else it is encoded again, with at most 30 frames a second.

    Args:
        path: a video file.
        start, end: seconds from the first frame; ``end`` None for the end of the video.
        height: pixels, at most; None keeps the height.
        limits: limits of the file.
        exact: copy only if there is a keyframe at ``start``.

    Raises:
        VideoError: as ``VideoReader``; ``zero_frames`` if there is no frame between ``start`` and ``end``;
            ``too_large`` for a result of more than 256 MiB.
    """
    buffer = io.BytesIO()
    file = container.locate(path)
    try:
        source, stream = container.open_video(path, file, limits)
        with source, VideoReader(path, limits) as reader, av.open(buffer, "w", format="mp4") as out:
            last = reader.duration if end is None else min(end, reader.duration)
            if not 0 <= start < last:
                raise VideoError(path, "zero_frames", f"no frames from {start:g} s to {last:g} s")
            end = _FOREVER if end is None else last  # a file may state less than it has
            begin = _keyframe_before(source, stream, start) if not reader.raw else -np.inf
            fits = height is None or stream.height <= height
            plain = stream.codec_context.name == "h264" and stream.codec_context.pix_fmt == "yuv420p"
            if plain and fits and start - begin <= (_ROUNDING if exact else _KEYFRAME_SLACK):
                start = begin
                packets = _copied(source, stream, out, start, end)
            else:
                packets = _encoded(reader, out, start, end, height)
            sound = _sound(path, file, out, start, end, limits) if source.streams.audio else iter(())
            for packet in itertools.chain(packets, sound):
                out.mux(packet)
                if buffer.tell() > _MAX_CUT_BYTES:
                    reason = f"the part from {start:g} s to {end:g} s has more than {_MAX_CUT_BYTES >> 20} MiB"
                    raise VideoError(path, "too_large", reason)
    except FFMPEG_ERRORS as error:
        raise VideoError(path, "unsupported", f"cannot be cut: {error}") from None
    return buffer.getvalue()


def _keyframe_before(source: InputContainer, stream: VideoStream, start: float) -> float:
    """The time of the keyframe at or before ``start``, in seconds from the first frame; -inf if none is found.

    The container is positioned at that keyframe.
    """
    base, first = cast("Fraction", stream.time_base), stream.start_time or 0
    with contextlib.suppress(*FFMPEG_ERRORS):
        source.seek(first + math.floor(start / base), stream=stream, backward=True)
        packet = next(source.demux(stream), None)
        if packet is not None and packet.is_keyframe and packet.pts is not None:
            source.seek(packet.pts, stream=stream, backward=True)
            return float((packet.pts - first) * base)
    return -np.inf


def _copied(
    source: InputContainer, stream: VideoStream, out: OutputContainer, start: float, end: float
) -> Iterator[Packet[Any]]:
    """The packets of a video from the current position (the keyframe at ``start``) to ``end``."""
    base, first = cast("Fraction", stream.time_base), stream.start_time or 0
    copy = out.add_stream_from_template(stream)
    offset, limit = first + round(start / base), first + math.ceil(end / base)

    def packets() -> Iterator[Packet[Any]]:
        for packet in source.demux(stream):
            if packet.dts is None or packet.pts is None or not packet.size:
                continue
            if packet.dts >= limit:  # frames are stored in order of decoding
                return
            packet.pts, packet.dts, packet.stream = packet.pts - offset, packet.dts - offset, copy
            yield packet

    return packets()


def _encoded(
    reader: VideoReader, out: OutputContainer, start: float, end: float, height: int | None
) -> Iterator[Packet[Any]]:
    """The frames of a video from ``start`` to ``end``, upright, scaled and encoded as H.264."""
    shape = reader.frames_at([start]).shape[1:3]
    scale = 1.0 if height is None else min(1.0, height / shape[0])
    shape = tuple(max(2, round(side * scale / 2) * 2) for side in shape)  # H.264 wants even sides
    stream = out.add_stream("libx264", rate=_MAX_RATE, options={"preset": "veryfast", "crf": "26", "threads": "1"})
    stream.height, stream.width, stream.pix_fmt = shape[0], shape[1], "yuv420p"
    stream.codec_context.time_base = Fraction(1, _CLOCK)

    def packets() -> Iterator[Packet[Any]]:
        latest = -1.0
        for time, pixels in reader.frames_between(start, end, shape):
            if time - latest < 0.9 / _MAX_RATE:
                continue
            latest = time
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = round((time - start) * _CLOCK), Fraction(1, _CLOCK)
            yield from stream.encode(frame)
        yield from stream.encode(None)

    return packets()


def _sound(
    path: Path, file: str, out: OutputContainer, start: float, end: float, limits: Limits
) -> Iterator[Packet[Any]]:
    """The sound of a video from ``start`` to ``end``, encoded as AAC."""
    target = out.add_stream("aac", rate=_SOUND_RATE, layout="stereo")
    resampler = av.AudioResampler(format="fltp", layout="stereo", rate=_SOUND_RATE, frame_size=1024)

    def packets() -> Iterator[Packet[Any]]:
        source, stream = container.open_video(path, file, limits)
        with source:
            video_start = float((stream.start_time or 0) * cast("Fraction", stream.time_base))
            with contextlib.suppress(*FFMPEG_ERRORS):
                source.seek(round((video_start + start) * av.time_base), backward=True)
            count = 0
            for packet in source.demux(source.streams.audio[0]):
                with contextlib.suppress(*FFMPEG_ERRORS):  # damaged sound is left out
                    for frame in packet.decode():
                        time = (frame.time or 0.0) - video_start
                        if time < start:
                            continue
                        if time >= end:
                            yield from target.encode(None)
                            return
                        frame.pts = None
                        for piece in resampler.resample(frame):
                            piece.pts, piece.time_base = count, Fraction(1, _SOUND_RATE)
                            count += piece.samples
                            yield from target.encode(piece)
            yield from target.encode(None)

    return packets()
