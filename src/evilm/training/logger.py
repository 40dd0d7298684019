"""The log files of a run.

run.json            recipe, start checkpoint and data; command, versions, git state and hardware of each start or resume
metrics.jsonl       a line every few steps: losses by name, learning rate, gradient norm, number of skipped clips
skipped.json        clips that could not be read, with the reason, if there are any; updated with each checkpoint
validation.jsonl    a line per validation
curves.png          metrics and validations, plotted
tensorboard/        the same for TensorBoard, with ``run.tensorboard``
diverged.json       the samples of the batch whose loss or gradient was not finite, or a spike
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from evilm import __version__
from evilm.errors import DependencyError, OutputError
from evilm.files import write_atomic

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from evilm.types import Example

RUN, METRICS, VALIDATION, SKIPPED = "run.json", "metrics.jsonl", "validation.jsonl", "skipped.json"


class RunLogger:
    """Writes the log files of a run.

    Args:
        folder: of the run.
        writes: False in all processes but rank 0, which then write nothing.
        tensorboard: write TensorBoard files as well.
    """

    def __init__(self, folder: Path, *, writes: bool = True, tensorboard: bool = False) -> None:
        self.folder, self.writes, self._wants_board = folder, writes, tensorboard
        self._board: Any = None

    def begin(self, step: int, metadata: Mapping[str, Any]) -> None:
        """Remove lines of steps that will be taken again, and add this start to ``run.json``.

        Args:
            step: number of steps taken before.
            metadata: content of ``run.json``.

        Raises:
            DependencyError: TensorBoard is asked for and not installed.
            OutputError: the folder cannot be written.
        """
        if not self.writes:
            return
        if self._wants_board:
            self._board = _board(self.folder / "tensorboard", step)
        path = self.folder / RUN
        try:
            before: list[Any] = json.loads(path.read_text(encoding="utf-8"))["starts"] if path.is_file() else []
        except (ValueError, KeyError, OSError):
            before = []  # unreadable: the checkpoints hold what the run needs
        now = {
            "at_step": step,
            "when": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "command": sys.argv,
            "machine": hardware(),
            "git": git_state(),
            "packages": packages(),
        }
        try:
            for name in (METRICS, VALIDATION):
                _drop_after(self.folder / name, step)
            write_atomic(path, _json({**metadata, "starts": [*before, now]}))
        except OSError as error:
            raise _unwritable(path, error) from None

    def skip(self, clips: Mapping[str, str]) -> None:
        """Write the list of clips that could not be read, id to reason."""
        if self.writes and clips:
            write_atomic(self.folder / SKIPPED, _json(clips))

    def add(self, name: str, row: Mapping[str, Any]) -> None:
        """Append a line to ``metrics.jsonl`` or ``validation.jsonl``.

        Raises:
            OutputError: the file cannot be written, for one because the disk is full.
        """
        if not self.writes:
            return
        path = self.folder / name
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise _unwritable(path, error) from None
        if self._board is not None:
            for key, value in row.items():
                if key not in ("step", "epoch", "seconds"):
                    self._board.add_scalar(f"{Path(name).stem}/{key}", value, row["step"])

    def close(self) -> None:
        """Close the TensorBoard files."""
        if self._board is not None:
            self._board.close()

    def draw(self) -> None:
        """Plot the curves of the run."""
        if self.writes:
            draw_curves(self.folder)


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2, sort_keys=True, default=str) + "\n"


def _unwritable(path: Path, error: OSError) -> OutputError:
    return OutputError(f"{path}: cannot be written: {error.strerror or error}; free space and continue with --resume")


def _board(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise DependencyError("run.tensorboard needs tensorboard: pip install tensorboard, or leave it out") from None
    return SummaryWriter(str(folder), purge_step=step + 1)


def _drop_after(path: Path, step: int) -> None:
    """Remove lines of later steps, which will be taken again, and an incomplete line that a killed run may leave."""

    def stays(line: str) -> bool:
        try:
            return json.loads(line)["step"] <= step
        except (ValueError, TypeError, KeyError):
            return False

    if path.is_file():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        write_atomic(path, "".join(line for line in lines if line.endswith("\n") and stays(line)))


def fingerprint(examples: Sequence[Example]) -> str:
    """16 hex digits of the rows of a split and their order; texts and file names count, pixels do not."""
    digest = hashlib.sha256()
    for row in examples:
        content = (row.key, row.video, row.captions, row.question, row.answer, row.choices, row.label)
        digest.update(repr(content).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:16]


def hardware() -> dict[str, Any]:
    """A description of the machine."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "host": platform.node(),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
    }


def _processor() -> str:
    """The processor's name from /proc/cpuinfo, or from Python on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def packages() -> dict[str, str]:
    """Versions of the packages that affect the numbers of a run."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"evilm": __version__, "python": platform.python_version()}
    for name in ("torch", "torchvision", "timm", "transformers", "numpy", "av", "safetensors"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def git_state() -> dict[str, Any] | None:
    """Commit and local changes of the running source; None outside a checkout."""
    source = Path(__file__).resolve().parents[3]
    if not (source / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        done = subprocess.run(  # noqa: S603, fixed arguments
            ["git", "-C", str(source), *arguments],  # noqa: S607, git is found by PATH
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
        return done.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "changed": git("status", "--porcelain", "-uno").splitlines()}
    except (OSError, subprocess.SubprocessError):
        return None


def draw_curves(folder: Path) -> None:
    """Plot losses, validation metrics, learning rate and gradient norm over the steps to ``curves.png``."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return  # metrics.jsonl holds the same numbers
    rows, checks = _rows(folder / METRICS), _rows(folder / VALIDATION)
    if not rows:
        return
    plain = {"step", "epoch", "seconds", "lr", "gradient", "skipped", "rate"}
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3)
    for name in sorted({key for row in rows for key in row} - plain):
        series = [(row["step"], row[name]) for row in rows if name in row]
        if name != "codes_in_batch":
            left.plot(*zip(*series, strict=True), label=name, linewidth=1)
    left.set_title("training loss")
    for name in sorted({key for row in checks for key in row if "[" not in key} - {"step"}):
        series = [(row["step"], row[name]) for row in checks if name in row]
        middle.plot(*zip(*series, strict=True), label=name, marker=".", linewidth=1)
    middle.set_title("validation")
    right.plot([row["step"] for row in rows], [row["gradient"] for row in rows], linewidth=1, label="gradient norm")
    twin = right.twinx()
    twin.plot([row["step"] for row in rows], [row["lr"] for row in rows], "k--", linewidth=1, label="learning rate")
    right.set_title("gradient norm, learning rate (dashed)")
    for axes in (left, middle):
        axes.set_xlabel("step")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    write_atomic(folder / "curves.png", picture.getvalue())


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
