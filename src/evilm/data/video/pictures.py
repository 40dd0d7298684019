"""Pictures: from decoded frames to RGB, and still pictures: alone, in folders and in tar files."""

from __future__ import annotations

import contextlib
import io
import math
import re
import struct
from dataclasses import replace
from fractions import Fraction
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Literal, Self, cast

import av
import av.error
import numpy as np
from av.stream import Disposition
from av.video.reformatter import Interpolation, VideoReformatter

from evilm.data.video import container
from evilm.data.video.limits import FFMPEG_ERRORS, LIMITS
from evilm.errors import VideoError

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from pathlib import Path

    from av import VideoFrame
    from av.container import InputContainer
    from av.video.codeccontext import VideoCodecContext
    from numpy.typing import NDArray

    from evilm.data.video.limits import Fit, Limits, Mode

SQUARE = Fraction(1)
_SCALERS = {"bicubic": Interpolation.BICUBIC, "bilinear": Interpolation.BILINEAR}

_MAX_BYTES = 64 * 2**20  # of a still picture
_CODECS = {b"\xff\xd8": "mjpeg", b"\x89P": "png", b"RI": "webp", b"BM": "bmp"}  # by the first two bytes
_HEIF = re.compile(rb".{4}ftyp(hei[cfmsx]|mif1|mif2|avif)", re.DOTALL)
_HEIF_HEADER = 1 << 17  # bytes in which a HEIC file describes its picture
_HEIF_GRID = re.compile(rb"idat\0\0(.{6})", re.DOTALL)  # rows - 1, columns - 1, width, height

# The orientation tag of EXIF (0x0112), as (quarter turns counter-clockwise, then mirrored left to right).
_EXIF = re.compile(rb"(?:Exif\0\0|eXIf|EXIF.{4}(?:Exif\0\0)?)(II\*\0|MM\0\*)", re.DOTALL)
_ORIENTATIONS = {2: (0, True), 3: (2, False), 4: (2, True), 5: (3, True), 6: (3, False), 7: (1, True), 8: (1, False)}


def to_rgb(
    frame: VideoFrame, size: int | None, fit: Fit, scaler: VideoReformatter, *,
    aspect: Fraction = SQUARE, height: int | None = None, shape: tuple[int, ...] | None = None,
    orientation: tuple[int, bool] | None = None,
) -> NDArray[np.uint8]:  # fmt: skip
    """A frame upright, as (H, W, 3) uint8. It is scaled in its own pixel format, which is cheaper than in RGB.

    Args:
        frame: as decoded.
        size: the side of the square result; None keeps the size, or takes ``height`` or ``shape``.
        fit: ``crop`` scales the shorter side to ``size`` and keeps the centre; ``squash`` scales both sides. Behind a
            hyphen, the interpolation, for models that were trained with one; else the mean of the pixels that become
            one (cheap), or bicubic for enlarging.
        scaler: reused between frames.
        aspect: width divided by height of a stored pixel as displayed.
        height: H at most; a larger frame is scaled down.
        shape: (H, W) of the result, in place of ``height``.
        orientation: quarter turns counter-clockwise and whether to mirror; None takes the rotation of the frame.
    """
    turns, mirror = orientation or (round(frame.rotation / 90) % 4, False)
    wide, high = max(1, round(frame.width * aspect)), frame.height  # of the result before it is turned
    if size is None and shape is not None:
        high, wide = shape[::-1] if turns % 2 else shape
    elif size is None:
        scale = min(1.0, (height or high + wide) / (wide if turns % 2 else high))
        wide, high = max(1, round(wide * scale)), max(1, round(high * scale))
    elif fit.startswith("squash"):
        wide = high = size
    else:
        shorter = min(wide, high)
        if max(wide, high) > 8 * shorter:  # scaling all of a very long frame to keep its middle could be gigantic
            frame = _middle(frame, wide, high, scaler)
            wide = high = shorter
        # Half rounds up, so that no side falls below the size.
        wide, high = (max(size, math.floor(side * size / shorter + 0.5)) for side in (wide, high))
    kind = _SCALERS.get(fit.partition("-")[2])
    if kind is None:
        kind = Interpolation.AREA if wide * high < frame.width * frame.height else Interpolation.BICUBIC
    pixels = np.rot90(scaler.reformat(frame, wide, high, "rgb24", interpolation=kind).to_ndarray(), turns)
    if mirror:
        pixels = pixels[:, ::-1]
    if size is not None:
        top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
        pixels = pixels[top : top + size, left : left + size]
    return np.ascontiguousarray(pixels, dtype=np.uint8)


@contextlib.contextmanager
def rgb_errors(path: Path, limits: Limits, what: str = "a frame") -> Generator[None]:
    """Turn the errors of ``to_rgb`` into a ``VideoError`` of the file."""
    try:
        yield
    except (MemoryError, av.error.BlockingIOError):  # EAGAIN: no memory for the scaler's thread
        raise limits.out_of_memory(path) from None
    except FFMPEG_ERRORS as error:
        raise VideoError(path, "unsupported", f"{what} cannot be converted to RGB: {error}") from None


def _middle(frame: VideoFrame, width: int, height: int, scaler: VideoReformatter) -> VideoFrame:
    """The central square of a frame that is displayed as ``width`` x ``height``."""
    pixels = scaler.reformat(frame, width, height, "rgb24").to_ndarray()
    side = min(width, height)
    top, left = (height - side) // 2, (width - side) // 2
    square = np.ascontiguousarray(pixels[top : top + side, left : left + side], dtype=np.uint8)
    return av.VideoFrame.from_ndarray(square, format="rgb24")


def pixel_aspect(stated: Fraction | None) -> Fraction:
    """Width divided by height of a stored pixel as displayed; 1 if the file states nothing or nonsense.

    A difference below one hundredth is ignored: it comes from rounding a width to whole pixels.
    """
    if not stated or not Fraction(1, 8) <= stated <= 8 or abs(stated - 1) < Fraction(1, 100):
        return SQUARE
    return stated


# Still pictures


class StillReader:
    """A still picture as a video of one frame that lasts 0 seconds, with the methods of ``VideoReader``.

    Args:
        path: a JPEG, PNG, WebP, BMP, AVIF or HEIC file.
        limits: a picture may have twice as many pixels as a frame, as cameras take larger pictures than videos.

    Raises:
        VideoError: on opening or reading: the picture is missing, damaged, too large or not supported.
    """

    raw, damaged, reached, duration = False, 0, 0.0, 0.0

    def __init__(self, path: Path, limits: Limits = LIMITS) -> None:
        container.locate(path)  # a regular file
        self.path, self.limits = path, replace(limits, max_pixels=2 * limits.max_pixels)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def frames_at(
        self, times: Sequence[float] | NDArray[np.float64], mode: Mode = "exact", size: int | None = None,
        fit: Fit = "crop", height: int | None = None,
    ) -> NDArray[np.uint8]:  # fmt: skip
        """The picture once for each time; see ``VideoReader.frames_at``."""
        del mode
        pixels = read_still(self.path.parent, self.path.name, size, fit, self.limits, height)
        return np.repeat(pixels[None], len(times), axis=0)

    def describe(self) -> tuple[int, int, str, str]:
        """Height and width in pixels as displayed, codec and pixel format."""
        (data,) = read_members(self.path.parent, [self.path.name])
        frame = decode(self.path.parent, self.path.name, data, self.limits.max_pixels)
        turned, codec = _orientation(data)[0] % 2, _CODECS.get(data[:2], "heif")
        sides = (frame.width, frame.height) if turned else (frame.height, frame.width)
        return *sides, "jpeg" if codec == "mjpeg" else codec, frame.format.name


def read_still(
    path: Path, name: str, size: int | None, fit: Fit, limits: Limits, height: int | None = None
) -> NDArray[np.uint8]:
    """One still picture of a folder or tar file, upright: (H, W, 3) uint8 RGB; arguments as those of ``to_rgb``.

    Raises:
        VideoError: the picture is missing, damaged, too large or not supported.
    """
    (data,) = read_members(path, [name])
    frame = decode(path, name, data, limits.max_pixels)
    with rgb_errors(path, limits, f"picture {name!r}"):
        return to_rgb(frame, size, fit, VideoReformatter(), height=height, orientation=_orientation(data))


def read_members(path: Path, names: Sequence[str]) -> list[bytes]:
    """The bytes of files within a tar or a folder.

    Raises:
        VideoError: the tar, the folder or a file is missing, damaged, too large, or outside the folder.
    """
    return _from_folder(path, names) if path.is_dir() else _from_tar(path, names)


def _from_tar(path: Path, names: Sequence[str]) -> list[bytes]:
    index = container.tar_members(path)
    contents: list[bytes] = []
    try:
        with path.open("rb") as archive:
            for name in names:
                if name not in index:
                    raise VideoError(path, "not_a_file", f"holds no picture {name!r}")
                offset, size = index[name]
                _check_bytes(path, name, size)
                archive.seek(offset)
                contents.append(archive.read(size))
                if len(contents[-1]) < size:
                    raise VideoError(path, "corrupt", f"ends within picture {name!r}")
    except OSError as error:
        raise VideoError(path, "not_a_file", f"cannot be read: {error.strerror}") from None
    return contents


def _from_folder(path: Path, names: Sequence[str]) -> list[bytes]:
    contents: list[bytes] = []
    for name in names:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise VideoError(path, "refused", f"picture {name!r} is outside the folder")
        try:
            if not (path / name).is_file():
                raise VideoError(path, "not_a_file", f"holds no picture {name!r}")
            _check_bytes(path, name, (path / name).stat().st_size)
            contents.append((path / name).read_bytes())
        except (OSError, ValueError) as error:
            raise VideoError(path, "not_a_file", f"picture {name!r} cannot be read: {error}") from None
    return contents


def _check_bytes(path: Path, name: str, size: int) -> None:
    if size > _MAX_BYTES:
        raise VideoError(path, "too_large", f"picture {name!r} has {size} bytes, more than {_MAX_BYTES}")


def decode(path: Path, name: str, data: bytes, max_pixels: int) -> VideoFrame:
    """The picture in ``data`` (JPEG, PNG, WebP, BMP, AVIF or HEIC), as stored.

    Raises:
        VideoError: ``unsupported``, ``too_large`` or ``corrupt``, naming ``path`` and ``name``.
    """
    codec = _CODECS.get(data[:2])
    options = {"max_pixels": str(max_pixels)}
    try:
        if codec is None and not _HEIF.match(data):
            raise VideoError(path, "unsupported", f"picture {name!r} is no JPEG, PNG, WebP, BMP, AVIF or HEIC picture")
        if codec is None:
            whitelists = {"protocol_whitelist": "none", "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2"}
            with av.open(io.BytesIO(data), "r", options=options, container_options=whitelists) as file:
                return _heif_frame(path, name, data, file, max_pixels)
        context = cast("VideoCodecContext", av.CodecContext.create(codec, "r"))
        context.thread_count, context.options = 1, options
        frames = [*context.decode(av.Packet(data)), *context.decode(None)]
    except FFMPEG_ERRORS as error:
        if isinstance(error, av.error.ArgumentError):  # EINVAL: FFmpeg's error for more than max_pixels
            raise VideoError(path, "too_large", f"picture {name!r} has more than {max_pixels} pixels") from None
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise VideoError(path, "corrupt", f"picture {name!r} cannot be decoded: {reason}") from None
    if not frames:
        raise VideoError(path, "corrupt", f"picture {name!r} holds no picture")
    if codec == "mjpeg" and _is_cut_off(data):  # FFmpeg paints the missing part grey
        raise VideoError(path, "corrupt", f"picture {name!r} is cut off: the file ends within the picture")
    return frames[0]


def _is_cut_off(jpeg: bytes) -> bool:
    """Whether a JPEG has no end marker behind its first scan; an embedded preview has an end marker of its own."""
    at = 2
    while jpeg[at : at + 1] == b"\xff" and jpeg[at + 1 : at + 2] not in (b"\xda", b""):
        at += 1 if jpeg[at + 1] == 0xFF else 2 + int.from_bytes(jpeg[at + 2 : at + 4])
    return jpeg.find(b"\xff\xd9", at) < 0


def _heif_frame(path: Path, name: str, data: bytes, file: InputContainer, max_pixels: int) -> VideoFrame:
    """The picture of a HEIC or AVIF file: one stream, or a grid of tiles, each a stream (telephones write these)."""
    streams = [stream for stream in file.streams.video if cast("object | None", stream.codec_context)]
    tiles = [stream for stream in streams if stream.disposition & Disposition.dependent]
    grids = [struct.unpack(">BBHH", grid) for grid in _HEIF_GRID.findall(data[:_HEIF_HEADER])]
    if tiles and grids:
        rows, columns, width, height = max(((r + 1, c + 1, w, h) for r, c, w, h in grids), key=lambda g: g[2] * g[3])
    else:
        # The others are its thumbnail and maps of depth or brightness.
        tiles = [max(streams, key=lambda stream: stream.codec_context.width * stream.codec_context.height)]
        rows, columns, width, height = 1, 1, tiles[0].codec_context.width, tiles[0].codec_context.height
    if width * height > max_pixels:
        raise VideoError(path, "too_large", f"picture {name!r} has {width}x{height} pixels, more than {max_pixels}")
    tiles = tiles[: rows * columns]
    canvas = np.zeros((height, width, 3), dtype=np.uint8)
    missing = {stream.index: place for place, stream in enumerate(tiles)}
    for stream in tiles:
        stream.codec_context.thread_count = 1
    for packet in file.demux(tiles):
        for frame in cast("list[VideoFrame]", packet.decode()):
            row, column = divmod(missing.pop(packet.stream_index, -1), columns)
            if row < 0:
                continue
            top, left = row * frame.height, column * frame.width
            piece = frame.to_ndarray(format="rgb24")[: max(0, height - top), : max(0, width - left)]
            canvas[top : top + piece.shape[0], left : left + piece.shape[1]] = piece
    if missing or len(tiles) < rows * columns:
        raise VideoError(path, "corrupt", f"picture {name!r} lacks some of its {rows * columns} tiles")
    return av.VideoFrame.from_ndarray(canvas, format="rgb24")


def _orientation(data: bytes) -> tuple[int, bool]:
    """Quarter turns counter-clockwise, then whether to mirror left to right, by the metadata of a picture."""
    if _HEIF.match(data):
        turn, mirror = (re.search(kind + rb"(.)", data[:_HEIF_HEADER], re.DOTALL) for kind in (rb"irot", rb"imir"))
        turns = turn[1][0] % 4 if turn else 0
        return (turns + 2) % 4 if mirror and not mirror[1][0] else turns, mirror is not None  # 0: top to bottom
    places = [data.find(mark) for mark in (b"Exif\0\0", b"eXIf", b"EXIF")]  # a search by pattern takes milliseconds
    tag = next((found for at in places if at >= 0 and (found := _EXIF.match(data, at))), None)
    if tag is None:
        return 0, False
    order: Literal["little", "big"] = "little" if tag[1].startswith(b"II") else "big"
    block = data[tag.start(1) : tag.start(1) + 65536]
    entries = int.from_bytes(block[4:8], order)
    count = int.from_bytes(block[entries : entries + 2], order)
    for at in range(entries + 2, entries + 2 + 12 * min(count, 200), 12):
        if int.from_bytes(block[at : at + 2], order) == 0x0112:
            return _ORIENTATIONS.get(int.from_bytes(block[at + 8 : at + 10], order), (0, False))
    return 0, False
