"""Crash-safe checkpoint folders: safetensors and JSON, checksums, the marker last (docs/reliability.md).

    step-1200/                  beside it step-1200.old only while the same step is written again
        model.safetensors       weights, averaged if the run averages
        config.json             what is needed to build the task again: task, recipe, facts, versions
        vocabulary.json         the word pieces
        training/               only in a run: optimizer.safetensors, raw.safetensors (the last weights of a run that
                                averages), state.json
        manifest.json           sha256 of every file above, written last

A folder without a manifest, or whose files do not match it, is not a checkpoint. This module imports no torch until it
reads or writes tensors: exports are checked by it as well.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from evilm.errors import CheckpointError, OutputError
from evilm.files import write_atomic

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import Tensor
    from torch.optim import Optimizer

    from evilm.tasks import Task
    from evilm.training.optim import WeightAverage

FORMAT = 1
MANIFEST = "manifest.json"
CARD = "README.md"  # the model card: its owner may edit it, so the manifest does not list it
POINTER = "latest"
OLD = ".old"
TEMPORARY = ".tmp"
KEEP = 2  # checkpoints of a run
_REMEDY = "use another checkpoint, or copy this one again"


def write(
    folder: Path,
    fill: Callable[[Path], None],
    *,
    what: str = "checkpoint",
    remedy: str = "earlier checkpoints are valid: free space and continue with --resume",
) -> None:
    """Write a checkpoint: fill a temporary folder, add the manifest, move the folder to its place.

    Args:
        folder: the checkpoint.
        fill: writes the files into the folder that it is given.
        what, remedy: words for the error message, for other folders that have a manifest.

    Raises:
        OutputError: the disk is full or the folder cannot be written; an older checkpoint there is kept.
    """
    temporary = folder.with_name(folder.name + TEMPORARY)
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        fill(temporary)
        files = sorted(path for path in temporary.rglob("*") if path.is_file())
        sums = {path.relative_to(temporary).as_posix(): _flush(path) for path in files}
        sums.pop(CARD, None)
        write_json(temporary / MANIFEST, {"format": FORMAT, "sha256": sums})
        _flush(temporary / MANIFEST)
        for inner in sorted(path for path in temporary.rglob("*") if path.is_dir()):
            _sync_folder(inner)
        _sync_folder(temporary)
        old = folder.with_name(folder.name + OLD)
        if folder.exists():  # the same step again: the old folder stays until the new one is in place
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        temporary.rename(folder)
        _sync_folder(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise OutputError(f"{folder}: cannot write the {what}: {error.strerror or error}; {remedy}") from error


def point(run: Path, folder: Path) -> None:
    """Name ``folder`` the run's latest checkpoint, then remove all but the newest two.

    Raises:
        OutputError: the pointer cannot be written; both checkpoints are still there.
    """
    pointer = run / POINTER
    try:
        write_atomic(pointer, folder.name + "\n")
        _sync_folder(run)
    except OSError as error:
        raise OutputError(
            f"{pointer}: cannot be written: {error.strerror or error}; the checkpoints are valid: free space and "
            "continue with --resume"
        ) from error
    for old in steps(run)[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)


def steps(run: Path) -> list[Path]:
    """The checkpoint folders of a run, oldest first, valid or not."""

    def number(path: Path) -> str:
        return path.name.removesuffix(OLD)[5:]

    found = [path for path in run.glob("step-*") if path.is_dir() and number(path).isdigit()]
    return sorted(found, key=lambda path: (int(number(path)), not path.name.endswith(OLD)))


def newest(run: Path) -> tuple[Path | None, list[str]]:
    """The newest valid checkpoint of a run, and a line for each newer one that is damaged."""
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
        empty = f"{path}: holds no checkpoint (no {MANIFEST}, no step-N); name the folder of a run, or a step-N in one"
        raise CheckpointError(complaints[0] if complaints else empty)
    return folder


def set_aside(run: Path, valid: Path) -> None:
    """Rename all checkpoints that are newer than the newest valid one: they are damaged and must not count."""
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
            raise CheckpointError(f"{path}: damaged (its checksum differs from the manifest's); {_REMEDY}")


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
    """Write a JSON object with sorted keys and line breaks."""
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
    """Write a safetensors file of contiguous copies, as the format refuses tensors that share memory."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType], its PathLike is bare

    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    try:
        save_file(copies, path)
    except SafetensorError as error:  # the only error of its writer, also for a full disk
        raise OSError(f"{path.name}: {error}") from None


def _flush(path: Path) -> str:
    """Flush a file to the disk and return its sha256."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return _sum(path)


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, on systems that can."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# The state of a run.


@dataclass(frozen=True)
class RunState:
    """A run's newest valid checkpoint, read.

    Attributes:
        folder: the checkpoint; None if there is none.
        complaints: a line for each newer checkpoint that is damaged.
        state: step, seconds and other plain values.
        metadata: its ``config.json``.
        weights, optimizer, raw: tensors of the model (averaged, if the run averages), of the optimizer, and the last
            weights of a run that averages.
    """

    folder: Path | None
    complaints: list[str]
    state: dict[str, Any] = field(default_factory=lambda: {})
    metadata: dict[str, Any] = field(default_factory=lambda: {})
    weights: dict[str, Tensor] = field(default_factory=lambda: {})
    optimizer: dict[str, Tensor] = field(default_factory=lambda: {})
    raw: dict[str, Tensor] = field(default_factory=lambda: {})


def write_run(
    folder: Path,
    task: Task,
    optimizer: Optimizer,
    average: WeightAverage,
    metadata: Mapping[str, Any],
    state: Mapping[str, Any],
) -> None:
    """Write a checkpoint that a run can be continued from; see ``RunState``.

    Raises:
        OutputError: the disk is full or the folder cannot be written.
    """

    def fill(path: Path) -> None:
        (path / "training").mkdir()
        with average.applied():
            write_tensors(path / "model.safetensors", task.state_dict())
        if average.trained:
            write_tensors(path / "training" / "raw.safetensors", average.trained)
        write_json(path / "config.json", metadata)
        if (parts := task.model_and_vocabulary) is not None:
            parts[1].save(path / "vocabulary.json")
        moments: dict[int, dict[str, Tensor]] = optimizer.state_dict()["state"]
        named = {f"{index}.{name}": tensor for index, entry in moments.items() for name, tensor in entry.items()}
        write_tensors(path / "training" / "optimizer.safetensors", named)
        write_json(path / "training" / "state.json", state)

    write(folder, fill)


def read_run(run: Path) -> RunState:
    """Read a run's newest valid checkpoint; damaged newer ones are renamed, unfinished ones removed."""
    for unfinished in run.glob(f"step-*{TEMPORARY}"):
        shutil.rmtree(unfinished, ignore_errors=True)
    folder, complaints = newest(run)
    if folder is None:
        return RunState(None, complaints)
    set_aside(run, folder)
    inner = folder / "training"
    raw = inner / "raw.safetensors"
    return RunState(
        folder,
        complaints,
        read_json(inner / "state.json"),
        read_json(folder / "config.json"),
        read_tensors(folder / "model.safetensors"),
        read_tensors(inner / "optimizer.safetensors"),
        read_tensors(raw) if raw.is_file() else {},
    )


def restore_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Load the optimizer's tensors of a ``RunState``.

    Raises:
        ValueError, IndexError: the tensors are of another optimizer.
    """
    import torch

    parameters: list[Tensor] = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, moment = name.partition(".")
        parameter = parameters[int(index)]
        # The fused AdamW steps through weights and moments in memory order: moments need the layout of their weights
        # (channels last, for one), or they would be applied to other weights.
        same_shape = tensor.shape == parameter.shape
        value = torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor) if same_shape else tensor
        state.setdefault(int(index), {})[moment] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
