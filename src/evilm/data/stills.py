"""Still frames: members of a tar file or of a folder, decoded to pixels without any library beyond PyAV."""

from __future__ import annotations

import functools
import tarfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, cast

import av
import av.error

from evilm.errors import VideoError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from av import VideoFrame
    from av.video.codeccontext import VideoCodecContext

MAX_BYTES = 64 * 2**20  # no honest still is larger
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_CODECS = {b"\xff\xd8": "mjpeg", b"\x89P": "png", b"RI": "webp", b"BM": "bmp"}  # by the first two bytes


def members(path: Path) -> Mapping[str, tuple[int, int]]:
    """Where each file in a tar lies: name to (offset, bytes). Read once a process while the file stays the same.

    Raises:
        VideoError: the tar is missing (``not_a_file``) or damaged (``corrupt``).
    """
    try:
        state = path.stat()
    except (OSError, ValueError) as error:
        raise VideoError(path, "not_a_file", f"no such tar of frames ({type(error).__name__})") from None
    return _members(path, state.st_mtime_ns, state.st_size)


@functools.lru_cache(maxsize=64)
def _members(path: Path, changed: int, size: int) -> Mapping[str, tuple[int, int]]:
    """The index itself; ``changed`` and ``size`` make a rewritten tar another key."""
    del changed, size
    try:
        with tarfile.open(path, "r:") as archive:
            return {entry.name: (entry.offset_data, entry.size) for entry in archive if entry.isreg()}
    except (tarfile.TarError, OSError, ValueError) as error:
        raise VideoError(path, "corrupt", f"cannot be read as an uncompressed tar: {error}") from None


def read(path: Path, names: Sequence[str]) -> list[bytes]:
    """The bytes of still frames within a tar or a folder.

    Raises:
        VideoError: the place or one of the frames is missing, damaged, or outside the folder.
    """
    return _from_folder(path, names) if path.is_dir() else _from_tar(path, names)


def _from_tar(path: Path, names: Sequence[str]) -> list[bytes]:
    index = members(path)
    pictures: list[bytes] = []
    try:
        with path.open("rb") as archive:
            for name in names:
                if name not in index:
                    raise VideoError(path, "not_a_file", f"holds no frame {name!r}")
                offset, size = index[name]
                _check_size(path, name, size)
                archive.seek(offset)
                pictures.append(archive.read(size))
                if len(pictures[-1]) < size:
                    raise VideoError(path, "corrupt", f"ends within frame {name!r}")
    except OSError as error:
        raise VideoError(path, "not_a_file", f"cannot be read: {error.strerror}") from None
    return pictures


def _from_folder(path: Path, names: Sequence[str]) -> list[bytes]:
    pictures: list[bytes] = []
    for name in names:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise VideoError(path, "refused", f"frame {name!r} lies outside the folder")
        try:
            if not (path / name).is_file():
                raise VideoError(path, "not_a_file", f"holds no frame {name!r}")
            _check_size(path, name, (path / name).stat().st_size)
            pictures.append((path / name).read_bytes())
        except (OSError, ValueError) as error:
            raise VideoError(path, "not_a_file", f"frame {name!r} cannot be read: {error}") from None
    return pictures


def _check_size(path: Path, name: str, size: int) -> None:
    if size > MAX_BYTES:
        raise VideoError(path, "too_large", f"frame {name!r} has {size} bytes, more than {MAX_BYTES}")


def decode(path: Path, name: str, data: bytes, max_pixels: int) -> VideoFrame:
    """The picture in ``data`` (JPEG, PNG, WebP or BMP).

    Raises:
        VideoError: ``unsupported``, ``too_large`` or ``corrupt``, naming ``path`` and ``name``.
    """
    codec = _CODECS.get(data[:2])
    if codec is None:
        raise VideoError(path, "unsupported", f"frame {name!r} is no JPEG, PNG, WebP or BMP picture")
    context = cast("VideoCodecContext", av.CodecContext.create(codec, "r"))
    context.thread_count = 1
    context.options = {"max_pixels": str(max_pixels)}
    try:
        pictures = [*context.decode(av.Packet(data)), *context.decode(None)]
    except (av.error.FFmpegError, ValueError) as error:
        if isinstance(error, av.error.ArgumentError):  # EINVAL: what FFmpeg says to more than max_pixels
            raise VideoError(path, "too_large", f"frame {name!r} has more than {max_pixels} pixels") from None
        raise VideoError(path, "corrupt", f"frame {name!r} cannot be decoded: {_reason(error)}") from None
    if not pictures:
        raise VideoError(path, "corrupt", f"frame {name!r} holds no picture")
    return pictures[0]


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
