"""Folders that are written into: taken by what is new there, marked as its own, held by one process at a time."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from evilm.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

MARK = ".evilm"
LOCK = ".evilm-lock"
_UNFINISHED = MARK + ".tmp"


def acquire_dir(folder: Path, kind: str) -> None:
    """Take ``folder`` for output: it must be new, empty, or already of this kind.

    Raises:
        OutputError: it holds something else, or is a file.
    """
    check_output_dir(folder, kind)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        mark = folder / MARK
        if not mark.is_file():  # written at once: a mark that a kill left empty would close the folder for ever
            (folder / _UNFINISHED).write_text(kind + "\n")
            os.replace(folder / _UNFINISHED, mark)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written: {error.strerror}; name another folder") from None


def check_output_dir(folder: Path, kind: str) -> None:
    """Whether ``claim`` would take ``folder``, before anything is done for it; writes nothing.

    Raises:
        OutputError: it holds something else, or is a file.
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


def release_dir(folder: Path, *trifles: str) -> None:
    """Undo ``claim`` where nothing was written since but the files called ``trifles``."""
    if {path.name for path in folder.iterdir()} <= {MARK, LOCK, *trifles}:
        for name in (*trifles, MARK, LOCK):
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()


@contextlib.contextmanager
def lock_dir(folder: Path) -> Generator[None]:
    """Keep other processes out of a run's folder; the system lets go when this process dies, however it does.

    Raises:
        OutputError: another process is at work there.
    """
    if os.name != "posix":
        yield
        return
    import fcntl

    # Kept open; never opened elsewhere, as closing any handle of a file gives up all of a process's locks on it.
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
