"""Checkpoints survive what happens to disks: cuts, flipped bits, missing files, no space left."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
import torch

from evilm.errors import CheckpointError, OutputError
from evilm.training import checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable


def save(run: Path, step: int) -> Path:
    """A checkpoint of three files, one in a folder of its own, all of them telling the step."""
    folder = run / f"step-{step}"

    def fill(path: Path) -> None:
        checkpoint.write_tensors(path / "model.safetensors", {"w": torch.full((64,), float(step))})
        checkpoint.write_json(path / "config.json", {"step": step})
        (path / "training").mkdir()
        checkpoint.write_json(path / "training" / "state.json", {"step": step})

    checkpoint.write(folder, fill)
    checkpoint.point(run, folder)
    return folder


def test_what_is_written_is_read(tmp_path: Path) -> None:
    folder = save(tmp_path, 3)
    checkpoint.verify(folder)
    assert checkpoint.read_tensors(folder / "model.safetensors")["w"].tolist() == [3.0] * 64
    assert checkpoint.read_json(folder / "training" / "state.json") == {"step": 3}
    manifest = checkpoint.read_json(folder / "manifest.json")
    assert set(manifest["sha256"]) == {"model.safetensors", "config.json", "training/state.json"}
    assert (tmp_path / "latest").read_text() == "step-3\n"
    assert not list(tmp_path.rglob("*.tmp"))


def test_two_are_kept_and_counted_as_numbers(tmp_path: Path) -> None:
    for step in (8, 9, 10, 11):
        save(tmp_path, step)
    assert [path.name for path in checkpoint.steps(tmp_path)] == ["step-10", "step-11"]
    assert checkpoint.newest(tmp_path) == (tmp_path / "step-11", [])


def test_tensors_that_share_memory_are_written_each(tmp_path: Path) -> None:
    table = torch.arange(6.0).view(2, 3)
    checkpoint.write_tensors(tmp_path / "t.safetensors", {"a": table, "b": table.T})
    found = checkpoint.read_tensors(tmp_path / "t.safetensors")
    assert found["b"].tolist() == [[0, 3], [1, 4], [2, 5]]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "training/state.json"])
@pytest.mark.parametrize("harm", ["truncated", "emptied", "flipped", "missing"])
def test_damage_is_found_named_and_passed_over(tmp_path: Path, name: str, harm: str) -> None:
    save(tmp_path, 1)
    file = save(tmp_path, 2) / name
    content = bytearray(file.read_bytes())
    if harm == "missing":
        file.unlink()
    elif harm == "flipped":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    else:
        file.write_bytes(content[: 0 if harm == "emptied" else len(content) - 1])
    with pytest.raises(CheckpointError, match=name):
        checkpoint.verify(tmp_path / "step-2")
    with pytest.raises(CheckpointError, match=name):
        checkpoint.find(tmp_path / "step-2")
    found, complaints = checkpoint.newest(tmp_path)
    assert found == tmp_path / "step-1"
    assert len(complaints) == 1
    assert name in complaints[0]
    assert checkpoint.find(tmp_path) == found


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "not JSON"),
        ("[1]", "holds no JSON object"),
        ("\x00\xff", "not JSON"),
        ('{"format": 99, "sha256": {}}', "format 99, this version reads 1"),
        ("{}", "format None"),
    ],
)
def test_a_damaged_manifest(tmp_path: Path, text: str, complaint: str) -> None:
    folder = save(tmp_path, 1)
    (folder / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=complaint):
        checkpoint.verify(folder)


@pytest.mark.parametrize("sums", [None, 3, ["model.safetensors"], {}])
def test_a_manifest_that_vouches_for_nothing(tmp_path: Path, sums: object) -> None:
    folder = save(tmp_path, 1)
    (folder / "manifest.json").write_text(json.dumps({"format": 1, "sha256": sums}))
    with pytest.raises(CheckpointError, match="manifest"):
        checkpoint.verify(folder)


def test_a_manifest_that_points_outside_is_refused(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    folder = save(tmp_path / "run", 1)
    for name in ("../../secret", str(secret)):
        (folder / "manifest.json").write_text(json.dumps({"format": 1, "sha256": {name: "0"}}))
        with pytest.raises(CheckpointError, match="outside the checkpoint"):
            checkpoint.verify(folder)


def test_an_unfinished_folder_is_not_a_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / "step-2").mkdir()
    (tmp_path / "step-2" / "model.safetensors").write_bytes(b"half")
    (tmp_path / "step-3.tmp").mkdir()
    found, complaints = checkpoint.newest(tmp_path)
    assert found == tmp_path / "step-1"
    assert len(complaints) == 1
    assert "manifest.json" in complaints[0]


def test_no_checkpoint_at_all(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path) == (None, [])
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        checkpoint.find(tmp_path)
    with pytest.raises(CheckpointError, match="no such checkpoint or run"):
        checkpoint.find(tmp_path / "absent")


def _complaint(run: Path) -> str | None:
    """What writing a second checkpoint complains about."""
    try:
        save(run, 2)
    except OutputError as error:
        return str(error)
    return None


def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk fills at the first file, the second, and so on through the whole of writing."""
    save(tmp_path, 1)
    real = os.fsync
    failures = 0
    for allowed in range(20):
        left = [allowed]

        def full(handle: int, left: list[int] = left) -> None:
            if left[0] == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            left[0] -= 1
            real(handle)

        monkeypatch.setattr(os, "fsync", full)
        with contextlib.ExitStack() as stack:
            stack.callback(monkeypatch.setattr, os, "fsync", real)
            complaint = _complaint(tmp_path)
        if complaint is None:
            break
        failures += 1
        assert "No space left on device" in complaint
        found, _ = checkpoint.newest(tmp_path)
        assert found is not None
        checkpoint.verify(found)
        assert not list(tmp_path.glob("*.tmp"))
    assert failures >= 5
    assert checkpoint.newest(tmp_path)[0] == tmp_path / "step-2"


def test_a_failure_while_filling_leaves_nothing_half_written(tmp_path: Path) -> None:
    save(tmp_path, 1)

    def fill(path: Path) -> NoReturn:
        (path / "model.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OutputError, match="No space left"):
        checkpoint.write(tmp_path / "step-2", fill)
    assert [path.name for path in checkpoint.steps(tmp_path)] == ["step-1"]
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("content", [b"", b"\x00" * 7, b"\xff" * 64, b'{"a":'])
def test_what_is_no_safetensors_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: not a readable"):
        checkpoint.read_tensors(path)
    with pytest.raises(CheckpointError, match=r"absent\.safetensors"):
        checkpoint.read_tensors(tmp_path / "absent.safetensors")


@pytest.mark.parametrize("call", range(12))
def test_an_input_output_error_at_any_move_leaves_a_valid_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """Writing the same step anew: renames, the pointer and deletions fail in turn."""
    save(tmp_path, 1)
    save(tmp_path, 2)
    calls = [0]

    def failing(real: Callable[..., Any]) -> Callable[..., Any]:
        def made(*args: Any, **named: Any) -> Any:
            calls[0] += 1
            if calls[0] == call + 1:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(*args, **named)

        return made

    with monkeypatch.context() as patch:
        for owner, name in ((Path, "rename"), (os, "replace"), (checkpoint, "_sync_folder"), (Path, "mkdir")):
            patch.setattr(owner, name, failing(getattr(owner, name)))
        complaint = _complaint(tmp_path)
    if complaint is not None:
        assert "Input/output error" in complaint
        assert "--resume" in complaint
    found, _ = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.name.startswith("step-2")
    save(tmp_path, 3)
    assert [path.name for path in checkpoint.steps(tmp_path)][-1] == "step-3"


def test_a_step_written_anew_keeps_its_twin_until_it_is_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 2)
    moves: list[str] = []

    def rename(self: Path, target: Path) -> Path:
        moves.append(target.name)
        if len(moves) == 2:
            raise KeyboardInterrupt  # stands for a power cut between the two moves
        os.replace(self, target)
        return target

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, 2)
    assert moves == ["step-2.old", "step-2"]
    assert checkpoint.find(tmp_path).name == "step-2.old"
    save(tmp_path, 2)
    assert [path.name for path in checkpoint.steps(tmp_path)] == ["step-2"]


def test_damaged_checkpoints_do_not_count_among_the_two_that_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    (tmp_path / "step-3" / "config.json").unlink()
    found, _ = checkpoint.newest(tmp_path)
    assert found is not None
    checkpoint.set_aside(tmp_path, found)
    save(tmp_path, 4)
    assert [path.name for path in checkpoint.steps(tmp_path)] == ["step-2", "step-4"]
    assert (tmp_path / "step-3.damaged").is_dir()


def test_a_file_system_that_takes_no_more_at_any_byte(tmp_path: Path) -> None:
    """A real limit of the system on file size stops writing at ever later bytes, in safetensors' own code too."""
    program = """
import resource, signal, sys
from pathlib import Path
import torch
from evilm.training import checkpoint
from evilm.errors import OutputError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
run, refused = Path(sys.argv[1]), 0
def save(step):
    def fill(path):
        checkpoint.write_json(path / "config.json", {"step": step, "long": "x" * 300})
        checkpoint.write_tensors(path / "model.safetensors", {"w": torch.full((256,), float(step))})
    checkpoint.write(run / f"step-{step}", fill)
    checkpoint.point(run, run / f"step-{step}")
save(1)
for limit in range(0, 1300, 60):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        save(2)
        break
    except OutputError as error:
        assert "File too large" in str(error), error
        refused += 1
    assert checkpoint.newest(run)[0] == run / "step-1", limit
    assert not list(run.glob("*.tmp")), limit
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert checkpoint.newest(run)[0] == run / "step-2"
print(refused)
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 10
