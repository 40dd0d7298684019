"""What a run writes about itself, so that its folder tells the whole story afterwards.

run.json            recipe, start, command, versions, git state, hardware, data; one entry for each time it was begun
metrics.jsonl       a line every few steps: losses by objective, learning rate, gradient norm, rate, skipped samples
skipped.json        clips that could not be read and why, where there are any; renewed with each checkpoint
validation.jsonl    a line an evaluation
curves.png          the above, drawn
tensorboard/        the same for TensorBoard, where ``run.tensorboard`` asks for it
diverged.json       the batch at which a loss was no number any more
"""

from __future__ import annotations

import hashlib
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
from evilm.training import checkpoint

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from evilm.types import Example

BEGINNINGS, METRICS, VALIDATION, SKIPPED = "run.json", "metrics.jsonl", "validation.jsonl", "skipped.json"


class Journal:
    """The story of one run.

    Args:
        folder: the run's.
        writes: False in all processes but the first: nothing is then written.
        tensorboard: also write for TensorBoard.
    """

    def __init__(self, folder: Path, *, writes: bool = True, tensorboard: bool = False) -> None:
        self.folder, self.writes, self._wants_board = folder, writes, tensorboard
        self._board: Any = None

    def begin(self, step: int, about: Mapping[str, Any]) -> None:
        """Forget lines of steps that will be taken again; add this beginning to ``run.json``.

        Raises:
            DependencyError: TensorBoard is wanted and not installed.
            OutputError: the folder cannot be written.
        """
        if not self.writes:
            return
        if self._wants_board:
            self._board = _board(self.folder / "tensorboard", step)
        path = self.folder / BEGINNINGS
        try:
            before: list[Any] = json.loads(path.read_text(encoding="utf-8"))["beginnings"] if path.is_file() else []
        except (ValueError, KeyError, OSError):
            before = []  # half a file after a power cut: the run itself is elsewhere
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
            temporary = path.with_name(path.name + ".tmp")
            checkpoint.write_json(temporary, {**about, "beginnings": [*before, now]})
            os.replace(temporary, path)
        except OSError as error:
            raise _unwritable(path, error) from None

    def skip(self, clips: Mapping[str, str]) -> None:
        """Keep the list of clips that could not be read, id to reason."""
        if self.writes and clips:
            checkpoint.write_json(self.folder / SKIPPED, dict(sorted(clips.items())))

    def add(self, name: str, row: Mapping[str, Any]) -> None:
        """Append a line to ``metrics.jsonl`` or ``validation.jsonl``.

        Raises:
            OutputError: the disk is full, or the like.
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

    def close(self, *, curves: bool) -> None:
        """End of the run, or of this part of it: draw its curves."""
        if self._board is not None:
            self._board.close()
        if self.writes and curves:
            draw(self.folder)


def _unwritable(path: Path, error: OSError) -> OutputError:
    return OutputError(f"{path}: cannot be written: {error.strerror or error}; free space and go on with --resume")


def _board(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise DependencyError("run.tensorboard needs tensorboard: pip install tensorboard, or leave it out") from None
    return SummaryWriter(str(folder), purge_step=step + 1)


def _drop_after(path: Path, step: int) -> None:
    """Forget lines that an interrupted run wrote after its last checkpoint; they will be written again."""
    if path.is_file():
        kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _written_by(line, step)]
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        os.replace(temporary, path)


def _written_by(line: str, step: int) -> bool:
    """Whether a line of a log is whole (a killed run may leave half of one) and not of a later step."""
    try:
        return json.loads(line)["step"] <= step
    except (ValueError, TypeError, KeyError):
        return False


def fingerprint(examples: Sequence[Example]) -> str:
    """16 hex digits that name the rows of a split and their order: texts and names, not pixels."""
    digest = hashlib.sha256()
    for row in examples:
        said = (row.key, row.video, row.captions, row.question, row.answer, row.choices, row.label)
        digest.update(repr(said).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:16]


def hardware() -> dict[str, Any]:
    """The machine, in a few facts."""
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
    """The processor's name, as Linux tells it; elsewhere what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def packages() -> dict[str, str]:
    """Versions of what decides a run's numbers."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"evilm": __version__, "python": platform.python_version()}
    for name in ("torch", "torchvision", "timm", "transformers", "numpy", "av", "safetensors"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def git_state() -> dict[str, Any] | None:
    """Commit and local changes of the source that is running; None outside a checkout."""
    source = Path(__file__).resolve().parents[3]
    if not (source / ".git").exists():
        return None

    def ask(*words: str) -> str:
        asked = subprocess.run(  # noqa: S603, fixed words
            ["git", "-C", str(source), *words],  # noqa: S607, git is where the user has it
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
        return asked.stdout.strip()

    try:
        return {"commit": ask("rev-parse", "HEAD"), "changed": ask("status", "--porcelain", "-uno").splitlines()}
    except (OSError, subprocess.SubprocessError):
        return None


def draw(folder: Path) -> None:
    """``curves.png``: losses by objective, validation, learning rate and gradient norm over the steps."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return  # the lines of metrics.jsonl are all there
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
    temporary = folder / "curves.tmp"
    figure.savefig(temporary, format="png", dpi=110)
    os.replace(temporary, folder / "curves.png")


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
