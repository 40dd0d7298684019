"""Output folders and files: ownership marks, locks, atomic writes, and the file names of videos."""

from __future__ import annotations

import contextlib
import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING

from evilm.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

MARK = ".evilm"
LOCK = ".evilm-lock"
_UNFINISHED = MARK + ".tmp"

# Names of files that may be videos. Decoding decides whether they are.
VIDEO_SUFFIXES = tuple(
    ".mp4 .m4v .mov .mkv .webm .avi .mpg .mpeg .mpe .m2v .ts .m2ts .mts .vob .flv .f4v .wmv .asf .ogv .ogg .ogm .gif "
    ".3gp .3g2 .mj2 .qt .divx .dv .rm .rmvb .mxf .y4m .ivf .m4s .m2t .m1v .insv .lrv "
    ".264 .h264 .26l .h26l .jsv .jvt .avc .265 .h265 .hevc .bit".split()
)
# Names of files that may be still pictures.
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".heic", ".heif", ".avif")


def is_picture(path: str | bytes | Path) -> bool:
    """Whether a file has the name of a still picture."""
    return os.fsdecode(path).lower().endswith(PICTURE_SUFFIXES)


@functools.lru_cache(8192)  # searches find segments of the same files again and again
def decode_path(stored: bytes) -> Path:
    """The path that a database stores as bytes."""
    return Path(os.fsdecode(stored))


def write_atomic(path: Path, parts: bytes | str | Iterable[bytes | memoryview]) -> None:
    """Replace a file so that it holds either its old content or all of the new one, also after a power failure.

    The new content goes into a temporary file in the same folder, which is flushed to the disk and renamed.

    Args:
        path: the file.
        parts: its content; a string is written as UTF-8, several parts one after the other.

    Raises:
        OSError: the file cannot be written; the old one is unchanged and the temporary file is removed.
    """
    if isinstance(parts, str):
        parts = parts.encode()
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            for part in (parts,) if isinstance(parts, bytes) else parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def acquire_dir(folder: Path, kind: str) -> None:
    """Mark ``folder`` as the output of ``kind``, and create it if needed.

    Raises:
        OutputError: the folder holds something else, or is a file.
    """
    check_output_dir(folder, kind)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        mark = folder / MARK
        if not mark.is_file():  # atomic: an empty mark, left by a kill, would make the folder unusable
            (folder / _UNFINISHED).write_text(kind + "\n")
            os.replace(folder / _UNFINISHED, mark)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written: {error.strerror}; name another folder") from None


def check_output_dir(folder: Path, kind: str) -> None:
    """Check that ``acquire_dir`` would accept ``folder``, without writing anything.

    Raises:
        OutputError: the folder holds something else, or is a file.
    """
    try:
        if folder.exists() and not folder.is_dir():
            raise OutputError(f"{folder}: is a file; name a folder for the {kind}")
        if not folder.is_dir() or all(path.name == _UNFINISHED for path in folder.iterdir()):
            return
        mark = folder / MARK
        found = mark.read_text(encoding="utf-8").strip() if mark.is_file() else "something else"
    except (OSError, UnicodeDecodeError) as error:
        raise OutputError(f"{folder}: cannot be used for a {kind}: {error}; name another folder") from None
    if found != kind:
        raise OutputError(f"{folder}: holds {found}; the {kind} needs a new or empty folder: name another")


def release_dir(folder: Path, *removable: str) -> None:
    """Remove ``folder`` if it holds only its mark, its lock and files named in ``removable``."""
    if {path.name for path in folder.iterdir()} <= {MARK, LOCK, *removable}:
        for name in (*removable, MARK, LOCK):
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()


@contextlib.contextmanager
def lock_dir(folder: Path) -> Generator[None]:
    """Lock a run's folder against other processes. The system releases the lock when this process ends.

    Raises:
        OutputError: another process holds the lock.
    """
    if os.name != "posix":
        yield
        return
    import fcntl

    # The file stays open: closing any handle of a file releases all locks that the process holds on it.
    with (folder / LOCK).open("a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise OutputError(
                f"{folder}: another run is writing into it ({file.read().strip() or 'no name'}): wait for it, stop it, "
                "or name another folder in run.output_dir"
            ) from None
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} on {os.uname().nodename}\n")
        file.flush()
        yield
