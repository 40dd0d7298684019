"""Open a video file that may be hostile: only the given file, only known formats, nothing too large.

FFmpeg may use only the ``file`` protocol and only the containers of ``FORMATS``. Playlists, web pages and other files
that are not videos are recognised by their first bytes and named in the error, before FFmpeg reads them.
"""

from __future__ import annotations

import functools
import os
import re
import stat
import tarfile
from typing import TYPE_CHECKING, cast

import av
import av.error

from evilm.data.video.limits import FFMPEG_ERRORS, FORMATS
from evilm.errors import VideoError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path
    from typing import BinaryIO

    from av.container import InputContainer
    from av.video.stream import VideoStream

    from evilm.data.video.limits import Limits

# Called with the pixels of a frame when a video was opened; a decoder process sets it to raise its own limits. It is
# no argument, because videos are also opened deep inside the jobs of the loader.
on_frame_size: Callable[[int], None] | None = None

_PART = re.compile(r"subfile,,start,(\d+),end,(\d+),,:(.*)", re.DOTALL)  # what ``locate_in_tar`` returns
_OPENING_SECONDS = 20.0  # interrupts reads that never end; a decoder process is killed long before

# Files that are not videos: a pattern of their first bytes, and a description.
_DISGUISES: tuple[tuple[re.Pattern[bytes], str], ...] = (
    (re.compile(rb"version https://git-lfs\.github\.com/"), "a Git LFS pointer, not the video: run `git lfs pull`"),
    (re.compile(rb"#EXTM3U"), "an HLS playlist, which names other files"),
    (re.compile(rb"ffconcat version"), "an ffconcat script, which names other files"),
    (re.compile(rb"(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?<MPD\s", re.DOTALL), "a DASH manifest, which names other files"),
    (re.compile(rb"v=0\r?\no="), "an SDP session, which names a network address"),
    (re.compile(rb"(<!doctype html|<html)", re.IGNORECASE), "a web page: the download of the video failed"),
)
# The file type box of HEIC and AVIF still pictures, with their major brand.
_STILL_BRAND = re.compile(rb".{4}ftyp(heic|heix|heim|heis|mif1|mif2|avif)", re.DOTALL)


def open_video(path: Path, file: str, limits: Limits) -> tuple[InputContainer, VideoStream]:
    """Open a container and prepare its first video stream for decoding with one thread.

    Args:
        path: the file as the user wrote it, for error messages.
        file: the result of ``locate`` or ``locate_in_tar``.
        limits: limits of the file.

    Raises:
        VideoError: with the status that fits.
    """
    # FFmpeg's `subfile` is a part of a file and may in turn only read a file; no content can ask for it.
    protocols = "file,subfile" if file.startswith("subfile,") else "file"
    try:
        container = av.open(
            file,
            options={"max_pixels": str(limits.max_pixels)},  # also holds while FFmpeg detects the format
            container_options={"protocol_whitelist": protocols, "format_whitelist": FORMATS},
            metadata_errors="replace",
            timeout=_OPENING_SECONDS,
        )
    except MemoryError:
        raise limits.out_of_memory(path) from None
    except av.error.FFmpegError as error:
        if _is_encrypted_mp4(file):
            raise encrypted(path) from None
        raise _opening_error(path, error) from None
    except FFMPEG_ERRORS as error:
        raise VideoError(path, "corrupt", f"cannot be opened: {error}") from None
    try:
        return container, _video_stream(path, container, file, limits)
    except BaseException:
        container.close()
        raise


def _video_stream(path: Path, container: InputContainer, file: str, limits: Limits) -> VideoStream:
    # FFmpeg treats the cover picture of an audio file as a video stream.
    streams = [s for s in container.streams.video if "ATTACHED_PIC" not in str(s.disposition).upper()]
    if is_still_picture(file) and len(streams) != 1:
        raise VideoError(path, "no_video", "is a still picture in HEIC/AVIF format, not a video")
    if not streams:
        raise VideoError(path, "no_video", "has no video stream (sound only?)")
    stream = streams[0]
    if "enc_key_id" in stream.metadata or container.metadata.get("ASF_Protection_Type") or _is_encrypted_mp4(file):
        raise encrypted(path)
    context = stream.codec_context
    if cast("object | None", context) is None:
        raise VideoError(path, "unsupported", "its video codec is unknown to this FFmpeg")
    limits.check_pixels(path, context.width, context.height)
    limits.check_length(path, stated_seconds(container, stream), stream.frames)
    context.thread_count = 1
    context.options = {"max_pixels": str(limits.max_pixels)}
    if on_frame_size is not None:
        on_frame_size(context.width * context.height)
    return stream


def stated_seconds(container: InputContainer, stream: VideoStream) -> float | None:
    """The length that the file states; None if it states none, or none that can be relied on."""
    start = float((stream.start_time or 0) * (stream.time_base or 0))
    if start > 1 and container.format.name in ("matroska,webm", "asf"):
        return None  # some programs write the length, others the time at which the video ends
    if stream.duration and stream.duration > 0 and stream.time_base:
        return float(stream.duration * stream.time_base)
    if container.duration and container.duration > 0:
        return container.duration / av.time_base
    return None


def encrypted(path: Path) -> VideoError:
    """The error for a video whose frames would decode to noise."""
    return VideoError(path, "encrypted", "its frames are encrypted (DRM); decrypt it first")


def locate(path: Path) -> str:
    """Check that a path is a regular, non-empty file that starts like a video; return FFmpeg's name of it.

    Raises:
        VideoError: ``not_a_file``, ``corrupt`` (empty) or ``refused`` (a playlist, a web page, ...).
    """
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
    try:
        with _open_regular(resolved) as stream:
            _refuse_disguises(path, stream.read(2048))
    except OSError as error:
        raise VideoError(path, "not_a_file", f"cannot be read: {error.strerror}; check its permissions") from None
    return "file:" + os.fspath(resolved)  # without the prefix FFmpeg would read "a:b.mp4" as a protocol


def locate_in_tar(path: Path, name: str) -> str:
    """FFmpeg's name of a video within an uncompressed tar: only its bytes can be read.

    Raises:
        VideoError: ``not_a_file`` (no such tar or member), ``corrupt`` (damaged, empty) or ``refused``.
    """
    file = locate(path)
    offset, size = tar_members(path).get(name, (0, -1))
    if size < 0:
        raise VideoError(path, "not_a_file", f"holds no video {name!r}")
    if not size:
        raise VideoError(path, "corrupt", f"video {name!r} is empty (0 bytes)")
    with _open_regular(path) as stream:
        stream.seek(offset)
        _refuse_disguises(path, stream.read(min(size, 2048)))
    return f"subfile,,start,{offset},end,{offset + size},,:{file}"


def tar_members(path: Path) -> Mapping[str, tuple[int, int]]:
    """Where each file in an uncompressed tar is: name to (offset, bytes). Read once while the tar does not change.

    Raises:
        VideoError: the tar is missing (``not_a_file``) or damaged (``corrupt``).
    """
    try:
        state = path.stat()
    except (OSError, ValueError) as error:
        raise VideoError(path, "not_a_file", f"no such tar of frames ({type(error).__name__})") from None
    return _tar_members(path, state.st_mtime_ns, state.st_size)


@functools.lru_cache(maxsize=64)
def _tar_members(path: Path, changed: int, size: int) -> Mapping[str, tuple[int, int]]:
    del changed, size  # part of the cache key, so that a rewritten tar is read again
    try:
        with tarfile.open(path, "r:") as archive:
            return {entry.name: (entry.offset_data, entry.size) for entry in archive if entry.isreg()}
    except (tarfile.TarError, OSError, ValueError) as error:
        raise VideoError(path, "corrupt", f"cannot be read as an uncompressed tar: {error}") from None


def is_still_picture(file: str) -> bool:
    """Whether a file (as ``locate`` returned it) is a HEIC or AVIF picture and no sequence of them."""
    return bool(_STILL_BRAND.match(_read_start(file)))


def _open_regular(path: Path) -> BinaryIO:
    # Not blocking: if the file was replaced by a fifo after the check, opening would wait forever.
    return os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")


def _refuse_disguises(path: Path, start: bytes) -> None:
    start = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    for pattern, description in _DISGUISES:
        if pattern.match(start):
            raise VideoError(path, "refused", f"is {description}")


def _span(file: str) -> tuple[str, int, int | None]:
    """Path, start and end (None: all) of what FFmpeg would read for ``file``."""
    part = _PART.fullmatch(file)
    path, start, end = (part[3], int(part[1]), int(part[2])) if part else (file, 0, None)
    return path.removeprefix("file:"), start, end


def _read_start(file: str) -> bytes:
    path, start, _ = _span(file)
    try:
        with open(path, "rb") as stream:  # noqa: PTH123 - FFmpeg's form of a path, not a Path
            stream.seek(start)
            return stream.read(16)
    except OSError:
        return b""


def _is_encrypted_mp4(file: str) -> bool:
    """Whether a track of an MP4 is declared encrypted (``encv``), which FFmpeg does not always report."""
    path, start, end = _span(file)
    try:
        with open(path, "rb") as stream:  # noqa: PTH123 - FFmpeg's form of a path, not a Path
            stream.seek(start)
            return any(re.search(rb"stsd.{12}encv", box, re.DOTALL) for box in _movie_boxes(stream, end))
    except OSError:
        return False


def _movie_boxes(stream: BinaryIO, end: int | None) -> Iterator[bytes]:
    """The first ``moov`` box at the top level of an MP4, at most 8 MiB of it; nothing for other files.

    Args:
        stream: positioned at the start of the MP4.
        end: the end of the MP4 in the file; None for the end of the file.
    """
    for _ in range(1000):
        if end is not None and stream.tell() >= end:
            return
        header = stream.read(16)
        size, kind = int.from_bytes(header[:4]), header[4:8]
        if len(header) < 8 or not (kind.isascii() and kind.isalnum()):
            return
        if size == 1:  # the size follows in 8 bytes
            size = int.from_bytes(header[8:16])
        if kind == b"moov":
            yield stream.read(min(size or 1 << 23, 1 << 23))
            return
        if size < 8:  # 0: to the end of the file
            return
        stream.seek(size - len(header), os.SEEK_CUR)


def _opening_error(path: Path, error: av.error.FFmpegError) -> VideoError:
    """Translate FFmpeg's error on opening."""
    reason = error.strerror or type(error).__name__
    if isinstance(error, av.error.ArgumentError):  # EINVAL: FFmpeg's error for a format that is not on the list
        return VideoError(path, "refused", "is not in a video format that may be opened; convert it to mp4 or webm")
    missing = (av.error.DecoderNotFoundError, av.error.DemuxerNotFoundError, av.error.PatchWelcomeError)
    if isinstance(error, (*missing, NotImplementedError)):
        return VideoError(path, "unsupported", f"this FFmpeg cannot read it: {reason}")
    return VideoError(path, "corrupt", f"cannot be opened as a video: {reason}")
