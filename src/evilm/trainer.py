"""One ``fit`` for every task: steps, schedule, checkpoints, a log, and a clean stop at any time."""

from __future__ import annotations

import json
import math
import os
import platform
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import torch

from evilm import __version__, checkpoint, distributed, evaluation, optim, seeds
from evilm import recipe as recipes
from evilm.errors import CheckpointError, EvilmError, OutputError, TrainingError
from evilm.progress import Meter
from evilm.tasks import VideoTextTask

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import FrameType

    from torch import Tensor

    from evilm.data.loader import Loader
    from evilm.recipe import Recipe
    from evilm.tasks import Task
    from evilm.types import Batch, Losses


KIND = "run of evilm"  # what the mark of a run's folder says


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop and has saved itself; ``folder`` is the run."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        self.folder = folder


def train(recipe: Recipe, *, resume: bool = False) -> Path:
    """Carry out a recipe from its annotation files to its last checkpoint.

    Args:
        recipe: what to do.
        resume: go on from the newest valid checkpoint of ``run.out``; without one, begin.

    Returns:
        the run's folder.

    Raises:
        OutputError: ``run.out`` holds a run already, or something else.
        Interrupted: after saving, when Ctrl-C or SIGTERM came.
    """
    out = recipe.run.out
    checkpoint.check_free(out, KIND)
    if checkpoint.steps(out) and not resume:
        raise OutputError(f"{out}: holds a run already; go on with --resume, or name another folder in run.out")
    device = distributed.device(recipe.run.device)
    if recipe.run.threads:
        torch.set_num_threads(recipe.run.threads)
    rows = recipes.examples(recipe.data.train)
    task, facts, start = recipes.new_task(recipe, rows)
    if start.loaded:
        _say(f"start from {recipe.start}: {start}")
    loader = recipes.loader(recipe, task, rows, train=True, label=True)
    about = describe(recipe, task, facts, start)
    checkpoint.claim(out, KIND)
    try:
        Run(recipe, task, loader, device, about).fit(resume)
    except EvilmError:
        checkpoint.release(out)
        raise
    return out


def describe(recipe: Recipe, task: Task, facts: dict[str, Any], start: recipes.Start) -> dict[str, Any]:
    """What ``config.json`` of a checkpoint holds: enough to build the task again, and how it came about."""
    return {
        "task": task.name,
        "recipe": json.loads(recipe.model_dump_json()),
        "facts": facts,
        "model": json.loads(task.model.config.model_dump_json()) if isinstance(task, VideoTextTask) else None,
        "start": {"from": str(recipe.start) if recipe.start else None, "parts": str(start)},
        "versions": {"evilm": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }


class Run:
    """A task in training.

    Args:
        recipe: the settings.
        task: what is trained.
        loader: its training batches.
        device: where.
        about: goes into each checkpoint as ``config.json``.
    """

    def __init__(self, recipe: Recipe, task: Task, loader: Loader, device: torch.device, about: dict[str, Any]) -> None:
        self.recipe, self.task, self.loader, self.device, self.about = recipe, task.to(device), loader, device, about
        self.out = recipe.run.out
        self.bf16 = distributed.computes_in_bf16(recipe.run.precision, device)
        fresh: frozenset[str] = frozenset() if recipe.start is None else _fresh(task)
        self.optimizer = optim.optimizer(task, recipe.optim, fresh)
        self.total = optim.steps(recipe.optim, len(loader))
        self.step = 0
        self.seconds = 0.0
        self.began = time.monotonic()

    def fit(self, resume: bool = False) -> None:
        """Train to the end, or to a signal."""
        if resume:
            self._resume()
        if self.step >= self.total:
            _say(f"{self.out}: is complete at step {self.step}")
            return
        for name in ("metrics.jsonl", "validation.jsonl"):
            _drop_after(self.out / name, self.step)
        self.began = time.monotonic() - self.seconds
        stop = threading.Event()
        with _Signals(stop), Meter(self.task.name, self.total, done=self.step) as meter:
            self._train(stop, meter)
        if self.recipe.data.validation is not None:
            self._validate()
        self._save()

    def _train(self, stop: threading.Event, meter: Meter) -> None:
        """All steps that are left, with what falls between them."""
        saved = time.monotonic()
        for batch in self._batches():
            losses, norm = self._advance(batch)
            if self.step % self.recipe.run.log_every == 0 or self.step == self.total:
                self._log(losses, norm)
            meter.update(self.step, _note(losses))
            if self.step >= self.total:
                return  # what follows is short, and makes the last checkpoint that of an unbroken run
            if self._validates():
                self._validate()
            if stop.is_set() or time.monotonic() - saved > 60 * self.recipe.run.checkpoint_minutes:
                self._save()
                saved = time.monotonic()
            if stop.is_set():
                raise Interrupted(self.out)

    def _batches(self) -> Any:
        """Batches from the current step to the last."""
        each = len(self.loader)
        while self.step < self.total:
            for batch in self.loader.epoch(self.step // each, self.step % each):
                yield batch
                if self.step >= self.total:
                    return

    def _advance(self, batch: Batch) -> tuple[Losses, Tensor]:
        """One optimiser step."""
        config = self.recipe.optim
        # Dropout and the like derive from the step, so that a resumed run draws the same.
        torch.manual_seed(seeds.derive(self.recipe.seed, "step", self.step))
        optim.set_rate(self.optimizer, config, optim.rate(config, self.step, self.total))
        self.task.train()
        batch = batch.to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            losses = self.task.losses(batch)
        if not math.isfinite(float(losses.total.detach())):
            self._explain_divergence(batch, losses)
        self.optimizer.zero_grad(set_to_none=True)
        losses.total.backward()
        limit = config.clip or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.task.parameters(), limit)
        self.optimizer.step()
        self.step += 1
        return losses, norm

    def _explain_divergence(self, batch: Batch, losses: Losses) -> None:
        """Write down the batch whose loss is no number, and stop."""
        keys = [example.key for example in batch.examples]
        path = self.out / "diverged.json"
        # As text: JSON has no name for what is no number.
        parts = {name: str(float(value)) for name, value in losses.parts.items()}
        checkpoint.write_json(path, {"step": self.step, "losses": parts, "samples": keys})
        raise TrainingError(
            f"the loss is {float(losses.total.detach())} at step {self.step}: lower optim.lr = "
            f"{self.recipe.optim.lr:g}; the batch is named in {path}"
        )

    def _log(self, losses: Losses, norm: Tensor) -> None:
        row = {
            "step": self.step,
            "epoch": round(self.step / len(self.loader), 3),
            "seconds": round(time.monotonic() - self.began, 2),
            "lr": self.optimizer.param_groups[0]["lr"],
            "gradient": float(norm),
            "loss": float(losses.total.detach()),
            **{name: float(value) for name, value in losses.parts.items()},
            "skipped": len(self.loader.bad),
        }
        with (self.out / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def _validates(self) -> bool:
        each = self.recipe.run.validate_every
        if not each or self.recipe.data.validation is None or self.step >= self.total:
            return False
        return self.step % max(1, round(each * len(self.loader))) == 0

    def _validate(self) -> None:
        """Evaluate on the validation split, append to ``validation.jsonl``."""
        source = self.recipe.data.validation
        assert source is not None
        loader = recipes.loader(self.recipe, self.task, recipes.examples(source), train=False)
        summary = evaluation.evaluate(self.task, loader, self.device, self.recipe.run.precision, "validating")
        self.about["validation"] = summary.metrics
        with (self.out / "validation.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": self.step, **summary.metrics}) + "\n")
        shown = ", ".join(f"{name} {value:.1f}" for name, value in summary.metrics.items() if "[" not in name)
        _say(f"validation at step {self.step}: {shown}")
        if summary.details.get("collapsed"):
            _say("warning: the codebook has collapsed; set task.tokenizer.restart_below=0.5 or kmeans=true")

    def _save(self) -> None:
        folder = self.out / f"step-{self.step}"
        checkpoint.write(folder, self._fill)
        checkpoint.point(self.out, folder)

    def _fill(self, folder: Path) -> None:
        """The files of a checkpoint."""
        checkpoint.write_tensors(folder / "model.safetensors", self.task.state_dict())
        checkpoint.write_json(folder / "config.json", {**self.about, "step": self.step})
        if isinstance(self.task, VideoTextTask):
            self.task.vocabulary.save(folder / "vocabulary.json")
        (folder / "training").mkdir()
        checkpoint.write_tensors(folder / "training" / "optimizer.safetensors", _flatten(self.optimizer))
        seconds = time.monotonic() - self.began
        state = {"step": self.step, "total": self.total, "seconds": seconds, "bad": self.loader.bad}
        checkpoint.write_json(folder / "training" / "state.json", state)

    def _resume(self) -> None:
        """Take up the newest valid checkpoint, saying which and why."""
        folder, complaints = checkpoint.newest(self.out)
        for line in complaints:
            _say(f"passed over: {line}")
        if folder is None:
            _say(f"{self.out}: no checkpoint yet; beginning")
            return
        state = checkpoint.read_json(folder / "training" / "state.json")
        weights = checkpoint.read_tensors(folder / "model.safetensors")
        moments = checkpoint.read_tensors(folder / "training" / "optimizer.safetensors")
        try:
            self.task.load_state_dict(weights)
            _unflatten(self.optimizer, moments)
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"{folder}: was trained by another recipe ({_first_line(error)}): resume with the recipe that it was "
                "begun with, or name another folder in run.out"
            ) from None
        self.step, self.seconds = int(state["step"]), float(state["seconds"])
        self.loader.bad.update(state["bad"])
        _say(f"resuming {folder} at step {self.step} of {self.total}")


def _fresh(task: Task) -> frozenset[str]:
    """Parameters outside the model: heads that a task adds to what it started from."""
    return frozenset(name for name, _ in task.named_parameters() if not name.startswith("model."))


def _first_line(error: Exception) -> str:
    """The first particular of a complaint of torch's, whose own first line only says that there are some."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[min(1, len(lines) - 1)][:160]


def _flatten(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as named tensors: ``3.exp_avg``."""
    state: dict[int, dict[str, Tensor]] = optimizer.state_dict()["state"]
    return {f"{index}.{name}": tensor for index, entry in state.items() for name, tensor in entry.items()}


def _unflatten(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    parameters: list[Tensor] = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, field = name.partition(".")
        parameter = parameters[int(index)]
        # The fused AdamW walks weights and moments side by side in memory: a moment must lie as its weight does,
        # channels last for one, or it would be taken for another weight's.
        moment = tensor.shape == parameter.shape
        laid = torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor) if moment else tensor
        state.setdefault(int(index), {})[field] = laid
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


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


def _note(losses: Losses) -> str:
    return " ".join(f"{name} {float(value):.3g}" for name, value in losses.parts.items())


def _say(text: str) -> None:
    Meter("", 1).console.print(text, highlight=False, soft_wrap=True, markup=False)


class _Signals:
    """While inside, Ctrl-C and SIGTERM set an event; a second one acts at once."""

    def __init__(self, stop: threading.Event) -> None:
        self.stop = stop
        self.before: dict[int, Any] = {}

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return

        def handle(_number: int, _frame: FrameType | None) -> None:
            if self.stop.is_set():
                raise KeyboardInterrupt
            self.stop.set()

        handler: Callable[[int, FrameType | None], None] = handle
        for number in (signal.SIGINT, signal.SIGTERM):
            self.before[number] = signal.signal(number, handler)

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
