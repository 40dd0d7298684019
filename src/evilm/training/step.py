"""One optimiser step: gradients of the global batch, the numbers it showed, and the guard before it counts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch

from evilm import distributed
from evilm.data import sampling
from evilm.errors import TrainingError
from evilm.training import checkpoint, optim

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from evilm.tasks import Task
    from evilm.training.recipe import Recipe
    from evilm.types import Batch, Losses

USUAL = 0.98  # decay of the running loss that an exploding one is told by


@dataclass(frozen=True, slots=True)
class Reading:
    """What a step showed, over all processes.

    Attributes:
        loss: what was minimised.
        norm: of the gradient, before clipping.
        parts: the losses by name.
        stop: whether one of the processes was asked to stop.
        save: whether it is time for a checkpoint.
    """

    loss: float
    norm: float
    parts: dict[str, float]
    stop: bool
    save: bool

    def __str__(self) -> str:
        return " ".join(f"{name} {value:.3g}" for name, value in self.parts.items())


class Stepper:
    """What takes the steps of a run.

    Args:
        recipe: the settings.
        task: on its device.
        optimizer: of its weights.
        device: where.
        total: steps of the whole run, which the schedule goes by.
    """

    def __init__(
        self, recipe: Recipe, task: Task, optimizer: torch.optim.Optimizer, device: torch.device, total: int
    ) -> None:
        self.recipe, self.task, self.optimizer, self.device, self.total = recipe, task, optimizer, device, total
        self.bf16 = distributed.uses_bf16(recipe.run.precision, device)
        self.usual = math.nan  # the running loss

    def advance(
        self, batch: Batch, step: int, *, stop: Callable[[], bool] = bool, save: Callable[[], bool] = bool
    ) -> Reading:
        """The step number ``step``.

        Args:
            batch: this process's share of the global batch.
            step: how many were taken before.
            stop: whether this process was asked to stop; all hear of it. Asked at the end of the step.
            save: whether it is time for a checkpoint, as the first process sees it.

        Raises:
            TrainingError: loss or gradient is no number, or far beyond what is usual; the weights are as before.
        """
        config = self.recipe.optim
        # Dropout and the like derive from the step, so that a resumed run draws the same; each process has its own.
        other = ("rank", distributed.rank()) if distributed.rank() else ()
        torch.manual_seed(sampling.derive_seed(self.recipe.seed, "step", step, *other))
        optim.set_rate(self.optimizer, config, optim.rate(config, step, self.total))
        self.task.train()
        self.optimizer.zero_grad(set_to_none=True)
        losses = self._backward(batch)
        distributed.all_reduce_gradients(self.task.parameters())
        norm = torch.nn.utils.clip_grad_norm_(self.task.parameters(), config.grad_clip or math.inf)
        reading = self._read(losses, norm, [float(stop()), float(save() and distributed.rank() == 0)])
        self._check(reading, batch, step)
        self.optimizer.step()
        return reading

    def _backward(self, batch: Batch) -> list[Losses]:
        """Losses and gradients of a batch, piece by piece."""
        pieces = batch.pieces(self.recipe.optim.grad_accum_steps)
        found: list[Losses] = []
        for piece in pieces:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                losses = self.task.losses(piece.to(self.device))
            (losses.total if len(pieces) == 1 else losses.total / len(pieces)).backward()
            found.append(losses)
        return found

    def _read(self, losses: list[Losses], norm: Tensor, flags: list[float]) -> Reading:
        """All numbers of a step, fetched from the device at once and averaged over the processes."""
        names = list(losses[0].parts)
        rows = [
            torch.stack([each.total.detach().float(), *(each.parts[name].float() for name in names)]) for each in losses
        ]
        values = rows[0] if len(rows) == 1 else torch.stack(rows).mean(0)
        every = torch.cat([values, norm.detach().float()[None], values.new_tensor(flags)])
        told = cast("list[float]", distributed.all_reduce_mean(every).tolist())
        return Reading(told[0], told[-3], dict(zip(names, told[1:-3], strict=True)), told[-2] > 0, told[-1] > 0)

    def _check(self, reading: Reading, batch: Batch, step: int) -> None:
        """Stop, before the weights are harmed, where loss or gradient is no number or far beyond what is usual.

        Raises:
            TrainingError: and the batch is written down.
        """
        limit = self.recipe.optim.loss_spike_factor * max(1.0, self.usual)
        if not math.isfinite(reading.loss):
            what = f"the loss is {reading.loss}"
        elif not math.isfinite(reading.norm):
            what = f"the gradient's norm is {reading.norm}"
        elif self.recipe.optim.loss_spike_factor and reading.loss > limit:
            what = f"the loss is {reading.loss:.4g} and was {self.usual:.4g}"
        else:
            before = reading.loss if math.isnan(self.usual) else self.usual
            self.usual = USUAL * before + (1 - USUAL) * reading.loss
            return
        samples = [key for part in distributed.all_gather_objects([e.key for e in batch.examples]) for key in part]
        path = self.recipe.run.output_dir / "diverged.json"
        # As text: JSON has no name for what is no number.
        parts = {name: str(value) for name, value in reading.parts.items()}
        told = {"step": step, "losses": parts, "gradient": str(reading.norm), "samples": samples}
        if distributed.rank() == 0:
            checkpoint.write_json(path, told)
        raise TrainingError(
            f"{what} at step {step}: lower optim.lr = {self.recipe.optim.lr:g}; the batch is named in {path}"
        )
