"""Opening a file that nobody vouches for: the right kind of file, format and protocol, and nothing too large.

Nothing but the given file is opened, whatever it claims to be: FFmpeg may use the ``file`` protocol alone and the
containers of ``FORMATS`` alone. What poses as a video is named for what it is before FFmpeg sees it.
"""

from __future__ import annotations

import os
import re
import stat
from typing import TYPE_CHECKING, cast

import av
import av.error

from evilm.data import stills
from evilm.data.video import faults
from evilm.data.video.limits import FORMATS
from evilm.errors import VideoError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import BinaryIO

    from av.container import InputContainer
    from av.video.stream import VideoStream

    from evilm.data.video.limits import Limits

_PART = re.compile(r"subfile,,start,(\d+),end,(\d+),,:(.*)", re.DOTALL)  # what ``member_of_tar`` answers
_OPENING_SECONDS = 20.0  # an interrupt for reads that never end; a decoder process is killed long before

# What poses as a video: how it begins, and what it is.
_DISGUISES: tuple[tuple[re.Pattern[bytes], str], ...] = (
    (re.compile(rb"version https://git-lfs\.github\.com/"), "a Git LFS pointer, not the video: run `git lfs pull`"),
    (re.compile(rb"#EXTM3U"), "an HLS playlist, which names other files"),
    (re.compile(rb"ffconcat version"), "an ffconcat script, which names other files"),
    (re.compile(rb"(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?<MPD\s", re.DOTALL), "a DASH manifest: it names other files"),
    (re.compile(rb"v=0\r?\no="), "an SDP session, which names a network address"),
    (re.compile(rb"(<!doctype html|<html)", re.IGNORECASE), "a web page: the download of the video has failed"),
)


def open_video(path: Path, file: str, limits: Limits) -> tuple[InputContainer, VideoStream]:
    """The container and its first real video stream, ready to decode with one thread.

    Args:
        path: as the user wrote it, for what is said about it.
        file: what ``regular_file`` answered.
        limits: what the file may claim.

    Raises:
        VideoError: with the status that fits.
    """
    # A part of a file is FFmpeg's `subfile`, which in turn may only read a file; no content can ask for one.
    protocols = "file,subfile" if file.startswith("subfile,") else "file"
    whitelists = {"protocol_whitelist": protocols, "format_whitelist": FORMATS}
    try:
        container = av.open(
            file,
            options={"max_pixels": str(limits.max_pixels)},  # while the format is being found out, too
            container_options=whitelists,
            metadata_errors="replace",
            timeout=_OPENING_SECONDS,
        )
    except MemoryError:
        raise faults.out_of_memory(path, limits) from None
    except av.error.FFmpegError as error:
        if is_encrypted_mp4(file):
            raise faults.encrypted(path) from None
        raise _opening_error(path, error) from None
    except faults.FAULTS as error:
        raise VideoError(path, "corrupt", f"cannot be opened: {error}") from None
    try:
        return container, _video_stream(path, container, file, limits)
    except BaseException:
        container.close()
        raise


def _video_stream(path: Path, container: InputContainer, file: str, limits: Limits) -> VideoStream:
    # A cover picture of an audio file is a video stream to FFmpeg, but no video.
    streams = [s for s in container.streams.video if "ATTACHED_PIC" not in str(s.disposition).upper()]
    if not streams:
        raise VideoError(path, "no_video", "has no video stream (sound only?)")
    stream = streams[0]
    if "enc_key_id" in stream.metadata or container.metadata.get("ASF_Protection_Type") or is_encrypted_mp4(file):
        raise faults.encrypted(path)
    if cast("object | None", stream.codec_context) is None:
        raise VideoError(path, "unsupported", "its video codec is unknown to this FFmpeg")
    faults.check_pixels(path, stream.codec_context.width, stream.codec_context.height, limits)
    if stream.frames > limits.max_frames:
        raise faults.too_many_frames(path, stream.frames, limits)
    seconds = stated_seconds(container, stream)
    if seconds is not None and seconds > limits.max_seconds:
        raise faults.too_long(path, seconds, limits)
    stream.codec_context.thread_count = 1
    stream.codec_context.options = {"max_pixels": str(limits.max_pixels)}
    return stream


def stated_seconds(container: InputContainer, stream: VideoStream) -> float | None:
    """The length that the file itself states, or None."""
    if stream.duration and stream.duration > 0 and stream.time_base:
        return float(stream.duration * stream.time_base)
    if container.duration and container.duration > 0:
        return container.duration / av.time_base
    return None


def regular_file(path: Path) -> str:
    """The resolved path of a regular file that is not empty and poses as nothing, as FFmpeg is to open it.

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
            start = stream.read(2048).removeprefix(b"\xef\xbb\xbf").lstrip()
    except OSError as error:
        raise VideoError(path, "not_a_file", f"may not be read: {error.strerror}; check its permissions") from None
    _refuse_disguises(path, start)
    return "file:" + os.fspath(resolved)  # else a name with a colon would be read as a protocol


def _refuse_disguises(path: Path, start: bytes) -> None:
    for pattern, what in _DISGUISES:
        if pattern.match(start):
            raise VideoError(path, "refused", f"is {what}")


def member_of_tar(path: Path, name: str) -> str:
    """A video within an uncompressed tar, as FFmpeg is to open it: nothing but these bytes of the file.

    Raises:
        VideoError: ``not_a_file`` (no such tar or member), ``corrupt`` (damaged, empty) or ``refused``.
    """
    file = regular_file(path)
    offset, size = stills.members(path).get(name, (0, -1))
    if size < 0:
        raise VideoError(path, "not_a_file", f"holds no video {name!r}")
    if not size:
        raise VideoError(path, "corrupt", f"video {name!r} is empty (0 bytes)")
    with _open_regular(path) as stream:
        stream.seek(offset)
        _refuse_disguises(path, stream.read(min(size, 2048)).removeprefix(b"\xef\xbb\xbf").lstrip())
    return f"subfile,,start,{offset},end,{offset + size},,:{file}"


def _open_regular(path: Path) -> BinaryIO:
    # Not blocking: were the file swapped for a fifo since it was looked at, opening it would wait for ever.
    return os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")


def is_encrypted_mp4(file: str) -> bool:
    """Whether a track of an MP4 is declared encrypted (``encv``), which FFmpeg does not always tell.

    Args:
        file: what ``regular_file`` or ``member_of_tar`` answered.
    """
    part = _PART.fullmatch(file)
    path, start, end = (part[3], int(part[1]), int(part[2])) if part else (file, 0, None)
    try:
        with open(path.removeprefix("file:"), "rb") as stream:  # noqa: PTH123 - FFmpeg's form of a path, not a Path
            stream.seek(start)
            return any(re.search(rb"stsd.{12}encv", box, re.DOTALL) for box in _movie_boxes(stream, end))
    except OSError:
        return False


def _movie_boxes(stream: BinaryIO, end: int | None) -> Iterator[bytes]:
    """The first ``moov`` box at the top of an MP4, to at most 8 MiB; none in other files.

    Args:
        stream: stands where the MP4 begins.
        end: of the MP4 in the file; None for all of it.
    """
    for _ in range(1000):
        if end is not None and stream.tell() >= end:
            return
        header = stream.read(16)
        size, kind = int.from_bytes(header[:4]), header[4:8]
        if len(header) < 8 or not (kind.isascii() and kind.isalnum()):
            return
        if size == 1:  # the real one follows, in 8 bytes
            size = int.from_bytes(header[8:16])
        if kind == b"moov":
            yield stream.read(min(size or 1 << 23, 1 << 23))
            return
        if size < 8:  # 0: to the end of the file
            return
        stream.seek(size - len(header), os.SEEK_CUR)


def _opening_error(path: Path, error: av.error.FFmpegError) -> VideoError:
    """FFmpeg's complaint on opening, as one of ours."""
    reason = error.strerror or type(error).__name__
    if isinstance(error, av.error.ArgumentError):  # EINVAL: what FFmpeg says to a format that is not on the list
        return VideoError(path, "refused", "is not in a video format that may be opened; convert it to mp4 or webm")
    missing = (av.error.DecoderNotFoundError, av.error.DemuxerNotFoundError, av.error.PatchWelcomeError)
    if isinstance(error, (*missing, NotImplementedError)):
        return VideoError(path, "unsupported", f"this FFmpeg cannot read it: {reason}")
    return VideoError(path, "corrupt", f"cannot be opened as a video: {reason}")
