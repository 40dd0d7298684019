"""AdamW, its learning-rate schedule and averaged weights (paper 4.1; the paper gives no warm-up and no schedule)."""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from pydantic import Field, model_validator
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import get_ema_multi_avg_fn

from evilm.config import Config

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from torch import nn


BETAS = (0.9, 0.98)  # of all published recipes below
MEAN_DECAY = 0.98  # of the running mean of the loss, which detects spikes

# Published settings by name (``optim.preset``), which the other keys of a recipe may change.
PRESETS: dict[str, dict[str, Any]] = {
    # arXiv 2311.17267, section 4.1; batch size, warm-up and schedule are ours.
    "paper": {"lr": 1e-4, "weight_decay": 0.01, "epochs": 20},
    "paper-tokenizer": {"lr": 2e-4, "epochs": 10},
    # all-in-one (arXiv 2203.07303) multiplies the learning rate of new heads by 10 and decays it linearly.
    "all-in-one": {
        "lr": 1e-4, "weight_decay": 0.01, "warmup_ratio": 0.1, "schedule": "linear",
        "head_lr_scale": 10.0, "batch_size": 512, "epochs": 20,
    },
    "all-in-one-retrieval": {
        "lr": 3e-4, "weight_decay": 0.01, "warmup_ratio": 0.1, "schedule": "linear",
        "head_lr_scale": 10.0, "epochs": 200,
    },
    # VIOLET v2 (arXiv 2209.01540).
    "violet": {"lr": 2e-5, "weight_decay": 1e-3, "grad_clip": 1.0, "epochs": 20},
    "violet-tgif-action": {"lr": 2e-5, "weight_decay": 1e-3, "grad_clip": 1.0, "epochs": 60},
}  # fmt: skip


class OptimConfig(Config):
    """Settings of the optimizer; the defaults are those of the paper's pre-training. ``preset`` names ``PRESETS``."""

    epochs: float = Field(default=20, gt=0, description="passes over the training rows; fractions are allowed")
    max_minutes: float = Field(
        default=0.0,
        ge=0,
        description="time limit in minutes, to which the steps are fitted; 0 sets none",
    )
    batch_size: int = Field(default=64, gt=0, description="rows of one step, of all processes together")
    grad_accum_steps: int = Field(
        default=1, gt=0, description="pieces in which a batch is computed to save memory; negatives come from the piece"
    )
    lr: float = Field(default=1e-4, gt=0, description="highest learning rate")
    head_lr_scale: float = Field(
        default=1.0, gt=0, description="factor on the learning rate of heads that are not in the start checkpoint"
    )
    backbone_lr_scale: float = Field(
        default=1.0, ge=0, description="factor on the learning rate of the video backbone; 0 freezes it"
    )
    text_lr_scale: float = Field(
        default=1.0, ge=0, description="factor on the learning rate of BERT; 0 freezes all that embeds a text"
    )
    weight_decay: float = Field(default=0.01, ge=0, description="decoupled weight decay of matrices")
    warmup_ratio: float = Field(default=0.1, ge=0, lt=1, description="fraction of all steps with a rising rate")
    schedule: Literal["cosine", "linear", "constant"] = Field(
        default="cosine", description="learning rate after the warm-up: falls to 0, or stays"
    )
    grad_clip: float = Field(default=1.0, ge=0, description="largest gradient norm; 0 does not clip")
    ema_decay: float = Field(
        default=0.0, ge=0, lt=1, description="decay of averaged weights, which are then the result; 0 has none"
    )
    loss_spike_factor: float = Field(
        default=100.0,
        ge=0,
        description="stop if the loss exceeds its running mean (at least 1) this many times; 0 never",
    )

    @model_validator(mode="before")
    @classmethod
    def _expand_preset(cls, table: Any) -> Any:
        """Replace ``preset`` by the settings it names, which the other keys override."""
        if not isinstance(table, dict) or "preset" not in table:
            return cast("Any", table)
        changes = dict(cast("dict[str, Any]", table))
        name = str(changes.pop("preset"))
        if name not in PRESETS:
            raise ValueError(f"unknown preset {name!r}: there are {', '.join(PRESETS)}")
        return {**PRESETS[name], **changes}

    @model_validator(mode="after")
    def _check_pieces(self) -> OptimConfig:
        if self.batch_size % self.grad_accum_steps:
            raise ValueError(
                f"grad_accum_steps = {self.grad_accum_steps} does not divide batch_size = {self.batch_size}"
            )
        return self


def steps(config: OptimConfig, batches: int) -> int:
    """Optimizer steps of a run with ``batches`` batches per epoch."""
    return max(1, round(config.epochs * batches))


def make_optimizer(task: nn.Module, config: OptimConfig, fresh: frozenset[str]) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; no decay on biases, norms, embeddings and positions.

    timm's parameter groups are not used: they decay embeddings, and know no separate rates of backbone and heads.

    Args:
        task: the module to train.
        config: the settings.
        fresh: names of parameters that are random while others come from a checkpoint.
    """
    groups: dict[tuple[bool, float], list[torch.nn.Parameter]] = {}
    for name, parameter in task.named_parameters():
        scale = _lr_scale(name, config, fresh)
        if scale == 0:
            parameter.requires_grad_(False)
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and not any(place in name for place in _NO_DECAY)
            groups.setdefault((decays, scale), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": found, "weight_decay": config.weight_decay if decays else 0.0, "lr_scale": scale}
            for (decays, scale), found in sorted(groups.items(), key=lambda item: item[0])
        ],
        lr=config.lr,
        betas=BETAS,
        fused=all(parameter.device.type in ("cpu", "cuda") for parameter in task.parameters()),
    )


def _lr_scale(name: str, config: OptimConfig, fresh: frozenset[str]) -> float:
    """The factor on the learning rate of one parameter; 0 freezes it."""
    if ".backbone." in name:
        return config.backbone_lr_scale
    if ".bert." in name:
        return config.text_lr_scale
    if ".bag_embeddings." in name:  # at the heads' rate, as few captions have any one word piece
        return config.head_lr_scale if config.text_lr_scale else 0.0
    return config.head_lr_scale if name in fresh else 1.0


_NO_DECAY = ("embeddings", ".space", ".time", ".positions", ".codes", ".cls", ".type_", "pos_embed")


def schedule_at(config: OptimConfig, step: int, total: int) -> float:
    """The factor on the learning rate at ``step`` of ``total``: linear warm-up, then the schedule."""
    warm = round(config.warmup_ratio * total)
    if step < warm:
        return (step + 1) / warm
    if config.schedule == "constant":
        return 1.0
    past = (step - warm) / max(1, total - warm)
    return 0.5 * (1 + math.cos(math.pi * past)) if config.schedule == "cosine" else 1 - past


def make_scheduler(optimizer: torch.optim.Optimizer, config: OptimConfig, total: int, step: int = 0) -> LambdaLR:
    """The schedule of a run of ``total`` steps, which continues at ``step``."""
    for group in optimizer.param_groups:
        group["initial_lr"] = 1.0  # so that the functions below give the rates themselves

    def of_group(scale: float) -> Callable[[int], float]:
        return lambda step: config.lr * schedule_at(config, step, total) * scale

    return LambdaLR(optimizer, [of_group(group["lr_scale"]) for group in optimizer.param_groups], last_epoch=step - 1)


@dataclass(frozen=True, slots=True)
class StepResult:
    """The numbers of a step, averaged over all processes.

    Attributes:
        norm: of the gradient, before clipping.
        parts: the losses by name.
        stop, save: whether one of the processes was asked to stop, and whether a checkpoint is due.
    """

    loss: float
    norm: float
    parts: dict[str, float]
    stop: bool
    save: bool


class LossGuard:
    """Detects losses and gradients that are not finite, and loss spikes.

    Args:
        factor: a loss that exceeds its running mean (at least 1) this many times is a spike; 0 accepts all.
    """

    def __init__(self, factor: float) -> None:
        self.factor, self.mean = factor, math.nan

    def check(self, loss: float, norm: float) -> str | None:
        """The problem of a step in words; without one, None, and the running mean is updated."""
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(norm):
            return f"the gradient norm is {norm}"
        if self.factor and loss > self.factor * max(1.0, self.mean):
            return f"the loss is {loss:.4g} and was {self.mean:.4g} on average"
        before = loss if math.isnan(self.mean) else self.mean
        self.mean = MEAN_DECAY * before + (1 - MEAN_DECAY) * loss
        return None


class WeightAverage:
    """An exponential moving average of the trained weights, which often generalise better than the last ones.

    ``torch.optim.swa_utils.AveragedModel`` is not used: it copies the whole task, with a frozen teacher or tokenizer.

    Args:
        module: its trainable parameters are averaged.
        decay: of the average; smaller in the first steps. 0 averages nothing.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.trained = {name: p for name, p in module.named_parameters() if p.requires_grad and decay}
        self.averages = {name: p.detach().clone() for name, p in self.trained.items()}

    def update(self, step: int) -> None:
        """Add the weights after ``step`` steps to the average."""
        if self.trained:
            average = cast("Any", get_ema_multi_avg_fn)(min(self.decay, (1 + step) / (10 + step)))
            average([*self.averages.values()], [*self.trained.values()], step)

    @contextmanager
    def applied(self) -> Generator[None]:
        """Inside, the module has the averaged weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self.trained.items():
            trained = parameter.detach().clone()
            parameter.copy_(self.averages[name])
            self.averages[name].copy_(trained)
