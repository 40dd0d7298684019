"""A task in training: steps and what falls between them, checkpoints, and going on from one (docs/reliability.md)."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

from evilm import distributed
from evilm.errors import CheckpointError
from evilm.model.layers import apply_memory_options, sync_batch_norms
from evilm.progress import Meter, say, spark
from evilm.tasks import VideoTextTask
from evilm.training import checkpoint, evaluate, feed, optim, snapshot
from evilm.training.logger import METRICS, SKIPPED, VALIDATION, Journal
from evilm.training.signals import Signals
from evilm.training.step import Stepper

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import torch

    from evilm.data.loader import Loader
    from evilm.tasks import Task
    from evilm.training.recipe import Recipe
    from evilm.training.step import Reading
    from evilm.types import Batch


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop and has saved itself; ``folder`` is the run."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        self.folder = folder


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
        self.recipe, self.loader, self.device, self.about = recipe, loader, device, about
        sync_batch_norms(task)
        self.task = task.to(device)
        distributed.broadcast_weights(self.task.state_dict().values())
        apply_memory_options(self.task, grad_checkpointing=recipe.run.grad_checkpointing, compiled=recipe.run.compile)
        self.out = recipe.run.output_dir
        fresh: frozenset[str] = frozenset() if recipe.start is None else _fresh(task)
        self.optimizer = optim.optimizer(task, recipe.optim, fresh)
        self.total = optim.steps(recipe.optim, len(loader))
        self.stepper = Stepper(recipe, self.task, self.optimizer, device, self.total)
        self.average = snapshot.Average(task, recipe.optim.ema_decay) if recipe.optim.ema_decay else None
        self.journal = Journal(self.out, writes=distributed.rank() == 0, tensorboard=recipe.run.tensorboard)
        self.signals = Signals()
        self.step = 0
        self.seconds = 0.0
        self.owed = False  # whether the validation of this step was cut short
        self.began = self.saved = time.monotonic()

    def fit(self, resume: bool = False, signals: Signals | None = None) -> None:
        """Train to the end, or to a signal."""
        if resume:
            self._resume()
        if self.step >= self.total and not self.owed:
            say(f"{self.out}: is complete at step {self.step}")
            return
        self.journal.begin(self.step, self.about)
        self.began = time.monotonic() - self.seconds
        self.saved = time.monotonic()
        with signals or self.signals as self.signals, self.signals.gently():
            try:
                if self.owed and self.step < self.total:
                    self._validate()
                with Meter(self.task.name, self.total, done=self.step) as meter:
                    self._train(meter)
                if self.recipe.data.validation is not None:
                    self._validate()
            except evaluate.StoppedError:
                self.owed = True
                self._save()
                raise Interrupted(self.out) from None
            finally:
                self.loader.close()
                self.journal.close(curves=False)
            self._save()
        self.journal.close(curves=self.recipe.run.curves)
        if bad := self.loader.unreadable:
            say(f"skipped: {len(bad)} clips could not be read and were not trained on: {self.out / SKIPPED}")

    def _train(self, meter: Meter) -> None:
        """All steps that are left, with what falls between them."""
        trail: list[float] = []
        for batch in self._batches():
            reading = self._advance(batch)
            if self.step % self.recipe.run.log_every == 0 or self.step == self.total:
                self._log(reading)
                trail.append(reading.loss)
            rate = self.optimizer.param_groups[0]["lr"]
            skipped = f", {len(self.loader.unreadable)} skipped" if self.loader.unreadable else ""
            meter.update(self.step, f"{reading}, lr {rate:.2g}, gradient {reading.norm:.2g}{skipped} {spark(trail)}")
            if self.step >= self.total:
                return  # what follows is short, and makes the last checkpoint that of an unbroken run
            if self._validates():
                self._validate()
            if reading.stop or reading.save:
                self._save()
            if reading.stop:
                raise Interrupted(self.out)

    def _batches(self) -> Iterator[Batch]:
        """Batches from the current step to the last."""
        each = len(self.loader)
        while self.step < self.total:
            for batch in self.loader.epoch(self.step // each, self.step % each):
                yield batch
                if self.step >= self.total:
                    return

    def _advance(self, batch: Batch) -> Reading:
        """One optimiser step."""

        def late() -> bool:
            return time.monotonic() - self.saved > 60 * self.recipe.run.checkpoint_minutes

        reading = self.stepper.advance(batch, self.step, stop=self.signals.stop.is_set, save=late)
        self.step += 1
        if self.average is not None:
            self.average.update(self.step)
        return reading

    def _log(self, reading: Reading) -> None:
        self._agree_on_bad()
        seconds = time.monotonic() - self.began
        row = {
            "step": self.step,
            "epoch": round(self.step / len(self.loader), 3),
            "seconds": round(seconds, 2),
            "lr": self.optimizer.param_groups[0]["lr"],
            "gradient": reading.norm,
            "loss": reading.loss,
            **reading.parts,
            "skipped": len(self.loader.unreadable),
        }
        self.journal.add(METRICS, row)

    def _agree_on_bad(self) -> None:
        """Let every process know of the videos that another could not read."""
        if distributed.world_size() > 1:
            for found in distributed.all_gather_objects(self.loader.unreadable):
                self.loader.unreadable.update(found)

    def _validates(self) -> bool:
        each = self.recipe.run.validate_every
        if not each or self.recipe.data.validation is None or self.step >= self.total:
            return False
        return self.step % max(1, round(each * len(self.loader))) == 0

    def _validate(self) -> None:
        """Evaluate on the validation split, append to ``validation.jsonl``."""
        source = self.recipe.data.validation
        assert source is not None
        with distributed.rank0_first():
            loader = feed.loader(self.recipe, self.task, feed.examples(source), train=False)
        with self.average.worn() if self.average is not None else contextlib.nullcontext():
            summary = evaluate.evaluate(
                self.task,
                loader,
                self.device,
                self.recipe.run.precision,
                "validating",
                stop=self.signals.stop.is_set,
            )
        self.owed = False
        self.about["validation"] = summary.metrics
        self.about["cannot_tell"] = summary.details.get("cannot_tell")
        self.journal.add(VALIDATION, {"step": self.step, **summary.metrics})
        shown = ", ".join(f"{name} {value:.1f}" for name, value in summary.metrics.items() if "[" not in name)
        say(f"validation at step {self.step}: {shown}")
        if summary.details.get("collapsed"):
            say("warning: the codebook has collapsed; set task.tokenizer.dead_code_threshold=0.5 or kmeans=true")

    def _save(self) -> None:
        """Write a checkpoint; with several processes the first does, and all hear of it when it cannot."""
        self._agree_on_bad()
        folder = self.out / f"step-{self.step}"

        def save() -> None:
            checkpoint.write(folder, self._fill)
            checkpoint.point(self.out, folder)

        distributed.run_on_rank0(save)
        self.journal.skip(self.loader.unreadable)
        self.saved = time.monotonic()

    def _fill(self, folder: Path) -> None:
        """The files of a checkpoint; averaged weights are the result, and the last ones are then kept to go on."""
        inner = folder / "training"
        inner.mkdir()
        with self.average.worn() if self.average is not None else contextlib.nullcontext():
            checkpoint.write_tensors(folder / "model.safetensors", self.task.state_dict())
        if self.average is not None:
            checkpoint.write_tensors(inner / "raw.safetensors", self.average.own)
        checkpoint.write_json(folder / "config.json", {**self.about, "step": self.step})
        if isinstance(self.task, VideoTextTask):
            self.task.vocabulary.save(folder / "vocabulary.json")
        checkpoint.write_tensors(inner / "optimizer.safetensors", snapshot.flatten(self.optimizer))
        state = {
            "step": self.step,
            "total": self.total,
            "seconds": time.monotonic() - self.began,
            **self.loader.state(),
            "usual": str(self.stepper.usual),
            "owed": self.owed,
        }
        checkpoint.write_json(inner / "state.json", state)

    def _resume(self) -> None:
        """Take up the newest valid checkpoint, saying which and why."""
        found = distributed.run_on_rank0(lambda: snapshot.newest(self.out))
        for line in found.complaints:
            say(f"passed over: {line}")
        if found.folder is None:
            say(f"{self.out}: no checkpoint yet; beginning")
            return
        try:
            self.task.load_state_dict(found.weights)
            snapshot.unflatten(self.optimizer, found.moments)
            if self.average is not None:
                self.average = snapshot.Average(self.task, self.average.decay)
                self.task.load_state_dict(found.raw, strict=False)
        except (RuntimeError, ValueError, IndexError) as error:
            raise CheckpointError(
                f"{found.folder}: was trained by another recipe ({_first_line(error)}): resume with the recipe that it "
                "was begun with, or name another folder in run.output_dir"
            ) from None
        state = found.state
        self.step, self.seconds = int(state["step"]), float(state["seconds"])
        self.stepper.usual, self.owed = float(state.get("usual", "nan")), bool(state.get("owed", False))
        self.loader.restore(state)
        if "validation" in found.about:
            self.about["validation"] = found.about["validation"]
        for line in snapshot.differences(found.about, self.about):
            say(f"warning: {line}")
        say(f"resuming {found.folder} at step {self.step} of {self.total}")


def _fresh(task: Task) -> frozenset[str]:
    """Parameters outside the model: heads that a task adds to what it started from."""
    return frozenset(name for name, _ in task.named_parameters() if not name.startswith("model."))


def _first_line(error: Exception) -> str:
    """The first particular of a complaint of torch's, whose own first line only says that there are some."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[min(1, len(lines) - 1)][:160]
