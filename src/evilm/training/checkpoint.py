"""Crash-safe checkpoint folders: safetensors and JSON, checksums, the marker last (docs/reliability.md).

    step-1200/                  its twin step-1200.old only while the same step is written anew
        model.safetensors       weights
        config.json             what is needed to build the model again: task, recipe, facts, versions
        vocabulary.json         the word pieces
        training/               only in a run that may be continued: optimizer.safetensors, state.json
        manifest.json           sha256 of every file above, written last

A folder without a manifest, or whose files do not match it, is not a checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from typing import TYPE_CHECKING, Any, cast

from evilm.errors import CheckpointError, OutputError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import Tensor

FORMAT = 1
MANIFEST = "manifest.json"
CARD = "README.md"  # the model card: its owner may edit it, so the manifest does not list it
POINTER = "latest"
OLD = ".old"
KEPT = 2
_REMEDY = "take another checkpoint, or copy this one anew"


def write(
    folder: Path,
    fill: Callable[[Path], None],
    *,
    what: str = "checkpoint",
    remedy: str = "what was saved before is whole: free space and go on with --resume",
) -> None:
    """Make ``folder`` a checkpoint: ``fill`` a temporary one, seal it, move it into place.

    Args:
        folder: where.
        fill: writes the files.
        what, remedy: of a folder that is sealed alike and is no checkpoint; both are told where writing fails.

    Raises:
        OutputError: the disk is full or the folder cannot be written; nothing of the old checkpoint is lost.
    """
    temporary = folder.with_name(folder.name + ".tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        fill(temporary)
        files = sorted(path for path in temporary.rglob("*") if path.is_file())
        sums = {path.relative_to(temporary).as_posix(): _settled(path) for path in files}
        sums.pop(CARD, None)
        write_json(temporary / MANIFEST, {"format": FORMAT, "sha256": sums})
        _settled(temporary / MANIFEST)
        for inner in sorted(path for path in temporary.rglob("*") if path.is_dir()):
            _sync_folder(inner)
        _sync_folder(temporary)
        old = folder.with_name(folder.name + OLD)
        if folder.exists():  # a step written again: the old one stays until its successor is in place
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        temporary.rename(folder)
        _sync_folder(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise OutputError(f"{folder}: cannot write the {what}: {error.strerror or error}; {remedy}") from error


def point(run: Path, folder: Path) -> None:
    """Make ``folder`` the run's latest checkpoint, then drop all but the newest two.

    Raises:
        OutputError: the pointer cannot be written; both checkpoints are still there.
    """
    pointer = run / POINTER
    temporary = run / (POINTER + ".tmp")
    try:
        temporary.write_text(folder.name + "\n")
        _settled(temporary)
        os.replace(temporary, pointer)
        _sync_folder(run)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OutputError(
            f"{pointer}: cannot be written: {error.strerror or error}; the checkpoints are whole: free space and go on "
            "with --resume"
        ) from error
    for old in steps(run)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)


def steps(run: Path) -> list[Path]:
    """The checkpoint folders of a run, oldest first, valid or not."""

    def number(path: Path) -> str:
        return path.name.removesuffix(OLD)[5:]

    found = [path for path in run.glob("step-*") if path.is_dir() and number(path).isdigit()]
    return sorted(found, key=lambda path: (int(number(path)), not path.name.endswith(OLD)))


def newest(run: Path) -> tuple[Path | None, list[str]]:
    """The newest valid checkpoint of a run, and one line for each newer one that is not valid."""
    complaints: list[str] = []
    for folder in reversed(steps(run)):
        try:
            verify(folder)
        except CheckpointError as error:
            complaints.append(str(error))
        else:
            return folder, complaints
    return None, complaints


def find(path: Path) -> Path:
    """The checkpoint that ``path`` names: itself, or the newest valid one of a run.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    if (path / MANIFEST).is_file():
        verify(path)
        return path
    if not path.exists():
        raise CheckpointError(f"{path}: no such checkpoint or run; name the folder of a run, or a step-N in one")
    folder, complaints = newest(path)
    if folder is None:
        lacks = f"{path}: holds no checkpoint (no {MANIFEST}, no step-N); name the folder of a run, or a step-N in one"
        raise CheckpointError(complaints[0] if complaints else lacks)
    return folder


def set_aside(run: Path, valid: Path) -> None:
    """Rename what is newer than the newest valid checkpoint and so was found damaged, lest it count as one of two."""
    for folder in steps(run)[::-1]:
        if folder == valid:
            return
        broken = folder.with_name(folder.name + ".damaged")
        shutil.rmtree(broken, ignore_errors=True)
        folder.rename(broken)


def verify(folder: Path) -> None:
    """Check every file against the manifest.

    Raises:
        CheckpointError: no manifest, another format, or a file that is missing, truncated or altered.
    """
    manifest = read_json(folder / MANIFEST)
    if manifest.get("format") != FORMAT:
        raise CheckpointError(f"{folder / MANIFEST}: format {manifest.get('format')!r}, this version reads {FORMAT}")
    sums: Any = manifest.get("sha256")
    if not isinstance(sums, dict) or not sums:
        raise CheckpointError(f"{folder / MANIFEST}: damaged (it lists no files); {_REMEDY}")
    for name, expected in cast("dict[str, Any]", sums).items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise CheckpointError(f"{folder / MANIFEST}: names {name!r}, which lies outside the checkpoint")
        if not path.is_file():
            raise CheckpointError(f"{path}: missing from the checkpoint; {_REMEDY}")
        if _sum(path) != expected:
            raise CheckpointError(f"{path}: damaged (its checksum is not the manifest's); {_REMEDY}")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CheckpointError: the file is missing, or holds something else.
    """
    try:
        value: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing; this folder is not a complete checkpoint") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds no JSON object")
    return cast("dict[str, Any]", value)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """A JSON object with sorted keys, for people to read."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True, default=str) + "\n", encoding="utf-8")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType], its PathLike is bare

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file: {error}") from None


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file of contiguous copies: tensors that share memory are refused by the format."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType], its PathLike is bare

    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    try:
        save_file(copies, path)
    except SafetensorError as error:  # its writer has no other name for a full disk
        raise OSError(f"{path.name}: {error}") from None


def _settled(path: Path) -> str:
    """Force a file to the disk; its sha256."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return _sum(path)


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    """Force a folder's entries to the disk, where the system lets one."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
