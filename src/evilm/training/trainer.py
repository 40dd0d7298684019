"""Training of any task on any number of processes: steps, validation, checkpoints, resuming (docs/reliability.md)."""

from __future__ import annotations

import contextlib
import math
import time
from typing import TYPE_CHECKING, Any, cast

import torch

from evilm import distributed, files
from evilm.data import sampling
from evilm.errors import CheckpointError, ConfigError, EvilmError, OutputError, TrainingError
from evilm.model.layers import apply_memory_options, sync_batch_norms
from evilm.progress import Meter, say, spark
from evilm.training import build, checkpoint, evaluate, logger, optim
from evilm.training.logger import METRICS, SKIPPED, VALIDATION, RunLogger
from evilm.training.recipe import check_selection, differences
from evilm.training.signals import Signals
from evilm.training.time_limit import TimeLimit

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from evilm.data.loader import Loader
    from evilm.tasks import Task
    from evilm.training.recipe import Recipe
    from evilm.types import Batch, Losses

KIND = "run of evilm"  # content of the mark in a run's folder
_LOG_ALL, _LOG_EVERY = 1000, 10  # metrics.jsonl has each of the first steps, then every tenth


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop and has saved a checkpoint; ``folder`` is the run."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        self.folder = folder


def train(recipe: Recipe, *, resume: bool = False, select_on_test: bool = False) -> Path:
    """Carry out a recipe and return the run's folder. Under torchrun all processes call this with the same recipe.

    Args:
        recipe: the settings.
        resume: continue from the newest valid checkpoint of ``run.output_dir``, if there is one.
        select_on_test: accept a test split as ``data.validation``; see ``recipe.check_selection``.

    Raises:
        OutputError: ``run.output_dir`` holds a run already or other files, or another process writes there.
        Interrupted: Ctrl-C or SIGTERM came; a checkpoint was saved. KeyboardInterrupt, if there was nothing to save.
    """
    check_selection(recipe.data, select_on_test=select_on_test)
    out = recipe.run.output_dir
    with Signals() as signals, distributed.process_group(recipe.run.device), contextlib.ExitStack() as held:

        def acquire() -> None:
            files.check_output_dir(out, KIND)
            if checkpoint.steps(out) and not resume:
                raise OutputError(f"{out}: holds a run already; add --resume, or name another folder in run.output_dir")
            files.acquire_dir(out, KIND)
            held.enter_context(files.lock_dir(out))

        distributed.run_on_rank0(acquire)
        try:
            _new_trainer(recipe).fit(resume, signals)
        except EvilmError:
            if distributed.rank() == 0:
                files.release_dir(out, logger.RUN)  # if no step was taken
            raise
    return out


def _new_trainer(recipe: Recipe) -> Trainer:
    """The trainer of a recipe, with its task and its data."""
    device = distributed.device(recipe.run.device)
    if recipe.run.threads:
        torch.set_num_threads(recipe.run.threads)
    local, pieces = recipe.optim.batch_size // distributed.world_size(), recipe.optim.grad_accum_steps
    if local % pieces:
        raise ConfigError(
            f"optim.grad_accum_steps = {pieces} does not divide the {local} samples of optim.batch_size = "
            f"{recipe.optim.batch_size} that each of {distributed.world_size()} processes has"
        )
    examples = build.training_examples(recipe.data)
    task, start = build.new_task(recipe, examples)
    for line in ([f"start from {recipe.start}: {start}"] if start.loaded else []) + [*start.published]:
        say(line)
    with distributed.rank0_first():
        loader = build.make_loader(recipe, task, examples, train=True, caches=True)
    data = {"rows": len(examples), "fingerprint": logger.fingerprint(examples)}
    return Trainer(recipe, task, loader, device, {**build.metadata_of(recipe, task, start), "data": data})


class Trainer:
    """The training of one task.

    Args:
        recipe: the settings.
        task: the task to train.
        loader: its training batches.
        device: of the training.
        metadata: saved with each checkpoint as ``config.json``.
    """

    def __init__(
        self, recipe: Recipe, task: Task, loader: Loader, device: torch.device, metadata: dict[str, Any]
    ) -> None:
        self.recipe, self.loader, self.device, self.metadata = recipe, loader, device, metadata
        sync_batch_norms(task)
        self.task = task.to(device)
        distributed.broadcast_weights(self.task.state_dict().values())
        apply_memory_options(self.task, grad_checkpointing=recipe.run.grad_checkpointing, compiled=recipe.run.compile)
        self.out = recipe.run.output_dir
        heads = frozenset(name for name, _ in task.named_parameters() if not name.startswith("model."))
        self.optimizer = optim.make_optimizer(task, recipe.optim, heads if recipe.start else frozenset())
        self.total = optim.steps(recipe.optim, len(loader))
        epochs = recipe.run.validate_every if recipe.data.validation is not None else 0
        self.validate_steps = max(1, round(epochs * len(loader))) if epochs else 0
        self.limit = TimeLimit(recipe.optim.max_minutes)
        self.scheduler = optim.make_scheduler(self.optimizer, recipe.optim, self.total)
        self.average = optim.WeightAverage(task, recipe.optim.ema_decay)
        self.bf16 = distributed.uses_bf16(recipe.run.precision, device)
        self.log = RunLogger(self.out, writes=distributed.rank() == 0, tensorboard=recipe.run.tensorboard)
        self.signals = Signals()
        self.step = 0  # steps taken
        self.guard = optim.LossGuard(recipe.optim.loss_spike_factor)
        self.validation_due = False  # whether the validation of this step was interrupted
        self.seconds = 0.0  # of earlier parts of the run
        self.began = self.saved = time.monotonic()

    def fit(self, resume: bool = False, signals: Signals | None = None) -> None:
        """Train to the last step, or until a signal."""
        if resume:
            self._resume()
        if self.step >= self.total and not self.validation_due:
            say(f"{self.out}: is complete at step {self.step}")
            return
        self.log.begin(self.step, self.metadata)
        self.began = time.monotonic() - self.seconds
        self.saved = time.monotonic()
        with signals or self.signals as self.signals, self.signals.gently():
            try:
                if self.validation_due and self.step < self.total:
                    self._validate()
                with Meter(self.task.name, self.total, done=self.step) as meter:
                    self._train(meter)
                if self.recipe.data.validation is not None:
                    self._validate()
            except evaluate.StoppedError:
                self.validation_due = True
                self._save()
                raise Interrupted(self.out) from None
            finally:
                self.loader.close()
                self.log.close()
            self._save()
        self.log.draw()
        if bad := self.loader.unreadable:
            say(f"skipped: {len(bad)} clips could not be read and were not trained on: {self.out / SKIPPED}")

    def _train(self, meter: Meter) -> None:
        """Take all remaining steps, with logging, validation and checkpoints in between."""
        curve: list[float] = []
        for batch in self._batches():
            result = self._take_step(batch)
            self._fit_total(meter)
            if self.step <= _LOG_ALL or self.step % _LOG_EVERY == 0 or self.step == self.total:
                self._log(result)
                curve.append(result.loss)
            losses = " ".join(f"{name} {value:.3g}" for name, value in result.parts.items())
            skipped = f", {len(self.loader.unreadable)} skipped" if self.loader.unreadable else ""
            rate = self.optimizer.param_groups[0]["lr"]
            meter.update(self.step, f"{losses}, lr {rate:.2g}, gradient {result.norm:.2g}{skipped} {spark(curve)}")
            if self.step >= self.total:
                return  # `fit` validates and saves, so that the last checkpoint equals that of an uninterrupted run
            self.scheduler.step()
            if self.validate_steps and self.step % self.validate_steps == 0:
                self._validate()
            if result.stop or result.save:
                self._save()
            if result.stop:
                raise Interrupted(self.out)

    def _fit_total(self, meter: Meter) -> None:
        """Lower the number of steps, and the schedule with it, where ``optim.max_minutes`` leaves no time for all."""
        if not self.limit.seconds:
            return
        elapsed = time.monotonic() - self.began
        total = distributed.run_on_rank0(lambda: self.limit.fit(self.step, self.total, elapsed))
        if total < self.total:
            say(f"{total} of {self.total} steps fit into optim.max_minutes = {self.limit.seconds / 60:.3g}")
            self.total = meter.total = total
            self.scheduler = optim.make_scheduler(self.optimizer, self.recipe.optim, total, self.step - 1)

    def _batches(self) -> Iterator[Batch]:
        """Batches from the current step to the last."""
        per_epoch = len(self.loader)
        while self.step < self.total:
            for batch in self.loader.epoch(self.step // per_epoch, self.step % per_epoch):
                yield batch
                if self.step >= self.total:
                    return

    def _take_step(self, batch: Batch) -> optim.StepResult:
        """One optimizer step on this process's rows of the global batch.

        Raises:
            TrainingError: the loss or the gradient is not finite or a spike; the weights are unchanged.
        """
        # Dropout and the like are seeded by the step, so that a resumed run draws the same; each process has its own.
        rank = ("rank", distributed.rank()) if distributed.rank() else ()
        torch.manual_seed(sampling.derive_seed(self.recipe.seed, "step", self.step, *rank))
        self.task.train()
        self.optimizer.zero_grad(set_to_none=True)
        pieces = batch.pieces(self.recipe.optim.grad_accum_steps)
        found: list[Losses] = []
        for piece in pieces:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                losses = self.task.losses(piece.to(self.device))
            (losses.total if len(pieces) == 1 else losses.total / len(pieces)).backward()
            found.append(losses)
        distributed.all_reduce_gradients(self.task.parameters())
        norm = torch.nn.utils.clip_grad_norm_(self.task.parameters(), self.recipe.optim.grad_clip or math.inf)
        result = self._read(found, norm)
        self._check(result, batch)
        self.optimizer.step()
        self.step += 1
        self.average.update(self.step)
        return result

    def _read(self, losses: list[Losses], norm: torch.Tensor) -> optim.StepResult:
        """All numbers of a step, fetched from the device at once and averaged over the processes."""
        names = list(losses[0].parts)
        rows = [torch.stack([each.total.detach().float(), *(each.parts[n].float() for n in names)]) for each in losses]
        values = rows[0] if len(rows) == 1 else torch.stack(rows).mean(0)
        late = time.monotonic() - self.saved > 60 * self.recipe.run.checkpoint_minutes
        flags = [float(self.signals.stop.is_set()), float(late and distributed.rank() == 0)]
        every = torch.cat([values, norm.detach().float()[None], values.new_tensor(flags)])
        loss, *parts, norm_, stop, save = cast("list[float]", distributed.all_reduce_mean(every).tolist())
        return optim.StepResult(loss, norm_, dict(zip(names, parts, strict=True)), stop > 0, save > 0)

    def _check(self, result: optim.StepResult, batch: Batch) -> None:
        """Stop before a loss or gradient that is not finite, or a loss spike, changes the weights.

        Raises:
            TrainingError: names the file with the samples of the batch.
        """
        problem = self.guard.check(result.loss, result.norm)
        if problem is None:
            return
        samples = [key for part in distributed.all_gather_objects([e.key for e in batch.examples]) for key in part]
        path = self.out / "diverged.json"
        losses = {name: str(value) for name, value in result.parts.items()}  # as text: JSON has no NaN
        if distributed.rank() == 0:
            row = {"step": self.step, "losses": losses, "gradient": str(result.norm), "samples": samples}
            checkpoint.write_json(path, row)
        raise TrainingError(
            f"{problem} at step {self.step}: lower optim.lr = {self.recipe.optim.lr:g}; the batch is named in {path}"
        )

    def _log(self, result: optim.StepResult) -> None:
        for bad in distributed.all_gather_objects(self.loader.unreadable):
            self.loader.unreadable.update(bad)
        row = {
            "step": self.step,
            "epoch": round(self.step / len(self.loader), 3),
            "seconds": round(time.monotonic() - self.began, 2),
            "lr": self.optimizer.param_groups[0]["lr"],
            "gradient": result.norm,
            "loss": result.loss,
            **result.parts,
            "skipped": len(self.loader.unreadable),
        }
        self.log.add(METRICS, row)

    def _validate(self) -> None:
        """Evaluate on the validation split and append the metrics to ``validation.jsonl``."""
        source = self.recipe.data.validation
        assert source is not None
        with distributed.rank0_first():
            loader = build.make_loader(self.recipe, self.task, build.examples_of(source), train=False)
        stop, precision = self.signals.stop.is_set, self.recipe.run.precision
        with self.average.applied():
            summary = evaluate.evaluate(self.task, loader, self.device, precision, "validating", stop=stop)
        self.validation_due = False
        self.metadata["validation"] = summary.metrics
        self.metadata["cannot_tell"] = summary.details.get("cannot_tell", self.task.facts.get("cannot_tell"))
        self.log.add(VALIDATION, {"step": self.step, **summary.metrics})
        shown = ", ".join(f"{name} {value:.1f}" for name, value in summary.metrics.items() if "[" not in name)
        say(f"validation at step {self.step}: {shown}")
        if summary.details.get("collapsed"):
            say("warning: the codebook has collapsed; set task.tokenizer.dead_code_threshold=0.5 or kmeans=true")

    def _save(self) -> None:
        """Write a checkpoint on rank 0; if that fails, all processes raise."""
        for bad in distributed.all_gather_objects(self.loader.unreadable):
            self.loader.unreadable.update(bad)
        folder = self.out / f"step-{self.step}"
        state = {
            "step": self.step,
            "total": self.total,
            "seconds": time.monotonic() - self.began,
            **self.loader.state(),
            "mean_loss": str(self.guard.mean),
            "validation_due": self.validation_due,
        }

        metadata = {**self.metadata, "step": self.step}

        def save() -> None:
            checkpoint.write_run(folder, self.task, self.optimizer, self.average, metadata, state)
            checkpoint.point(self.out, folder)

        distributed.run_on_rank0(save)
        self.log.skip(self.loader.unreadable)
        self.saved = time.monotonic()

    def _resume(self) -> None:
        """Continue from the newest valid checkpoint, and print which one."""
        found = distributed.run_on_rank0(lambda: checkpoint.read_run(self.out))
        for line in found.complaints:
            say(f"ignored: {line}")
        if found.folder is None:
            say(f"{self.out}: no checkpoint yet; starting at step 0")
            return
        try:
            self.task.load_state_dict(found.weights)
            checkpoint.restore_optimizer(self.optimizer, found.optimizer)
            self.average = optim.WeightAverage(self.task, self.average.decay)
            self.task.load_state_dict(found.raw, strict=False)
        except (RuntimeError, ValueError, IndexError) as error:
            reason = " ".join(str(error).splitlines()[:2])[:200]
            raise CheckpointError(
                f"{found.folder}: was trained by another recipe ({reason}): resume with the recipe of the run, or name "
                "another folder in run.output_dir"
            ) from None
        self.step, self.seconds = int(found.state["step"]), float(found.state["seconds"])
        self.total = min(self.total, int(found.state["total"])) if self.limit.seconds else self.total
        self.guard.mean, self.validation_due = float(found.state["mean_loss"]), bool(found.state["validation_due"])
        self.scheduler = optim.make_scheduler(self.optimizer, self.recipe.optim, self.total, self.step)
        self.loader.restore(found.state)
        if "validation" in found.metadata:
            self.metadata["validation"] = found.metadata["validation"]
        for line in differences(found.metadata, self.metadata):
            say(f"warning: {line}")
        say(f"resuming {found.folder} at step {self.step} of {self.total}")
